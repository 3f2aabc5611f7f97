"""Read documents and tables from `synthetic`, `local:<folder>` or `hub` through one interface.

The tables of every source have the columns and split names of the Hugging Face datasets
nyu-mll/glue and rajpurkar/squad(_v2). A sample is never reported as the whole split: `label` says
which rows a result is based on.
"""

import hashlib
import heapq
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from mobilebert.data import tables
from mobilebert.data.documents import SUFFIXES, read_documents
from mobilebert.data.reading import reading
from mobilebert.data.source import Source, check_task
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError, one_line

OFFLINE_CHOICES = "local:<folder> and synthetic work offline"


class LocalSource(Source):
    """A source that reads a local folder, each file of which is hashed before it is first read.

    The folder holds corpus/* (see `mobilebert.data.documents`), the tables as
    glue/<task>/<split>.parquet and squad/<version>/<split>.parquet or as the benchmarks' original
    files (see `mobilebert.data.raw`), vocab.txt, and SHA256SUMS with the hash of every file.
    """

    def __init__(self, folder: Path, documents: int | None = None) -> None:
        self.spec = f"local:{folder}"
        self.folder = folder
        self.limit = documents
        if not folder.is_dir():
            raise UserError(f"data source local:{folder}: no such folder")
        sums = folder / "SHA256SUMS"
        if not sums.is_file():
            raise UserError(f"{sums}: missing; write the hashes of the folder's files into it with `sha256sum`")
        self.pinned = tables.sums(sums)
        self._checked: set[str] = set()
        self._read: dict[Path, float] = {}
        self._rows: dict[str, int] = {}

    def _path(self, name: str) -> Path:
        """Return the path of a file, whose hash is checked once.

        Raises UserError if the file is missing, not listed or has another hash.
        """
        path = self.folder / name
        if name in self._checked:
            return path
        if not path.is_file():
            raise UserError(f"{path}: missing")
        if name not in self.pinned:
            raise UserError(f"{path}: not listed in {self.folder / 'SHA256SUMS'}")
        with reading(path), path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.pinned[name]:
            raise UserError(f"{path}: sha256 is {found}, SHA256SUMS says {self.pinned[name]}")
        self._checked.add(name)
        return path

    def _corpus(self) -> list[str]:
        there = {f"corpus/{path.name}" for path in (self.folder / "corpus").glob("*")} | set(self.pinned)
        names = sorted(n for n in there if n.startswith("corpus/") and n.endswith(SUFFIXES))
        if not names:
            raise UserError(f"{self.folder / 'corpus'}: no file *{', *'.join(SUFFIXES)}")
        return names

    def _table(self, task: str, split: str) -> str:
        if split not in self.splits(task):
            raise UserError(f"{self.folder / TASKS[task].folder}: no split {split}; there: {', '.join(self.splits(task))}")
        return next(name for name in tables.names(TASKS[task], split) if name in self.pinned)

    def documents(self) -> Iterator[str]:
        paths = [self._path(name) for name in self._corpus()]
        self._read = dict.fromkeys(paths, 0.0)
        return islice(interleave([(self._documents(path), 1.0) for path in paths]), self.limit)

    def _documents(self, path: Path) -> Iterator[str]:
        for document, share in read_documents(path):
            self._read[path] = share
            yield document

    def share_read(self, documents: int) -> float:
        sizes = {path: path.stat().st_size for path in self._read}
        read = sum(size * self._read[path] for path, size in sizes.items()) / max(1, sum(sizes.values()))
        return max(read, super().share_read(documents) or 0.0)

    def table(self, task: str, split: str) -> pd.DataFrame:
        name = self._table(task, split)
        path, known = self._path(name), TASKS[task]
        frame = tables.checked(tables.read(path, known), known, _role(task, split), str(path))
        self._rows[name] = len(frame)
        return frame

    def rows(self, task: str, split: str) -> int:
        name = self._table(task, split)
        if name not in self._rows:
            self.table(task, split)
        return self._rows[name]

    def splits(self, task: str) -> list[str]:
        known = TASKS[check_task(task)]
        return [split for split in known.splits.values() if not self.pinned.keys().isdisjoint(tables.names(known, split))]

    def vocab(self) -> Path:
        return self._path("vocab.txt")

    def files(self, name: str) -> dict[str, str]:
        names = self._corpus() if name == "corpus" else [self._table(name, split) for split in self.splits(name)]
        for path in names:
            self._path(path)
        return {path: self.pinned[path] for path in names}


class HubSource(Source):
    """A source that reads the Hugging Face hub through `datasets`.

    It gives English Wikipedia, books, GLUE, SQuAD and MobileBERT's vocabulary. The paper's
    BookCorpus is no longer distributed, and datasets>=4 refuses its hub copy, a loading script;
    manu/project_gutenberg (English split, a whole book a row) replaces it.
    """

    WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en", "train")
    BOOKS = ("manu/project_gutenberg", None, "en")
    # Millions of words that BERT read of Wikipedia and of books (Devlin et al. 2019, section 3.1).
    WORDS = (2500.0, 800.0)
    MODEL = "google/mobilebert-uncased"

    def __init__(self, documents: int | None = None) -> None:
        self.spec = "hub"
        self.limit = documents
        self._tables: dict[tuple[str, str], pd.DataFrame] = {}

    def documents(self) -> Iterator[str]:
        streams = [self._load(*corpus, streaming=True) for corpus in (self.WIKIPEDIA, self.BOOKS)]
        texts = [((row["text"] for row in stream), words) for stream, words in zip(streams, self.WORDS)]
        return islice(interleave(texts), self.limit)

    def table(self, task: str, split: str) -> pd.DataFrame:
        if split not in self.splits(task):
            raise UserError(f"hub: {task} has no split {split}; there: {', '.join(self.splits(task))}")
        if (task, split) not in self._tables:
            frame = self._load(*_hub_name(task), split).to_pandas()
            self._tables[task, split] = tables.checked(frame, TASKS[task], _role(task, split), f"hub: {task}/{split}")
        return self._tables[task, split]

    def splits(self, task: str) -> list[str]:
        return list(TASKS[check_task(task)].splits.values())

    def vocab(self) -> Path:
        offline_unless_reachable()
        import huggingface_hub

        try:
            return Path(huggingface_hub.hf_hub_download(self.MODEL, "vocab.txt"))
        except Exception as error:
            raise _unreachable(f"{self.MODEL}/vocab.txt", error) from error

    def files(self, name: str) -> dict[str, str]:
        """Return name -> sha256; for tables, of their rows as JSON lines.

        The corpus is streamed, so its hash is unknown before it is read: only the names of the two
        data sets are hashed.
        """
        if name == "corpus":
            names = ["/".join(filter(None, corpus)) for corpus in (self.WIKIPEDIA, self.BOOKS)]
            return {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
        hashes = {}
        for split in self.splits(name):
            rows = self.table(name, split).to_json(orient="records", lines=True)
            assert rows is not None
            hashes["/".join(filter(None, (*_hub_name(name), split)))] = hashlib.sha256(rows.encode()).hexdigest()
        return hashes

    @staticmethod
    def _load(repository: str, configuration: str | None, split: str, **options):
        offline_unless_reachable()
        import datasets

        # Catch everything: the hub's libraries raise a dozen unrelated types for "not reachable".
        try:
            return datasets.load_dataset(repository, configuration, split=split, **options)
        except Exception as error:
            raise _unreachable("/".join(filter(None, (repository, configuration, split))), error) from error


def open_source(spec: str, *, seed: int = 0, documents: int | None = None) -> Source:
    """Return the source that `spec` names: `synthetic` (uses `seed`), `local:<folder>` or `hub`.

    documents: most documents of the corpus that are read. Raises UserError for another `spec`, for
    `documents` below 1 and for a folder that is missing or has no SHA256SUMS.
    """
    kind, _, rest = spec.partition(":")
    if documents is not None and documents < 1:
        raise UserError(f"data source {spec}: documents is {documents}, must be at least 1")
    if spec == "synthetic":
        from mobilebert.data.synthetic import SyntheticSource

        return SyntheticSource(seed, documents)
    if kind == "local" and rest:
        return LocalSource(Path(rest).expanduser(), documents)
    if spec == "hub":
        return HubSource(documents)
    raise UserError(f"data source {spec!r}: must be synthetic, local:<folder> or hub")


def interleave(streams: Sequence[tuple[Iterable[str], float]]) -> Iterator[str]:
    """Yield the documents of several (stream, weight) so that characters are taken by weight.

    Any prefix of the result is then a fair sample of the whole: if one stream has articles and
    another books 100 times as long, the first thousand documents contain both. The order is
    deterministic.
    """
    iterators = [iter(stream) for stream, _ in streams]
    heap = [(0.0, index) for index in range(len(streams))]
    while heap:
        taken, index = heap[0]
        document = next(iterators[index], None)
        if document is None:
            heapq.heappop(heap)
            continue
        heapq.heapreplace(heap, (taken + len(document) / streams[index][1], index))
        yield document


def _hub_name(task: str) -> tuple[str, str | None]:
    squad = {"squad_v1.1": "rajpurkar/squad", "squad_v2.0": "rajpurkar/squad_v2"}
    return (squad[task], None) if task in squad else ("nyu-mll/glue", task)


def _role(task: str, split: str) -> str:
    return next(role for role, stem in TASKS[task].splits.items() if stem == split)


def _unreachable(name: str, error: Exception) -> UserError:
    return UserError(f"hub: {name} could not be reached ({one_line(error)}); {OFFLINE_CHOICES}")


def offline_unless_reachable() -> None:
    """Set HF_HUB_OFFLINE=1 if the hub does not answer within five seconds.

    Otherwise the hub's libraries retry for half a minute and more; their cache works offline too.
    Call this before the first import of huggingface_hub, which reads the variable.
    """
    if "HF_HUB_OFFLINE" in os.environ:
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # an error status is an answer too: the hub is reachable
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"
