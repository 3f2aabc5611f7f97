"""Convert a checkpoint of TensorFlow or PyTorch to the folder that our classes read."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.modeling.checkpoint_config import CONFIG, WEIGHTS
from mobilebert.modeling.checkpoint_files import TOKENIZER
from mobilebert.modeling.foreign import sources
from mobilebert.modeling.foreign.kinds import is_of_keras, is_wrapped_pickle, kind_of
from mobilebert.modeling.foreign.sources import Foreign
from mobilebert.modeling.presets import preset as preset_fields
from mobilebert.modeling.weight_files import check_counts
from mobilebert.util.errors import LONGEST, UserError, naming, shown
from mobilebert.util.text import cut

logger = logging.getLogger(__name__)

CLASSES = (
    "MobileBertForPreTraining",
    "MobileBertForMaskedLM",
    "MobileBertForNextSentencePrediction",
    "MobileBertForSequenceClassification",
    "MobileBertForMultipleChoice",
    "MobileBertForTokenClassification",
    "MobileBertForQuestionAnswering",
    "MobileBertModel",
)
WORDS, DECODER = "mobilebert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


def convert(source: str, out: Path, preset: str | None = None, config_file: Path | None = None) -> list[str]:
    """Write a checkpoint as config.json and model.safetensors; return what was done, a line each.

    out: a new or empty folder; it appears whole or not at all. preset, config_file: the
    configuration, if it is not beside the weights.
    Raises UserError, one line, for a checkpoint that cannot be read or is of another architecture.
    """
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder")
    found = sources.read(source, preset is not None or config_file is not None)
    values = found.values
    if preset is not None:
        values = preset_fields(preset)
    elif config_file is not None:
        if not config_file.is_file():
            raise UserError(f"{config_file}: {'is a folder, not a file' if config_file.is_dir() else 'no such file'}")
        values = sources.read_configuration(config_file)
    if values is None:
        raise UserError(
            f"{source}: no configuration beside the weights; `mobilebert convert` takes one with --preset or --config"
        )
    kind, config = _architecture(found, values)
    arrays = _checked(found, kind, config)
    _write(found, arrays, config, out)
    total = sum(array.size for array in arrays.values())
    notes = [f"{source}: {cut(note, LONGEST)}" for note in found.notes]  # they quote names of the checkpoint
    return [f"{out}: {kind}, {total:,} weights, from {found.kind} {source}", *notes]


def needs_conversion(path: Path, reads_pickles: bool = False) -> bool:
    """Return whether `from_pretrained` must read a local path through `converted`.

    Weights of TensorFlow need it, and pickles. reads_pickles: the caller reads a folder's pickle
    itself, unless a wrapper's prefix is on its names.
    """
    path = path.expanduser()
    kind = kind_of(path)
    if kind == "pickle":
        return not reads_pickles or path.is_file() or is_wrapped_pickle(path)
    return kind in ("h5", "google") or (kind == "safetensors" and is_of_keras(path))


@contextlib.contextmanager
def converted(source: Path) -> Iterator[Path]:
    """Yield a temporary folder with a checkpoint converted; what was changed is logged."""
    with tempfile.TemporaryDirectory(prefix="mobilebert-") as temporary:
        place = Path(temporary, "converted")
        for line in convert(str(source), place)[1:]:
            logger.warning("%s", line)
        yield place


def _architecture(found: Foreign, values: dict) -> tuple[str, Any]:
    """Return the name of the class, and its configuration."""
    from mobilebert.modeling.configuration import MobileBertConfig

    values = {key: value for key, value in values.items() if key not in ("model_type", "dtype", "torch_dtype")}
    if values.get("num_labels", 0) is None:  # transformers takes it for no count at all
        del values["num_labels"]
    if found.kind == sources.OF_KERAS:
        values.setdefault("mask_value", "-10000")  # of those classes; their PyTorch ones have "min"
    architectures = values.pop("architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"{found.source}: architectures in the configuration is {shown(architectures)}; allowed: a list of names")
    declared = [name.removeprefix("TF") for name in architectures]
    kind = declared[0] if declared and declared[0] in CLASSES else _class_of(found.arrays)
    if "classifier.bias" in found.arrays and not values.keys() & {"id2label", "num_labels"}:
        values["num_labels"] = found.arrays["classifier.bias"].size
    words, decoder = found.arrays.get(WORDS), found.arrays.get(DECODER)
    if words is not None and decoder is not None and not np.array_equal(words, decoder):
        values["tie_word_embeddings"] = False  # transformers' TF classes train the two apart
        found.notes.append("the output matrix differs from the word embeddings: tie_word_embeddings is false")
    with naming(found.source):
        config = MobileBertConfig.from_dict(values)
    for key, value in found.shown.items():
        if getattr(config, key) != value:
            raise UserError(
                f"{found.source}: weights of another architecture: {key} is {getattr(config, key)!r} in the configuration, "
                f"but {value!r} in the weights"
            )
    config.architectures = [kind]
    config.dtype = "float32"
    return kind, config


def _class_of(arrays: dict[str, Any]) -> str:
    """Return the class that has the heads whose weights are there."""
    has = {name.split(".")[0] if not name.startswith("cls.") else ".".join(name.split(".")[:2]) for name in arrays}
    if "cls.predictions" in has:
        return "MobileBertForPreTraining" if "cls.seq_relationship" in has else "MobileBertForMaskedLM"
    for head, kind in (
        ("cls.seq_relationship", "MobileBertForNextSentencePrediction"),
        ("classifier", "MobileBertForSequenceClassification"),
        ("qa_outputs", "MobileBertForQuestionAnswering"),
    ):
        if head in has:
            return kind
    return "MobileBertModel"


def _checked(found: Foreign, kind: str, config: Any) -> dict[str, Any]:
    """Return the arrays under the names of the class.

    Raises UserError if one is missing, of another shape, or unknown in embeddings and encoder.
    Others that the class does not have are noted.
    """
    import torch

    from mobilebert import modeling

    check_counts(config.to_dict(), found.arrays, found.source)  # a million layers would take hours to build
    try:
        with torch.device("meta"):
            model = getattr(modeling, kind)(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{found.source}: the configuration makes no model ({cut(str(error), 120)})") from None
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    tied = dict(model._tied_weights_keys or {}) if config.tie_word_embeddings else {}
    if not config.tie_word_embeddings and "cls.predictions.bias" in found.arrays:
        found.arrays.setdefault("cls.predictions.decoder.bias", found.arrays["cls.predictions.bias"])
    prefix = "" if kind == "MobileBertModel" else "mobilebert."
    given = {name if name.startswith(("cls.", "classifier.", "qa_outputs.")) else prefix + name.removeprefix("mobilebert."): array
             for name, array in found.arrays.items() if not name.endswith("position_ids")}  # fmt: skip
    if len(given) < len(found.arrays):
        found.notes.append("not used: position_ids, which are 0, 1, 2, ...")
    missing = [name for name in wanted if name not in given and name not in tied]
    if missing:
        raise UserError(f"{found.source}: weights of another architecture: it has no {missing[0]}{_more(missing)}")
    for name, shape in wanted.items():
        if name in given and given[name].shape != shape:
            raise UserError(
                f"{found.source}: {name} has shape {given[name].shape}, the configuration's is {shape}; "
                "the sizes of a configuration must be those of the weights"
            )
    unknown = sorted(name for name in given if name not in wanted)
    if body := [name for name in unknown if name.removeprefix("mobilebert.").startswith(("embeddings.", "encoder."))]:
        raise UserError(f"{found.source}: weights of another architecture: the configuration has no {body[0]}{_more(body)}")
    arrays = {name: given[name] for name in wanted if name in given and name not in tied}
    width = config.hidden_size
    pooler = {"mobilebert.pooler.dense.weight": (width, width), "mobilebert.pooler.dense.bias": (width,)}
    if config.classifier_activation and all(name in unknown and given[name].shape == pooler[name] for name in pooler):
        arrays |= {name: given[name] for name in pooler}
        unknown = [name for name in unknown if name not in pooler]
        found.notes.append(f"the pooler is kept, which {kind} lacks and others load")
    if unknown:
        found.notes.append(f"not used, because {kind} has no such weights: {', '.join(unknown)}")
    return arrays


def _write(found: Foreign, arrays: dict[str, Any], config: Any, out: Path) -> None:
    """Write the folder beside its place, then rename it."""
    from safetensors.numpy import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mobilebert-", dir=out.parent) as temporary:
        folder = Path(temporary, "whole")
        folder.mkdir()
        save_file(arrays, folder / WEIGHTS, {"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)
        (folder / CONFIG).write_text(config.to_json_string(), encoding="utf-8")
        for name in TOKENIZER:
            if (found.folder / name).is_file():
                shutil.copyfile(found.folder / name, folder / name)
        if out.is_dir():
            out.rmdir()
        folder.replace(out)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
