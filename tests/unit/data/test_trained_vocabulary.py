"""A vocabulary trained on a corpus: exact, the same every time, and blind to held-out documents."""

import hashlib

import pytest

from mobilebert.data.corpus import is_heldout
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer, load_tokenizer
from mobilebert.util.errors import UserError


def test_a_trained_tokenizer_is_exact_and_the_same_every_time(tmp_path):
    source = open_source("synthetic")
    full = build_tokenizer(source, tmp_path / "full", None)
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert build_tokenizer(source, folder, 500).get_vocab_size() == 500
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    loaded = load_tokenizer(tmp_path / "a")
    assert [loaded.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    for document in list(source.documents())[:20]:
        assert "[UNK]" not in full.encode(document).tokens
        text = loaded.decode(loaded.encode(document).ids)
        assert "".join(text.split()) == "".join(document.split())
    with pytest.raises(UserError, match="vocab_size is 20: must be at least"):
        build_tokenizer(source, tmp_path / "c", 20)
    with pytest.raises(UserError, match="give at most"):
        build_tokenizer(source, tmp_path / "c", 5000)
    with pytest.raises(UserError, match=r"tokenizer\.json: missing"):
        load_tokenizer(tmp_path / "nowhere")


class Library:
    """A source with documents and a vocab.txt."""

    spec = "test"

    def __init__(self, documents, vocabulary):
        self.list, self.vocabulary = documents, vocabulary

    def documents(self):
        return iter(self.list)

    def vocab(self):
        return self.vocabulary


@pytest.fixture
def library(tmp_path):
    """Return a source of 60 documents, each with a word of its own; one character is rare."""
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a")))
    words = [f"{a}{b}" for a in "bcdfgh" for b in "aeiouymnrl"]
    return Library([f"{word} {word} the\n{word} \N{SNOWMAN}" for word in words], path)


def test_another_size_than_that_of_vocab_txt_trains_a_vocabulary_on_the_training_documents(library, tmp_path):
    given = build_tokenizer(library, tmp_path / "given", None, 0.5)
    assert given.get_vocab_size() == build_tokenizer(library, tmp_path / "same", 6, 0.5).get_vocab_size() == 6
    size = 80  # the special tokens, 27 characters twice, and room for 20 words
    trained = build_tokenizer(library, tmp_path / "trained", size, 0.5, 3)
    assert trained.get_vocab_size() == size
    whole = {word for word in trained.get_vocab() if len(word) == 2}
    training, heldout = set(), set()
    for document in library.documents():
        (heldout if is_heldout(document, 0.5, 3) else training).add(document[:2])
    assert len(whole & training) > 10
    assert len(heldout) > 10
    assert not whole & heldout


def test_a_vocabulary_trained_beside_vocab_txt_is_the_same_every_time(library, tmp_path):
    written = []
    for name in "ab":
        build_tokenizer(library, tmp_path / name, 80, 0.1)
        written.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert written[0] == written[1]


def test_words_with_a_rare_character_become_unknown(library, tmp_path, monkeypatch):
    monkeypatch.setattr("mobilebert.data.tokenizer.MOST_ALPHABET", 26)
    tokenizer = build_tokenizer(library, tmp_path / "out", 80, 0.1)
    assert tokenizer.encode("the \N{SNOWMAN}", add_special_tokens=False).tokens[-1] == "[UNK]"
    assert not [token for token in tokenizer.get_vocab() if "\N{SNOWMAN}" in token]
    assert "[UNK]" not in tokenizer.encode("the ba be", add_special_tokens=False).tokens


def test_reading_for_a_vocabulary_stops_at_a_limit(library, tmp_path, monkeypatch):
    monkeypatch.setattr("mobilebert.data.tokenizer.MOST_READ", len(library.list[0]))
    vocabulary = build_tokenizer(library, tmp_path / "out", 62, 1e-9).get_vocab()
    assert library.list[0][:2] in vocabulary
    assert library.list[1][:2] not in vocabulary


def test_another_seed_holds_out_other_documents(library):
    held = [{text for text in library.documents() if is_heldout(text, 0.3, seed)} for seed in (0, 1, 2)]
    assert all(8 <= len(some) <= 28 for some in held)
    assert held[0] != held[1] != held[2] != held[0]
    plain = {text for text in library.documents() if int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) < 0.3 * 2**64}
    assert held[0] == plain, "seed 0 is the split of earlier versions"
