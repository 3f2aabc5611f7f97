"""Turn documents into memory-mappable token files, split into training and held-out documents.

A document with a paragraph of SQuAD's development set, or with a long sentence of one, is dropped.
The others are tokenized sentence by sentence. Each split, `train` and `heldout`, has three files:

    <split>.tokens.npy      (tokens,) uint16, or uint32 for a vocabulary of more than 65,536
    <split>.sentences.npy   (sentences + 1,) int64: where each sentence starts in tokens
    <split>.documents.npy   (documents + 1,) int64: where each document starts in sentences

Documents are tokenized in batches. The cache keeps each batch under the hash of its documents and
of everything else that the result depends on. So a preparation that was killed continues where it
was, and a batch that was tokenized before is read from the cache.
"""

import contextlib
import hashlib
import os
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.lib import format as npy
from tokenizers import Tokenizer

from mobilebert.data import encoding
from mobilebert.data.decontamination import Paragraphs
from mobilebert.data.reading import writing
from mobilebert.data.sentences import sentences
from mobilebert.data.source import Source
from mobilebert.study.code_hash import syntax_hash
from mobilebert.util.errors import UserError

SPLITS = ("train", "heldout")
# The cache's names depend on the code of these modules.
MAKERS = tuple(f"mobilebert.data.{name}" for name in ("corpus", "encoding", "sentences", "decontamination"))
# A batch of documents ends at this size, some 250,000 tokens: it bounds memory and keeps workers
# busy.
BATCH_CHARACTERS = 1_000_000


def prepare_corpus(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    heldout_share: float,
    squad_dev_paragraphs: Iterable[str],
    seed: int = 0,
    workers: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int | float]:
    """Write the token files of both splits to `out`; return the counts named below.

    heldout_share: share of the documents. A document's split depends only on the hash of its text,
        not on the rest of the corpus.
    squad_dev_paragraphs: a document that contains one, or a long sentence of one, is dropped, see
        Paragraphs.
    seed: chooses which documents are held out, see is_heldout.
    workers: number of processes; the files do not depend on it.
    cache: folder of tokenized batches, shared by any corpora, tokenizers and values of
        `heldout_share`. It can be deleted at any time.
    progress: called with documents and tokens so far.

    Keys: documents_read, documents_empty, documents_dropped, documents_train, documents_heldout,
    sentences_train, sentences_heldout, tokens_train, tokens_heldout, and unigram_entropy: nats per
    held-out token under the train split's frequencies (add-one smoothed). A masked language model
    reaches that value without looking at context.

    Raises UserError for a split with fewer than two documents (a random next segment comes from
    another document), a share outside (0, 1), less than one worker or a full disk. The finished
    batches stay in `cache`.
    """
    if not 0 < heldout_share < 1:
        raise UserError(f"heldout_share is {heldout_share}: must lie between 0 and 1")
    if workers < 1:
        raise UserError(f"workers is {workers}: must be at least 1")
    out.mkdir(parents=True, exist_ok=True)
    size = tokenizer.get_vocab_size()
    encoder = _Encoder(tokenizer, Paragraphs(squad_dev_paragraphs), cache)
    writers = {split: _Writer(out, split, size) for split in SPLITS}
    counts: dict[str, int] = dict.fromkeys(("documents_read", "documents_empty", "documents_dropped"), 0)
    try:
        for batch in _ordered_map(encoder, _batches(source.documents()), workers):
            for name, number in zip(counts, batch.counts):
                counts[name] += int(number)
            for split, part in batch.split(heldout_share, seed).items():
                writers[split].append(*part)
            if progress:
                progress(counts["documents_read"], sum(writer.tokens.length for writer in writers.values()))
        for split, writer in writers.items():
            if writer.documents.length < 2:
                raise UserError(
                    f"corpus of {source.spec}: {counts['documents_read']} documents read, {writer.documents.length} for"
                    f" {split}; train and heldout need at least 2 each (heldout_share is {heldout_share})"
                )
        for writer in writers.values():
            writer.finish()
        for writer in writers.values():
            writer.commit()
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; run the same command again to continue from here"
        ) from error
    finally:
        for writer in writers.values():
            writer.discard()
    for kind in ("documents", "sentences", "tokens"):
        for split, writer in writers.items():
            counts[f"{kind}_{split}"] = getattr(writer, kind).length
    return {**counts, "unigram_entropy": unigram_entropy(writers["train"].frequencies, writers["heldout"].frequencies)}


def unigram_entropy(train: np.ndarray, heldout: np.ndarray) -> float:
    """Return the cross-entropy in nats of held-out tokens under add-one smoothed train frequencies.

    train, heldout: (vocabulary,) counts.
    """
    log_probabilities = np.log((train + 1) / (train.sum() + len(train)))
    return float(-(heldout * log_probabilities).sum() / heldout.sum())


def is_heldout(document: str, share: float, seed: int = 0) -> bool:
    """Return whether a document is held out: its number, divided by 2^64, is below `share`.

    With seed 0 the number is the first 64 bits of the text's sha256. With another seed it is hashed
    once more, so that the same share of other documents is held out.
    """
    return _draw(_number(hashlib.sha256(document.encode()).digest()), seed) < share * 2**64


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _draw(number: int, seed: int) -> int:
    return _number(hashlib.sha256(f"{seed} {number}".encode()).digest()) if seed else number


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


class _Batch(NamedTuple):
    """A batch of tokenized documents, without those that are empty or dropped."""

    counts: np.ndarray  # documents read, empty, dropped
    tokens: np.ndarray  # (tokens,) uint16 or uint32
    sentence_lengths: np.ndarray  # (sentences,) in tokens
    document_lengths: np.ndarray  # (documents,) in sentences
    hashes: np.ndarray  # (documents,) uint64, the number of is_heldout for seed 0

    def split(self, heldout_share: float, seed: int) -> dict[str, tuple[np.ndarray, ...]]:
        """Return tokens, sentence lengths and document lengths of each split."""
        heldout = np.array([_draw(number, seed) < heldout_share * 2**64 for number in self.hashes.tolist()], bool)
        parts: dict[str, tuple[np.ndarray, ...]] = {}
        for split, documents in zip(SPLITS, (~heldout, heldout)):
            sentences = np.repeat(documents, self.document_lengths)
            tokens = np.repeat(sentences, self.sentence_lengths)
            parts[split] = self.tokens[tokens], self.sentence_lengths[sentences], self.document_lengths[documents]
        return parts


class _Encoder:
    """A function that tokenizes a batch of documents in a worker process, with the cache."""

    def __init__(self, tokenizer: Tokenizer, dropped: Paragraphs, cache: Path | None) -> None:
        self.tokenizer, self.dropped, self.cache = tokenizer, dropped, cache
        self.encode = encoding.SentenceEncoder(tokenizer)
        self.dtype = token_type(tokenizer.get_vocab_size())
        rules = [tokenizer.to_str(), tokenizers.__version__, repr(sorted(dropped.texts))]
        rules.append(syntax_hash(*MAKERS))
        self.rules = hashlib.sha256("\0".join(rules).encode()).digest()

    def __reduce__(self):
        return _Encoder, (self.tokenizer, self.dropped, self.cache)  # do not send the words seen so far

    def __call__(self, documents: list[str]) -> _Batch:
        # One thread a process, so that `workers` is the number of cores used.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        digests = [hashlib.sha256(document.encode()).digest() for document in documents]
        if self.cache is None:
            return self._tokenize(documents, digests)
        path = self.cache / f"{hashlib.sha256(self.rules + b''.join(digests)).hexdigest()}.npz"
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as file:
            return _Batch(*(file[name] for name in _Batch._fields))  # every array has a checksum in the file
        batch = self._tokenize(documents, digests)
        _save(path, batch)
        return batch

    def _tokenize(self, documents: list[str], digests: list[bytes]) -> _Batch:
        dropped = [self.dropped.in_document(document) for document in documents]
        texts = [[] if drop else list(sentences(document)) for document, drop in zip(documents, dropped)]
        tokens, lengths = self.encode([sentence for text in texts for sentence in text])
        # Count only sentences that have a token, and keep only documents that have such a sentence.
        ends = np.concatenate([[0], np.cumsum(lengths > 0)])
        document_lengths = np.diff(ends[np.cumsum([0, *map(len, texts)])])
        kept = document_lengths > 0
        hashes = np.array([_number(digest) for digest in digests], np.uint64)
        counts = np.array([len(documents), len(documents) - sum(dropped) - kept.sum(), sum(dropped)])
        return _Batch(counts, tokens.astype(self.dtype), lengths[lengths > 0], document_lengths[kept], hashes[kept])


def token_type(vocab_size: int) -> type:
    """Return the NumPy type of a token file."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _save(path: Path, batch: _Batch) -> None:
    """Write a file of the cache; several processes may write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        with writing(path), temporary.open("wb") as file:
            np.savez(file, **batch._asdict())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _ordered_map(encoder: _Encoder, batches: Iterator[list[str]], workers: int) -> Iterator[_Batch]:
    """Yield encoder(batch) of every batch, in order; at most two batches a worker are in memory."""
    first = list(islice(batches, 2))
    batches = chain(first, batches)
    if workers == 1 or len(first) < 2:
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


_worker: _Encoder | None = None  # set once in each process, so that the tokenizer is not sent with every batch


def _start_worker(encoder: _Encoder) -> None:
    global _worker
    _worker = encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent ends: if it was killed, the worker would wait for a batch for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(batch: list[str]) -> _Batch:
    assert _worker is not None
    return _worker(batch)


class _Array:
    """A one-dimensional .npy file that grows under a temporary name.

    `commit` gives it its name; `discard` removes it if it was not committed.
    """

    def __init__(self, path: Path, dtype: type) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        self.temporary = path.with_name(path.name + ".part")
        self.file = self.temporary.open("wb")
        self._header()

    def _header(self) -> None:
        # NumPy pads the header so that the length can be overwritten in place by any 64-bit number
        # (GROWTH_AXIS_MAX_DIGITS).
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        with writing(self.path):
            self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def finish(self) -> None:
        with writing(self.path):
            self.file.seek(0)
            self._header()
            self.file.flush()
            os.fsync(self.file.fileno())

    def commit(self) -> None:
        with writing(self.path):
            self.file.close()
            self.temporary.replace(self.path)

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self.file.close()
        self.temporary.unlink(missing_ok=True)


class _Writer:
    """The writer of a split: its three arrays and the frequency of every token."""

    def __init__(self, out: Path, split: str, vocab_size: int) -> None:
        self.frequencies = np.zeros(vocab_size, np.int64)
        self.tokens = _Array(out / f"{split}.tokens.npy", token_type(vocab_size))
        self.sentences = _Array(out / f"{split}.sentences.npy", np.int64)
        self.documents = _Array(out / f"{split}.documents.npy", np.int64)
        self.arrays = (self.tokens, self.sentences, self.documents)

    def append(self, tokens: np.ndarray, sentence_lengths: np.ndarray, document_lengths: np.ndarray) -> None:
        self.sentences.append(self.tokens.length + np.cumsum(sentence_lengths) - sentence_lengths)
        self.documents.append(self.sentences.length - len(sentence_lengths) + np.cumsum(document_lengths) - document_lengths)
        self.tokens.append(tokens)
        self.frequencies += np.bincount(tokens, minlength=len(self.frequencies))

    def finish(self) -> None:
        for array, end in ((self.sentences, self.tokens.length), (self.documents, self.sentences.length)):
            array.append(np.array([end]))
        for array in self.arrays:
            array.finish()
        # N sentences or documents have N + 1 offsets.
        self.sentences.length -= 1
        self.documents.length -= 1

    def commit(self) -> None:
        for array in self.arrays:
            array.commit()

    def discard(self) -> None:
        for array in self.arrays:
            array.discard()
