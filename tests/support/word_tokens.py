"""Make a tokenizer whose tokens are the words of a small vocabulary."""

from mobilebert.data.tokenizer import build_tokenizer

WORDS = [f"w{index}" for index in range(40)]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "answer"]


class Vocabulary:
    """A source that has a vocabulary alone."""

    def __init__(self, path):
        self.path, self.spec = path, "words"

    def vocab(self):
        return self.path


def word_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return build_tokenizer(Vocabulary(folder / "vocab.txt"), folder / "tokenizer", None)
