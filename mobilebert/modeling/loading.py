"""The one way to load a checkpoint, and what it must hold before a model made from it is handed out."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from mobilebert.modeling.checkpoint_files import (
    CONFIG,
    FLOATS,
    INDEX,
    WEIGHTS,
    Files,
    Tensor,
    check_counts,
    read_json,
    read_tensors,
    refuse_adapter,
    unwrap,
    weight_files,
)
from mobilebert.util.errors import UserError

NEW_WEIGHTS = 30_000_000  # elements that a model may have beyond its checkpoint's: BERT's masked-LM head is 24 million


def load(kind: Any, files: Files, config: PreTrainedConfig | None = None) -> tuple[PreTrainedModel, dict]:
    """Return the float32 model of class `kind`, a model class or one of transformers' Auto classes, and its loading report.

    config: None for what `configuration` returns. Heads and a pooler that the checkpoint lacks are new. What was converted or
    renamed is said on standard error. Raises UserError, one line, for what cannot be loaded or does not run on a text.
    """
    config = config or configuration(files, kind)
    with one_refusal(files.source, files.folder):
        check_size(kind, config, files.tensors, files.source)
        # Every loading report is read: transformers only warns where it draws lost weights anew.
        model, report = kind.from_pretrained(
            files.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        check_loaded(model, files.source, report, ignore_mismatched_sizes=False)
        check_types(model, files.tensors, files.source)
        with torch.inference_mode():
            model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=torch.ones(1, 2, dtype=torch.long))
    model.config.name_or_path = files.source
    for note in files.notes:
        print(f"mobilebert: {note}", file=sys.stderr)
    if files.type != "float32":
        print(f"mobilebert: {files.source}: {files.type} weights are loaded as float32", file=sys.stderr)
    return model, report


def configuration(files: Files, kind: Any = None) -> PreTrainedConfig:
    """Return the configuration that the class `kind` reads. Raises UserError for values of which none can be made."""
    import transformers

    reader: Any = getattr(kind, "config_class", None) or transformers.AutoConfig
    if (found := files.values["model_type"]) != getattr(reader, "model_type", found):
        raise UserError(f"{files.source}: model_type is {found!r} in config.json, not {reader.model_type!r}")
    with one_refusal(files.source, files.folder):
        config = reader.from_pretrained(files.folder, trust_remote_code=False)
        config.return_dict = True  # a tuple does not say which output is which
        return config


@contextlib.contextmanager
def readable(source: str | os.PathLike, **options) -> Iterator[tuple[str | os.PathLike, dict[str, Tensor]]]:
    """Yield what transformers is to read for the source of a `from_pretrained`, and its tensors, none if they are not known.

    That is the source itself. Only if the weights of a local folder were saved through a wrapper, it is a temporary folder
    that holds them under their own names, and a warning says so. Raises UserError for a local folder that cannot be read.
    """
    folder = Path(source) if isinstance(source, str | os.PathLike) else None
    if folder is None or not folder.is_dir() or options.keys() & {"subfolder", "variant", "gguf_file"}:
        yield source, {}
        return
    refuse_adapter(folder, str(source))
    if (folder / CONFIG).is_file():
        read_json(folder / CONFIG, str(source))
    if not any(
        os.path.lexists(folder / name) for name in (WEIGHTS, INDEX)
    ):  # transformers reads a pickle's weights alone, or says no
        yield source, {}
        return
    files = weight_files(folder, str(source))
    tensors = read_tensors(files, str(source))
    with tempfile.TemporaryDirectory(prefix="mobilebert-") as temporary:
        note = unwrap(files, tensors, Path(temporary), str(source))
        if note:
            logging.getLogger("transformers").warning("%s", note)
            source, tensors = temporary, read_tensors([Path(temporary, WEIGHTS)], str(source))
            if (folder / CONFIG).is_file():
                shutil.copyfile(folder / CONFIG, Path(temporary, CONFIG))
        yield source, tensors


def check_size(kind: Any, config: PreTrainedConfig, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise UserError for a configuration of a far larger model than the weights are of, before it takes the memory and time."""
    check_counts(config.to_dict(), tensors, source)
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False) if hasattr(kind, "from_config") else kind(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if wanted > 4 * held + NEW_WEIGHTS:
        raise UserError(f"{source}: config.json is of a model of {wanted:,} weights, the checkpoint holds {held:,}")


def check_types(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise UserError, by name, for the first weight of the model that was saved as integers or 8-bit floats: they lack their
    scales."""
    prefix = f"{model.base_model_prefix}."
    weights = {name.removeprefix(prefix) for name, _ in model.named_parameters()}
    for name in sorted(tensors):
        own = re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name.removeprefix(prefix)))  # as old checkpoints have them
        if own in weights and tensors[name].type not in FLOATS:
            allowed = ", ".join(FLOATS.values())
            raise UserError(f"{source}: {name} has type {tensors[name].type}; allowed: {allowed}")


def check_loaded(
    model: torch.nn.Module, source: object, report: dict, ignore_mismatched_sizes: bool, left_out: range = range(0)
) -> None:
    """Refuse weights of another architecture, and weights that are not numbers.

    report: transformers' loading report (missing_keys, unexpected_keys, mismatched_keys as (key, found, wanted)).
    left_out: encoder layers of the checkpoint that its reader does not want; a warning names them. Raises UserError for a shape
    that differs (unless ignored), for weights of embeddings or encoder that the checkpoint lacks or the model has no other place
    for, and for NaN or infinite weights.
    """
    mismatched = sorted(report["mismatched_keys"])
    if mismatched and not ignore_mismatched_sizes:
        key, found, wanted = mismatched[0]
        raise UserError(
            f"{source}: {key} has shape {tuple(found)}, the model's is {tuple(wanted)}{_and_others(mismatched)}; "
            "the sizes of a configuration must be those of the weights"
        )
    drawn = {key for key, _, _ in mismatched}
    missing = _of_body(model, set(report["missing_keys"]) - drawn)
    if missing:
        raise UserError(f"{source}: weights of another architecture: it has no {missing[0]}{_and_others(missing)}")
    unexpected = [key for key in _of_body(model, report["unexpected_keys"]) if _layer_of(key) not in left_out]
    if unexpected:
        raise UserError(f"{source}: weights of another architecture: the model has no {unexpected[0]}{_and_others(unexpected)}")
    check_finite(model, source)
    if left_out:
        names = f"layer {left_out[0]} is" if len(left_out) == 1 else f"layers {left_out[0]} to {left_out[-1]} are"
        logging.getLogger("transformers").warning(
            "%s: encoder %s left out (num_hidden_layers=%d of %d)", source, names, left_out.start, left_out.stop
        )


@contextlib.contextmanager
def one_refusal(source: object, folder: Path | None = None) -> Iterator[None]:
    """Make one line, a UserError that names `source`, of what transformers raises or prints about a checkpoint.

    Its reports of what it drew anew stay off standard error, for `check_loaded` judges that. folder: where the checked files
    lie; then any error is one of the checkpoint, and messages name `source` in its place.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        line = str(error).replace(str(folder), str(source)) if folder else str(error)
        raise UserError(line if str(source) in line else f"{source}: {line}") from None
    except SafetensorError as error:
        raise UserError(f"{source}: no safetensors file that can be read ({error})") from None
    except pickle.UnpicklingError:
        raise UserError(f"{source}: its weights are a pickle of more than weights, which is not read") from None
    except Exception as error:  # values of config.json that no model can be made of fail anywhere in transformers and torch
        if folder is None or isinstance(error, torch.OutOfMemoryError):
            raise
        line = " ".join(f"{type(error).__name__}: {error}".replace(str(folder), str(source)).split())[:200]
        raise UserError(f"{source}: no model can be made of its config.json and weights ({line})") from None
    finally:
        logger.setLevel(level)


def check_finite(model: torch.nn.Module, source: object) -> None:
    """Raise UserError, by name, for the first weight with NaN or infinite values."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.device.type == "meta":
            continue
        # The sum, one pass without a copy, is finite unless a weight is not or the sum itself is too large.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise UserError(f"{source}: {name} holds NaN or infinite values; only finite weights can be loaded")


def _of_body(model: torch.nn.Module, keys) -> list[str]:
    """Return the keys of the body's weights, sorted. No checkpoint may lack them; heads and poolers may be new, as fine-tuning
    starts."""
    prefix = f"{model.base_model_prefix}."
    base: Any = model.base_model
    body = tuple(f"{name}." for name, _ in base.named_children() if name != "pooler")
    # A buffer of older transformers: position_ids is the row 0, 1, 2, ..., not a weight.
    return sorted(key for key in keys if key.removeprefix(prefix).startswith(body) and not key.endswith(".position_ids"))


def _layer_of(key: str) -> int | None:
    """Encoder layer of a weight, from 0; None outside the encoder."""
    found = re.search(r"\bencoder\.layer\.(\d+)\.", key)
    return int(found[1]) if found else None


def _and_others(keys: list) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
