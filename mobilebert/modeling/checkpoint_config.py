"""Read a checkpoint's config.json and refuse values that name code or make no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mobilebert.util.errors import UserError, naming

CONFIG, WEIGHTS, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
MOST_CLASSES = 100_000  # transformers names each of them
MOST_BYTES = 64 << 20  # of a JSON file, or of another index
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

# Python takes any text for true, so "no" would switch these on.
_SWITCHES = ("tie_word_embeddings", "output_hidden_states", "output_attentions", "return_dict", "is_encoder_decoder")
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


# ---- configuration


def read_json(path: Path, source: str) -> dict:
    """Return the JSON object in a file. Raises UserError if it holds anything else, or is huge."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{source}: {path.name} has {size:,} bytes; at most {MOST_BYTES:,} are read")
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

    Keys of quantized and compressed checkpoints are refused too, and what `check_types` refuses.
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
        with naming(f"{source}: {name}"):
            check_types(here)
        for key in _IMPLEMENTATIONS:
            if here.get(key) not in (None, "eager", "sdpa"):
                raise UserError(f"{source}: {key} in {name} is {here[key]!r:.60}; allowed: eager, sdpa, or no such key")
        rest += here.values()


def check_types(values: Mapping) -> None:
    """Raise UserError for switches of transformers that are not booleans, and unknown problems.

    A null is transformers' default, but not for tie_word_embeddings.
    """
    for key in _SWITCHES:
        value = values.get(key, False)
        if not isinstance(value, bool) and (value is not None or key == "tie_word_embeddings"):
            raise UserError(f"{key}: {value!r:.60} is neither true nor false")
    if (problem := values.get("problem_type")) is not None and problem not in _PROBLEMS:
        raise UserError(f"problem_type: {problem!r:.60} is unknown: choose one of {', '.join(_PROBLEMS)}")


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
