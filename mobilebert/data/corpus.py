"""Documents to token files: held-out split, no SQuAD development paragraph, sentences, WordPiece ids, memory-mappable.

Per split, `train` and `heldout`:

    <split>.tokens.npy      (tokens,) uint16, or uint32 for a vocabulary of more than 65,536
    <split>.sentences.npy   (sentences + 1,) int64: where each sentence starts in tokens
    <split>.documents.npy   (documents + 1,) int64: where each document starts in sentences
"""

import hashlib
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from tokenizers import Tokenizer

from mobilebert.data.sources import Source
from mobilebert.errors import UserError

SPLITS = ("train", "heldout")
# A batch of documents is closed at this many characters, some 250,000 tokens: bounds memory, keeps workers busy.
BATCH_CHARACTERS = 1_000_000
# As many words in a row are not shared by chance; the length that is customary for finding test data in training data.
LONG_SENTENCE = 13
_WORD = re.compile(r"\w+")
# A full stop ends a sentence unless one capital letter stands before it ("J. Smith"); a closing quote or bracket
# belongs to the sentence that it closes.
_SENTENCE_END = re.compile(r"""(?:(?<![ .][A-Z])\.|[!?])["'”’)\]]*(?=\s)""")


def prepare_corpus(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    heldout_share: float,
    squad_dev_paragraphs: Iterable[str],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int | float]:
    """Write the token files of both splits to `out`; return what was counted.

    heldout_share: of the documents, by the hash of their text, so that a document is on the same side whatever else
        the corpus holds.
    squad_dev_paragraphs: a document that contains one is dropped, see Paragraphs.
    workers: processes; the files do not depend on it.
    progress: called with documents and tokens so far.

    Keys: documents_read, documents_empty, documents_dropped, documents_train, documents_heldout, sentences_train,
    sentences_heldout, tokens_train, tokens_heldout, and unigram_entropy: nats per held-out token under the train
    split's frequencies (add-one smoothed), what a masked language model reaches without looking at context.

    Raises UserError for no document at all, fewer than two documents in a split (a random next segment comes from
    another document), a share outside (0, 1).
    """
    if not 0 < heldout_share < 1:
        raise UserError(f"heldout_share is {heldout_share}: must lie between 0 and 1")
    if workers < 1:
        raise UserError(f"workers is {workers}: must be at least 1")
    out.mkdir(parents=True, exist_ok=True)
    size = tokenizer.get_vocab_size()
    paragraphs = Paragraphs(squad_dev_paragraphs)
    encoder = _Encoder(tokenizer, paragraphs, heldout_share)
    writers = {split: _Writer(out, split, size) for split in SPLITS}
    counts = dict.fromkeys(("documents_read", "documents_empty", "documents_dropped"), 0)
    try:
        for batch in _ordered_map(encoder, _batches(source.documents()), workers):
            for name, number in batch.counts.items():
                counts[name] += number
            for split, writer in writers.items():
                writer.append(*batch.arrays(split))
            if progress:
                progress(counts["documents_read"], sum(writer.tokens.length for writer in writers.values()))
        for split, writer in writers.items():
            if writer.documents.length < 2:
                raise UserError(
                    f"corpus of {source.spec}: {counts['documents_read']} documents read, {writer.documents.length} for"
                    f" {split}; train and heldout need at least 2 each (heldout_share is {heldout_share})"
                )
        for writer in writers.values():
            writer.commit()
    finally:
        for writer in writers.values():
            writer.discard()
    for kind in ("documents", "sentences", "tokens"):
        for split, writer in writers.items():
            counts[f"{kind}_{split}"] = getattr(writer, kind).length
    return {**counts, "unigram_entropy": unigram_entropy(writers["train"].frequencies, writers["heldout"].frequencies)}


def unigram_entropy(train: np.ndarray, heldout: np.ndarray) -> float:
    """Cross-entropy in nats of held-out tokens under add-one smoothed train frequencies; both (vocabulary,) counts."""
    log_probabilities = np.log((train + 1) / (train.sum() + len(train)))
    return float(-(heldout * log_probabilities).sum() / heldout.sum())


def sentences(document: str) -> Iterator[str]:
    """The sentences of a document; a line break always ends one."""
    for paragraph in document.splitlines():
        start = 0
        for match in _SENTENCE_END.finditer(paragraph):
            yield paragraph[start : match.end()].strip()
            start = match.end()
        if rest := paragraph[start:].strip():
            yield rest


def is_heldout(document: str, share: float) -> bool:
    """Whether the first 64 bits of the text's sha256, as a fraction of 2^64, lie below `share`."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") < share * 2**64


class Paragraphs:
    """Texts to be found inside documents, whatever their case, white space and punctuation, in about one pass.

    Found is a document that contains a whole paragraph or one of its sentences of LONG_SENTENCE words or more: copies
    of an article differ by edits, and then the sentences between the edits still match.

    Only the few texts whose two longest words a document has are searched for; none is missed by that.
    """

    def __init__(self, paragraphs: Iterable[str]) -> None:
        self.by_word: dict[str, list[tuple[str, str]]] = defaultdict(list)
        texts = set()
        for paragraph in paragraphs:
            texts.add(tuple(_words(paragraph)))
            texts.update(tuple(words) for words in map(_words, sentences(paragraph)) if len(words) >= LONG_SENTENCE)
        for words in sorted(texts - {()}):
            longest = sorted(words, key=len)[-2:]
            self.by_word[longest[-1]].append((longest[0], f" {' '.join(words)} "))

    def in_document(self, document: str) -> bool:
        words = _words(document)
        distinct = set(words)
        found = self.by_word.keys() & distinct
        texts = [text for word in found for second, text in self.by_word[word] if second in distinct]
        if not texts:
            return False
        joined = f" {' '.join(words)} "
        return any(text in joined for text in texts)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Batch:
    """One batch's counts and, per split, its token ids and the lengths of its sentences and documents."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("documents_read", "documents_empty", "documents_dropped"), 0)
        self.tokens: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self.sentence_lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
        self.document_lengths: dict[str, list[int]] = {split: [] for split in SPLITS}

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = np.concatenate([np.zeros(0, np.uint32), *self.tokens[split]])
        return (
            tokens,
            np.array(self.sentence_lengths[split], np.int64),
            np.array(self.document_lengths[split], np.int64),
        )


class _Encoder:
    """What a worker does to a batch of documents."""

    def __init__(self, tokenizer: Tokenizer, paragraphs: Paragraphs, heldout_share: float) -> None:
        self.tokenizer, self.paragraphs, self.heldout_share = tokenizer, paragraphs, heldout_share

    def __call__(self, documents: list[str]) -> _Batch:
        # One process, one thread: what `workers` says is what is used.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        batch = _Batch()
        for document in documents:
            batch.counts["documents_read"] += 1
            if self.paragraphs.in_document(document):
                batch.counts["documents_dropped"] += 1
                continue
            encodings = self.tokenizer.encode_batch_fast(list(sentences(document)), add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings if len(encoding)]
            if not ids:
                batch.counts["documents_empty"] += 1
                continue
            split = SPLITS[is_heldout(document, self.heldout_share)]
            lengths = [len(sentence) for sentence in ids]
            batch.tokens[split].append(np.fromiter(chain.from_iterable(ids), np.uint32, sum(lengths)))
            batch.sentence_lengths[split] += lengths
            batch.document_lengths[split].append(len(lengths))
        return batch


def _ordered_map(encoder: _Encoder, batches: Iterator[list[str]], workers: int) -> Iterator[_Batch]:
    """encoder(batch) for every batch, in order; at most two batches a worker are in memory."""
    if workers == 1:
        yield from map(encoder, batches)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encoder,)) as pool:
        pending = deque()
        for batch in batches:
            pending.append(pool.submit(_encode, batch))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


_worker: _Encoder | None = None  # set once in each process, so that the tokenizer does not travel with every batch


def _start_worker(encoder: _Encoder) -> None:
    global _worker
    _worker = encoder


def _encode(batch: list[str]) -> _Batch:
    return _worker(batch)


class _Array:
    """A one-dimensional .npy file that grows; `commit` gives it its name, `discard` removes what was not committed."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        self.temporary = path.with_name(path.name + ".part")
        self.file = self.temporary.open("wb")
        self._header()

    def _header(self) -> None:
        # NumPy pads a header so that the length can grow in place to any 64-bit number (GROWTH_AXIS_MAX_DIGITS).
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        values.astype(self.dtype).tofile(self.file)
        self.length += len(values)

    def commit(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.temporary.replace(self.path)

    def discard(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


class _Writer:
    """The three arrays of a split and the frequency of every token."""

    def __init__(self, out: Path, split: str, vocab_size: int) -> None:
        self.frequencies = np.zeros(vocab_size, np.int64)
        self.tokens = _Array(out / f"{split}.tokens.npy", np.uint16 if vocab_size <= 2**16 else np.uint32)
        self.sentences = _Array(out / f"{split}.sentences.npy", np.int64)
        self.documents = _Array(out / f"{split}.documents.npy", np.int64)

    def append(self, tokens: np.ndarray, sentence_lengths: np.ndarray, document_lengths: np.ndarray) -> None:
        self.sentences.append(self.tokens.length + np.cumsum(sentence_lengths) - sentence_lengths)
        self.documents.append(self.sentences.length - len(sentence_lengths) + np.cumsum(document_lengths) - document_lengths)
        self.tokens.append(tokens)
        self.frequencies += np.bincount(tokens, minlength=len(self.frequencies))

    def commit(self) -> None:
        ends = (self.sentences, self.tokens.length), (self.documents, self.sentences.length)
        for array, end in ends:
            array.append(np.array([end]))
        for array in (self.tokens, self.sentences, self.documents):
            array.commit()
        # What follows counts sentences and documents, not the offsets that bound them.
        self.sentences.length -= 1
        self.documents.length -= 1

    def discard(self) -> None:
        for array in (self.tokens, self.sentences, self.documents):
            array.discard()
