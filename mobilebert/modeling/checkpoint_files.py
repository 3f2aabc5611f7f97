"""Check the files of a checkpoint before a library builds a model from them.

A checkpoint is untrusted data. Nothing in it may run code, name a file outside its folder, or make
a model larger than its weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mobilebert.modeling.checkpoint_config import CONFIG, INDEX, PICKLE, WEIGHTS, check_values, read_config, read_json
from mobilebert.modeling.weight_files import (
    Tensor,
    check_counts,
    convert_pickle,
    float_types,
    read_tensors,
    shard_names,
    unwrap,
    weight_files,
)
from mobilebert.util.errors import UserError

ADAPTER = "adapter_config.json"

TOKENIZER = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Files:
    """A folder that holds only the checked configuration, weights and tokenizer of a checkpoint.

    source: the checkpoint's folder or hub name, for messages.
    notes: what was changed, a line each.
    """

    source: str
    folder: Path
    values: dict  # of config.json
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)

    @property
    def type(self) -> str:
        """Return the types of the float weights, with commas if several: "float16"."""
        return float_types(self.tensors)


@contextlib.contextmanager
def checked(source: str | os.PathLike, revision: str = "main") -> Iterator[Files]:
    """Yield the checked files of a folder or hub name, as links in a temporary folder.

    No other file of the checkpoint is opened. Weights that were saved through a wrapper
    (DataParallel, torch.compile) get their real names, with a note. A hub's pytorch_model.bin is
    converted to safetensors. Raises UserError, one line, for all that this module refuses.
    """
    source = str(source)
    with tempfile.TemporaryDirectory(prefix="mobilebert-") as temporary:
        folder, origin = Path(temporary), Path(source).expanduser()
        files = _local(origin, source) if origin.is_dir() else _of_hub(source, revision)
        values = _link(files, folder, source)
        notes = []
        if PICKLE in files:
            convert_pickle(files[PICKLE], folder / WEIGHTS, source)
        weights = weight_files(folder, source)
        tensors = read_tensors(weights, source)
        if note := unwrap(weights, tensors, folder, source):
            notes.append(note)
            tensors = read_tensors([folder / WEIGHTS], source)
        check_counts(values, tensors, source)
        yield Files(source, folder, values, tensors, notes)


@contextlib.contextmanager
def beside(origin: Path) -> Iterator[Path]:
    """Yield a temporary folder of links to a local folder's checked configuration and tokenizer.

    Files that are missing are left out.
    """
    with tempfile.TemporaryDirectory(prefix="mobilebert-") as temporary:
        _link({name: origin / name for name in (CONFIG, *TOKENIZER) if (origin / name).is_file()}, Path(temporary), str(origin))
        yield Path(temporary)


def _link(files: Mapping[str, Path], folder: Path, source: str) -> dict:
    """Link the files into `folder` and return the values of config.json.

    config.json is not linked but copied, without the type of the weights.
    """
    values = {}
    if CONFIG in files:
        values = read_config(files[CONFIG], source)
        values = {key: value for key, value in values.items() if key not in ("dtype", "torch_dtype")}
        (folder / CONFIG).write_text(json.dumps(values), encoding="utf-8")
    if "tokenizer_config.json" in files:
        check_values(read_json(files["tokenizer_config.json"], source), "tokenizer_config.json", source)
    for name, path in files.items():
        if name not in (CONFIG, PICKLE):
            (folder / name).symlink_to(path.resolve())
    return values


def _local(origin: Path, source: str) -> dict[str, Path]:
    """Return the files of a local folder by name."""
    refuse_adapter(origin, source)
    found = {name: origin / name for name in (CONFIG, *TOKENIZER) if (origin / name).is_file()}
    if CONFIG not in found:
        raise UserError(f"{source}: no {CONFIG}: not a checkpoint")
    read_config(found[CONFIG], source)  # first, because its errors say more than those of the weights
    weights = weight_files(origin, source)
    if weights != [origin / WEIGHTS]:
        found[INDEX] = origin / INDEX
    return found | {path.name: path for path in weights}


def refuse_adapter(folder: Path, source: str) -> None:
    """Raise UserError for a PEFT adapter, which makes transformers load another checkpoint."""
    if (folder / ADAPTER).exists():
        raise UserError(f"{source}: {ADAPTER}: an adapter of another checkpoint; merge it into its model and save that")


def _of_hub(source: str, revision: str) -> dict[str, Path]:
    """Return the files of a hub name, by file name, downloaded or from the cache."""
    from transformers.utils import cached_file

    def fetch(name: str) -> Path | None:
        try:
            return Path(cached_file(source, name, revision=revision))  # pyrefly: ignore[bad-argument-type]  (it raises)
        except (OSError, ValueError):  # missing
            return None

    def must(name: str) -> Path:
        try:
            return Path(cached_file(source, name, revision=revision))  # pyrefly: ignore[bad-argument-type]  (it raises)
        except (OSError, ValueError) as error:  # the first of its lines says what is wrong
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{source}: no checkpoint that can be loaded ({line}); a local folder works offline") from None

    found = {CONFIG: must(CONFIG)}
    if path := fetch(ADAPTER):
        refuse_adapter(path.parent, source)
    read_config(found[CONFIG], source)  # before gigabytes of weights are downloaded
    found |= {name: path for name in TOKENIZER if (path := fetch(name))}
    for name in (WEIGHTS, INDEX, PICKLE):
        if path := fetch(name):
            shards = shard_names(path, source) if name == INDEX else []
            return found | {name: path} | {shard: must(shard) for shard in shards}
    raise UserError(f"{source}: has no weights, neither {WEIGHTS} nor {PICKLE}")
