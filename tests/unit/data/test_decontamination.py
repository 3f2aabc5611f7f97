"""Paragraphs of the development sets are found in a corpus, also if they were edited."""

from hypothesis import given
from hypothesis import strategies as st

from mobilebert.data.decontamination import Paragraphs

WORDS = st.lists(st.sampled_from(["a", "b", "cc", "Dd", "eee", "Ffff"]), min_size=1, max_size=9)


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, min_size=1, max_size=4), st.sampled_from([" ", "\n", ", ", " – "]))
def test_paragraphs_are_found_as_runs_of_words(paragraphs, document, space):
    words = [word.lower() for words in document for word in words]
    runs = [[word.lower() for word in paragraph] for paragraph in paragraphs]
    expected = any(run == words[start : start + len(run)] for run in runs for start in range(len(words)))
    text = space.join(space.join(words) for words in document)
    assert Paragraphs(" ".join(words) for words in paragraphs).in_document(text) == expected


def test_an_edited_paragraph_is_found_by_a_long_sentence():
    sentence = "The quick brown fox jumps over the lazy dog near the old stone bridge every morning."
    paragraphs = Paragraphs([f"It was so. {sentence} Nobody saw it."])
    assert paragraphs.in_document(f"Some article.\nIt was not so. {sentence.replace(' ', '  ')} Someone saw it.")
    assert not paragraphs.in_document("Some article. It was so. The quick brown fox sleeps. Nobody saw it.")
