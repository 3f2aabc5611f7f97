"""Looked-up ids against those of tokenizers, on real and on deliberately difficult text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mobilebert.data import encoding
from mobilebert.data.corpus import sentences
from mobilebert.data.encoding import SentenceEncoder
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer


def oracle(tokenizer: Tokenizer, texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def encoded(encoder, texts):
    ids, lengths = encoder(texts)
    assert (len(ids), len(lengths)) == (lengths.sum(), len(texts))
    ends = lengths.cumsum()
    return [ids[end - length : end].tolist() for end, length in zip(ends, lengths)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return a tokenizer of short pieces, ASCII and not: words are cut, and some are unknown."""

    class Source:
        spec = "made up"

        def vocab(self):
            pieces = [a + b for a in "abcxyz019" for b in ("", "b", "c", "ac", "09")]
            marks = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
            other = ["é", "ß", "ı", "ss", "中", "文", "か", "”", "—", "##é", "##が", "σ", "ς", "##σ", "##ς"]
            specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
            path.write_text("\n".join(dict.fromkeys([*specials, *marks, *pieces, *(f"##{p}" for p in pieces), *other])))
            return path

    return build_tokenizer(Source(), tmp_path_factory.mktemp("tokenizer"), None)


LONG = ["a" * 99, "a" * 100, "a" * 101, "ab" * 60]
SPECIAL = ["[MASK]", "[mask]", "a[SEP]b", "[", "]", "##a", "#", "_", "`^~|", "ABC", "a.b", "a-b's", "1,000.5"]
LETTERS = ["İ", "ẞ", "é", "e\u0301", "\u0301", "\u0301a", "a\u0345\u0301", "ﬁ", "Σ", "ΑΣ", "中文", "a中b", "한국", "が", "—", "”"]
RARE = ["\U00020000", "\U0001f600", "\ufffd", "\x00", "\x7f", "\xad", "\u200b", "\ufeff", "x\x00y", "x\u200by"]
SPACES = ["", " ", "  ", *"\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000", "x\xa0y", "x\ty"]
DIFFICULT = [*LONG, *SPECIAL, *LETTERS, *RARE, *SPACES]
TEXTS = st.lists(st.one_of(st.sampled_from(DIFFICULT), st.text(max_size=6), st.sampled_from([" ", "a", "B", "."])), max_size=12)


@given(st.lists(st.lists(TEXTS.map("".join), max_size=6), min_size=1, max_size=3), st.sampled_from([2, 8, 2**18]))
@settings(max_examples=100, deadline=None)
def test_ids_are_those_of_tokenizers(tokenizer, batches, max_words):
    encoder, kept = SentenceEncoder(tokenizer), encoding.MAX_WORDS
    encoding.MAX_WORDS = max_words
    try:
        for texts in [*batches, batches[0]]:
            assert encoded(encoder, texts) == oracle(tokenizer, texts)
            assert len(encoder.known) <= max_words
    finally:
        encoding.MAX_WORDS = kept


def test_ids_of_every_pair_of_difficult_texts(tokenizer):
    texts = [f"a{first}{space}{second}b" for first in DIFFICULT for second in DIFFICULT for space in ("", " ")]
    assert encoded(SentenceEncoder(tokenizer), texts) == oracle(tokenizer, texts)


def test_ids_of_real_text(real_data, tmp_path):
    source = open_source(f"local:{real_data}", documents=120)
    tokenizer = build_tokenizer(source, tmp_path, None)
    encoder = SentenceEncoder(tokenizer)
    for document in source.documents():
        texts = list(sentences(document[:20_000]))
        expected = tokenizer.encode_batch(texts, add_special_tokens=False)
        assert encoded(encoder, texts) == [item.ids for item in expected]
