"""The sentences of a document, and given paragraphs found inside documents."""

from collections import defaultdict
from collections.abc import Iterable

from mobilebert.data.sentences import _WORD, LONG_SENTENCE, sentences


class Paragraphs:
    """Texts to be found inside documents, whatever their case, white space and punctuation, in about one pass.

    Found is a document that contains a whole paragraph or one of its sentences of LONG_SENTENCE words or more: copies
    of an article differ by edits, and then the sentences between the edits still match.

    Only the few texts whose words a document has all are searched for, found by their longest; none is missed by that.
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
    return _WORD.findall(text.lower())
