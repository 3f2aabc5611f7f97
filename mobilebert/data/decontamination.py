"""Find given paragraphs inside documents."""

from collections import defaultdict
from collections.abc import Iterable

from mobilebert.data.sentences import LONG_SENTENCE, WORD, sentences


class Paragraphs:
    """Paragraphs to find inside documents, ignoring case, white space and punctuation.

    A document matches if it contains a whole paragraph, or one of its sentences of LONG_SENTENCE
    words or more: copies of an article differ by edits, but the sentences between the edits still
    match.

    The search takes about one pass. A text is looked up by its longest word, and searched for only
    if the document has all its words; no match is missed.
    """

    def __init__(self, paragraphs: Iterable[str]) -> None:
        self.by_word: dict[str, list[tuple[frozenset[str], str]]] = defaultdict(list)
        texts: set[tuple[str, ...]] = set()
        for paragraph in paragraphs:
            texts.add(tuple(_words(paragraph)))
            texts.update(tuple(words) for words in map(_words, sentences(paragraph)) if len(words) >= LONG_SENTENCE)
        self.texts = [f" {' '.join(words)} " for words in sorted(texts - {()})]
        for text in self.texts:
            words = text.split()
            self.by_word[max(words, key=len)].append((frozenset(words), text))

    def in_document(self, document: str) -> bool:
        """Return whether a document contains a paragraph or one of its long sentences."""
        if not self.texts:
            return False
        words = _words(document)
        distinct = set(words)
        found = self.by_word.keys() & distinct
        texts = [text for word in found for needed, text in self.by_word[word] if needed <= distinct]
        if not texts:
            return False
        joined = f" {' '.join(words)} "
        return any(text in joined for text in texts)


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
