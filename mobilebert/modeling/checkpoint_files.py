"""Check the files of a checkpoint before a library builds a model from them.

A checkpoint is untrusted data. Nothing in it may run code, name a file outside its folder, or make
a model larger than its weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mobilebert.util.errors import UserError

CONFIG, WEIGHTS, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
ADAPTER = "adapter_config.json"
TOKENIZER = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MOST_CLASSES = 100_000  # transformers names each of them
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' name -> type; no others load

_CODE = "names Python code of its own, and mobilebert runs no code of a checkpoint"
REFUSED_KEYS = {
    "auto_map": _CODE,
    "custom_pipelines": _CODE,
    "configuration_files": "names other configuration files; only config.json is read",
    "transformers_weights": f"names another file of weights; only {WEIGHTS} is read",
    "quantization_config": "a quantized checkpoint; only weights of a float type can be loaded",
    "compression_config": "a compressed checkpoint; only weights of a float type can be loaded",
}
# Keys that select an implementation; any value except eager and sdpa is a program from the hub.
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# Prefixes that DataParallel, torch.compile and fully sharded training add to weights' names.
_LEADING = re.compile(r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)+")
_INNER = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_COUNT = re.compile(r"(?:layers?|groups|networks|blocks|experts)$")


class Tensor(NamedTuple):
    """One entry of a safetensors header."""

    type: str  # F32, I8, ...
    shape: tuple[int, ...]


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
            _from_pickle(files[PICKLE], folder / WEIGHTS, source)
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
    from transformers.utils import cached_file  # pyright: ignore[reportPrivateImportUsage]  (documented, not in __all__)

    def fetch(name: str) -> Path | None:
        try:
            return Path(cached_file(source, name, revision=revision))  # pyright: ignore[reportArgumentType]  (it raises)
        except (OSError, ValueError):  # missing
            return None

    def must(name: str) -> Path:
        try:
            return Path(cached_file(source, name, revision=revision))  # pyright: ignore[reportArgumentType]  (it raises)
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
            shards = _shards(path, source) if name == INDEX else []
            return found | {name: path} | {shard: must(shard) for shard in shards}
    raise UserError(f"{source}: has no weights, neither {WEIGHTS} nor {PICKLE}")


# ---- configuration


def read_json(path: Path, source: str) -> dict:
    """Return the JSON object in a file. Raises UserError if the file holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"{source}: {path.name} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: {path.name} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: {path.name} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{source}: {path.name} holds no JSON object")
    return values


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON number")


def read_config(path: Path, source: str) -> dict:
    """Return the values of config.json, with id2label and label2id completed from each other.

    Raises UserError for what `check_values` and `class_names` refuse.
    """
    values = read_json(path, source)
    check_values(values, CONFIG, source)
    if not isinstance(values.get("model_type"), str):
        raise UserError(f"{source}: {CONFIG} names no model_type")
    name_classes(values, source)
    return values


def check_values(values: Mapping, name: str, source: str) -> None:
    """Raise UserError for keys, at any depth, that make transformers run code or read other files.

    Keys of quantized and compressed checkpoints are refused too.
    """
    rest: list = [values]
    while rest:
        here = rest.pop()
        if isinstance(here, list):
            rest += here
        if not isinstance(here, Mapping):
            continue
        for key, reason in REFUSED_KEYS.items():
            if here.get(key):
                method = here[key].get("quant_method") if isinstance(here[key], Mapping) else None
                kind = f" ({method})" if isinstance(method, str) else ""
                raise UserError(f"{source}: {key}{kind} in {name}: {reason}")
        for key in _IMPLEMENTATIONS:
            if here.get(key) not in (None, "eager", "sdpa"):
                raise UserError(f"{source}: {key} in {name} is {here[key]!r:.60}; allowed: eager, sdpa, or no such key")
        rest += here.values()


def name_classes(values: dict, source: str) -> None:
    """Set both id2label and label2id to the class names that either of them gives."""
    if names := class_names(values, source):
        values["id2label"] = {str(code): name for code, name in enumerate(names)}
        values["label2id"] = {name: code for code, name in enumerate(names)}


def class_names(values: Mapping, source: str) -> list[str] | None:
    """Return the class names in the order of class numbers, or None if no map names a class.

    The names are from id2label or label2id. A map of LABEL_0, LABEL_1, ... is a placeholder: the
    other map counts. Raises UserError for maps that are not one to one, that contradict each other
    or that do not have num_labels classes.
    """
    found, count = [], values.get("num_labels")
    if count is not None and (type(count) is not int or not 1 <= count <= MOST_CLASSES):
        raise UserError(f"{source}: num_labels in {CONFIG} is {count!r:.60}; allowed: 1 to {MOST_CLASSES:,}")
    for key in ("id2label", "label2id"):
        if not values.get(key):
            continue
        if not isinstance(values[key], Mapping):
            raise UserError(f"{source}: {key} in {CONFIG} must be a JSON object of class names")
        pairs = values[key].items() if key == "id2label" else ((code, name) for name, code in values[key].items())
        pairs = [(str(code), str(name)) for code, name in pairs]
        if {code for code, _ in pairs} != {str(code) for code in range(len(pairs))} or len(dict(pairs)) != len(pairs):
            raise UserError(f"{source}: {key} in {CONFIG} does not number its classes 0 to {len(pairs) - 1}")
        names = [name for _, name in sorted(pairs, key=lambda pair: int(pair[0]))]
        if len(set(names)) != len(names):
            raise UserError(f"{source}: {key} in {CONFIG} gives two classes one name")
        found.append(names)
    named = [names for names in found if names != [f"LABEL_{code}" for code in range(len(names))]]
    if len({tuple(names) for names in named}) > 1 or len({len(names) for names in found}) > 1:
        raise UserError(f"{source}: id2label and label2id in {CONFIG} contradict each other: {found[0]} and {found[1]}")
    if found and count is not None and count != len(found[0]):
        raise UserError(f"{source}: num_labels in {CONFIG} is {count!r}, but {len(found[0])} classes have names")
    return (named or found or [None])[0]


# ---- weights


def weight_files(folder: Path, source: str) -> list[Path]:
    """Return model.safetensors, or the files that its index names.

    Raises UserError if a file is missing or outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS).is_dir():
        raise UserError(f"{source}: {WEIGHTS} is a folder, not a file")
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = (
            f"{pickles[0]} is a pickle, which is not read: save its model with save_pretrained" if pickles else "not a checkpoint"
        )
        raise UserError(f"{source}: no {WEIGHTS}; {hint}")
    names = _shards(folder / INDEX, source)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{source}: {missing[0]}, which {INDEX} names, is missing")
    return [folder / name for name in names]


def _shards(index: Path, source: str) -> list[str]:
    """Return the file names in an index, each once, sorted."""
    places = read_json(index, source).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{source}: {INDEX} has no weight_map of file names")
    names = sorted(set(places.values()))
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise UserError(f"{source}: {INDEX} names {name!r:.80}; allowed: .safetensors files in the same folder")
    return names


def read_tensors(files: list[Path], source: str) -> dict[str, Tensor]:
    """Return every tensor's type and shape, from the headers alone.

    Raises UserError for a file that is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stream:
                for key in stream.keys():  # noqa: SIM118 - not a mapping
                    piece = stream.get_slice(key)
                    found[key] = Tensor(piece.get_dtype(), tuple(piece.get_shape()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{source}: {file.name}: no safetensors file that can be read ({error})") from None
    if not found:
        raise UserError(f"{source}: {files[0].name} holds no weights")
    return found


def float_types(tensors: Mapping[str, Tensor]) -> str:
    """Return the types of the float weights, with commas if several: "float16"."""
    return ", ".join(sorted({FLOATS[tensor.type] for tensor in tensors.values() if tensor.type in FLOATS}))


def check_counts(values: Mapping, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise UserError if a configuration has more layers than the checkpoint has tensors.

    Otherwise a model of a million layers would take hours to build.
    """
    rest: list = [values]
    while rest:
        here = rest.pop()
        for key, value in here.items():
            if isinstance(value, int) and _COUNT.search(str(key)) and value > len(tensors):
                raise UserError(f"{source}: {key} is {value} in {CONFIG}, but there are only {len(tensors)} weights")
        rest += [value for value in here.values() if isinstance(value, Mapping)]


def unwrap(files: list[Path], tensors: Mapping[str, Tensor], folder: Path, source: str) -> str | None:
    """Write weights that were saved through a wrapper under their real names; return a note.

    They go to model.safetensors in `folder`. Return None, and write nothing, if no name has a
    wrapper's prefix. Raises UserError if a weight is there with and without a prefix.
    """
    names = {key: _INNER.sub("", _LEADING.sub("", key)) for key in tensors}
    if not (changed := [key for key, name in names.items() if name != key]):
        return None
    if len(set(names.values())) < len(names):
        raise UserError(f"{source}: {changed[0]} is there with and without a wrapper's prefix; remove one of the two")
    from safetensors.torch import load_file, save_file

    weights = {names[key]: value for file in files for key, value in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    wrappers = {word for key in changed for word in key.split(".") if word == "module" or word.startswith("_")}
    return (
        f"{source}: saved through a wrapper: {', '.join(f'{word}.' for word in sorted(wrappers))} taken off the names of "
        f"{len(changed)} weights"
    )


def _from_pickle(path: Path, out: Path, source: str) -> None:
    """Write the tensors of a hub's pytorch_model.bin as safetensors; nothing else is unpickled."""
    import torch
    from safetensors.torch import save_file

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError):
        raise UserError(f"{source}: {path.name} is not a pickle of weights alone, so it is not read") from None
    if not isinstance(weights, dict) or not all(torch.is_tensor(value) for value in weights.values()):
        raise UserError(f"{source}: {path.name} holds more than weights, so it is not read")
    save_file({str(key): value.clone().contiguous() for key, value in weights.items()}, out, {"format": "pt"})
