"""Read a page with Python's HTML parser: tags, attributes, ids, text; markup must be balanced."""

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, dict(attributes), parent
        self.children, self.texts = [], []

    def all(self, tag=None):
        for child in self.children:
            if tag in (None, child.tag):
                yield child
            yield from child.all(tag)

    @property
    def text(self):
        return " ".join(" ".join([*self.texts, *(child.text for child in self.children)]).split())


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = self.open = Element("document", (), None)

    def handle_starttag(self, tag, attrs):
        child = Element(tag, attrs, self.open)
        self.open.children.append(child)
        if tag not in VOID:
            self.open = child

    def handle_startendtag(self, tag, attrs):
        self.open.children.append(Element(tag, attrs, self.open))

    def handle_endtag(self, tag):
        assert self.open.tag == tag, f"</{tag}> closes <{self.open.tag}>"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.texts.append(data)


def read(html):
    """Return the root of a page whose every tag is closed in order."""
    reader = _Reader()
    reader.feed(html)
    assert reader.open is reader.root
    return reader.root


def ids(root):
    return [element.attributes["id"] for element in root.all() if "id" in element.attributes]


def by_id(root, name):
    (found,) = [element for element in root.all() if element.attributes.get("id") == name]
    return found
