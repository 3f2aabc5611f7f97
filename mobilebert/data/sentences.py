"""Split a paragraph into sentences."""

import re
from collections.abc import Iterator

# Two texts do not share so many words in a row by chance. It is the usual number of words for
# finding test data in training data.
LONG_SENTENCE = 13

WORD = re.compile(r"\w+")

# A full stop ends a sentence, but not after a single capital letter ("J. Smith"). A closing quote
# or bracket belongs to the sentence that it closes.
_SENTENCE_END = re.compile(r"""(?:(?<![ .][A-Z])\.|[!?])["'”’)\]]*(?=\s)""")


def sentences(document: str) -> Iterator[str]:
    """Yield the sentences of a document; a line break always ends a sentence."""
    for paragraph in document.splitlines():
        start = 0
        for match in _SENTENCE_END.finditer(paragraph):
            yield paragraph[start : match.end()].strip()
            start = match.end()
        if rest := paragraph[start:].strip():
            yield rest
