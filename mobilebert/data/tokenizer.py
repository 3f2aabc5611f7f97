"""Build BERT's uncased WordPiece tokenizer from a vocab.txt, or train one on documents."""

import hashlib
import json
import shutil
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mobilebert.data.corpus import is_heldout
from mobilebert.data.reading import BYTE_ORDER_MARK, lines, reading, text, writing
from mobilebert.data.source import Source
from mobilebert.modeling.checkpoint_files import TOKENIZER
from mobilebert.util.errors import UserError

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

CONFIG = "tokenizer_config.json"

SPECIAL_TOKENS = (PAD, UNK, CLS, SEP, MASK)

# If vocab_size is None, the trainer takes all pieces that it finds, up to the size of BERT's
# vocabulary.
BERT_VOCAB_SIZE = 30_522

# Limits of a trained vocabulary. A source interleaves its files, so the first characters are a fair
# sample of all. Real text has thousands of rare characters, and each would take two entries.
MOST_READ = 20_000_000  # characters of documents
MOST_ALPHABET = 256  # the most frequent characters; words with another one become [UNK]

BERT_POSITIONS = 512


def build_tokenizer(source: Source, out: Path, vocab_size: int | None, heldout_share: float = 0.0, seed: int = 0) -> Tokenizer:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json to `out`; return the tokenizer.

    transformers' BertTokenizerFast can load the folder `out`.

    vocab_size: the exact size; None takes all that the source has. A source's vocab.txt is used
        completely, if it has this size. Otherwise the vocabulary is trained on the documents.
    heldout_share, seed: choose the documents that are held out, see `is_heldout`. A vocabulary that
        takes the place of vocab.txt is not trained on them.

    Raises UserError if `vocab_size` is more or less than the documents can give; and if vocab.txt
    lacks a special token.
    """
    path = source.vocab()
    if path is None:
        vocab = _train(source.spec, source.documents(), vocab_size)
    else:
        vocab = read_vocabulary(path)
        if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
            raise UserError(f"{path}: no token {', '.join(missing)}")
        if vocab_size not in (None, len(vocab)):
            training = (document for document in source.documents() if not is_heldout(document, heldout_share, seed))
            vocab = _train(source.spec, training, vocab_size)
    tokenizer = _bert(vocab)
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": BERT_POSITIONS,
        **{f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS)},
    }
    _write(out / "vocab.txt", "".join(f"{token}\n" for token in vocab))
    _write(out / CONFIG, json.dumps(config, indent=2) + "\n")
    _write(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    return tokenizer


def read_vocabulary(path: Path) -> list[str]:
    """Return the tokens of a vocab.txt, one a line; a token's number is its line's, from 0.

    Lines end with \\n or \\r\\n, as in transformers and tokenizers. Raises UserError if the file is
    not UTF-8 or begins with a byte order mark, and if a token is there twice.
    """
    content = text(path, "not a vocabulary", keep_mark=True)
    if content.startswith(BYTE_ORDER_MARK):
        raise UserError(f"{path}: begins with a byte order mark (U+FEFF), which is no part of a token; save it without one")
    vocab = lines(content)
    first: dict[str, int] = {}
    for number, token in enumerate(vocab, 1):
        if (before := first.setdefault(token, number)) != number:
            raise UserError(f"{path}: line {number} repeats the token {token!r:.80} of line {before}")
    return vocab


def vocab_hash(content: str) -> str:
    """Return the sha256 of a vocabulary as `build_tokenizer` writes it: \\n after each token."""
    return hashlib.sha256("".join(f"{token}\n" for token in lines(content)).encode()).hexdigest()


def copy_tokenizer(folder: Path, out: Path, longest: int) -> list[str]:
    """Copy the tokenizer files of `folder` beside the model in `out`, and return their names.

    longest: most tokens that the model takes; written as transformers' model_max_length.
    """
    names = [name for name in TOKENIZER if name != CONFIG and (folder / name).is_file()]
    if not names:
        return []
    for name in names:
        shutil.copyfile(folder / name, out / name)
    config = folder / CONFIG
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    _write(out / CONFIG, json.dumps(values | {"model_max_length": longest}, indent=2) + "\n")
    return [*names, CONFIG]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that `build_tokenizer` wrote.

    Raises UserError if it is missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: missing")
    with reading(path, "not a tokenizer file"):
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def _normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)


def _bert(vocab: list[str]) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _train(spec: str, documents: Iterable[str], vocab_size: int | None) -> list[str]:
    """Return a vocabulary that is always the same for the same documents.

    It has the special tokens, then pieces in the trainer's order. The trainer numbers characters in
    the order of a hash table with a random seed, and these numbers break ties between equally
    frequent pairs. Passing every piece of one character as a "special" token fixes the numbers.

    spec: the source's name in an error.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    read = 0
    for document in documents:
        cleaned = tokenizer.normalizer.normalize_str(document)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(cleaned))
        read += len(document)
        if read >= MOST_READ:
            break
    characters = _alphabet(words)
    fixed = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    size = vocab_size or BERT_VOCAB_SIZE
    if size < len(fixed):
        raise UserError(f"vocab_size is {size}: must be at least {len(fixed)}, the special tokens and characters")
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=fixed, show_progress=False)
    known = set(characters)
    spelt = sorted(word for word in words if known.issuperset(word))
    tokenizer.train_from_iterator((f"{word} " * words[word] for word in spelt), trainer)
    vocab = tokenizer.get_vocab()
    if vocab_size is not None and len(vocab) != vocab_size:
        raise UserError(f"vocab_size is {vocab_size}: the documents of {spec} give at most {len(vocab)} pieces")
    return sorted(vocab, key=vocab.__getitem__)


def _alphabet(words: Counter[str]) -> list[str]:
    """Return the letters a to z and the most frequent characters, sorted, MOST_ALPHABET at most.

    words: word -> count. If two are equally frequent, the lower code point comes first.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        counts.update(dict.fromkeys(word, count))
    letters, others = set(string.ascii_lowercase), sorted(counts.keys() - set(string.ascii_lowercase))
    others.sort(key=lambda character: -counts[character])
    return sorted(letters | set(others[: MOST_ALPHABET - len(letters)]))


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(path.name + ".part")
    with writing(path):
        temporary.write_bytes(content.encode())
        temporary.replace(path)
