"""Split a paragraph into sentences."""

import re
from collections.abc import Iterator

# As many words in a row are not shared by chance; the length that is customary for finding test data in training data.
LONG_SENTENCE = 13

_WORD = re.compile(r"\w+")

# A full stop ends a sentence unless one capital letter stands before it ("J. Smith"); a closing quote or bracket
# belongs to the sentence that it closes.
_SENTENCE_END = re.compile(r"""(?:(?<![ .][A-Z])\.|[!?])["'”’)\]]*(?=\s)""")


def sentences(document: str) -> Iterator[str]:
    """The sentences of a document; a line break always ends one."""
    for paragraph in document.splitlines():
        start = 0
        for match in _SENTENCE_END.finditer(paragraph):
            yield paragraph[start : match.end()].strip()
            start = match.end()
        if rest := paragraph[start:].strip():
            yield rest
