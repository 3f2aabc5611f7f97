"""Text is split into sentences without losing a word."""

from hypothesis import given
from hypothesis import strategies as st

from mobilebert.data.sentences import sentences


@given(st.text(alphabet="aB .!?\n\"'", max_size=60))
def test_sentences_keep_every_word(text):
    found = list(sentences(text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in found)


def test_sentences():
    text = 'He met J. Smith. "Why?" she asked! It cost 3.5 dollars.\nA title\nThe end.'
    assert list(sentences(text)) == [
        "He met J. Smith.",
        '"Why?"',
        "she asked!",
        "It cost 3.5 dollars.",
        "A title",
        "The end.",
    ]
