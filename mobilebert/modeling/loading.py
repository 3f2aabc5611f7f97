"""Load a checkpoint, and check its weights before the model is returned."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from mobilebert.modeling.checkpoint_config import CONFIG, INDEX, WEIGHTS, read_json
from mobilebert.modeling.checkpoint_files import Files, refuse_adapter
from mobilebert.modeling.foreign.convert import converted, needs_conversion
from mobilebert.modeling.weight_files import FLOATS, Tensor, check_counts, read_tensors, unwrap, weight_files
from mobilebert.util.errors import UserError

logger = logging.getLogger(__name__)

NEW_WEIGHTS = 30_000_000  # elements that a model may have beyond its checkpoint's; BERT's masked-LM head has 24 million


def load(kind: Any, files: Files, config: PreTrainedConfig | None = None) -> tuple[PreTrainedModel, dict]:
    """Return the float32 model of class `kind`, and transformers' loading report.

    kind: a model class, or one of transformers' Auto classes. config: None for that of
    `configuration`. Heads and a pooler that the checkpoint lacks are initialised. Conversions and
    renamed weights are reported on standard error. Raises UserError, one line, if the checkpoint
    cannot be loaded or the model does not run on two tokens.
    """
    config = config or configuration(files, kind)
    with one_refusal(files.source, files.folder):
        check_size(kind, config, files.tensors, files.source)
        # We check the loading report: transformers only warns if it initialises missing weights.
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
        logger.warning("%s", note)
    if files.type != "float32":
        logger.warning("%s: %s weights are loaded as float32", files.source, files.type)
    return model, report


def configuration(files: Files, kind: Any = None) -> PreTrainedConfig:
    """Return the configuration that the class `kind` reads.

    Raises UserError for values from which no configuration can be built.
    """
    import transformers

    reader: Any = getattr(kind, "config_class", None) or transformers.AutoConfig
    if (found := files.values["model_type"]) != getattr(reader, "model_type", found):
        raise UserError(f"{files.source}: model_type is {found!r} in config.json, not {reader.model_type!r}")
    with one_refusal(files.source, files.folder):
        config = reader.from_pretrained(files.folder, trust_remote_code=False)
        config.return_dict = True  # a tuple would not name its outputs
        return config


@contextlib.contextmanager
def readable(source: str | os.PathLike, **options) -> Iterator[tuple[str | os.PathLike, dict[str, Tensor]]]:
    """Yield what transformers should read in place of `source`, and its tensors (empty if unknown).

    This is the source. Only if the weights of a local folder were saved through a wrapper, or by
    TensorFlow, it is a temporary folder with the weights under their real names, and a warning is
    logged. Raises UserError for a local folder that cannot be read.
    """
    folder = Path(source) if isinstance(source, str | os.PathLike) else None
    if folder is None or options.keys() & {"subfolder", "variant", "gguf_file"}:
        yield source, {}
        return
    if needs_conversion(folder, reads_pickles=True):
        with converted(folder) as place:
            yield place, read_tensors(weight_files(place, str(source)), str(source))
        return
    if not folder.is_dir():
        yield source, {}
        return
    refuse_adapter(folder, str(source))
    if (folder / CONFIG).is_file():
        read_json(folder / CONFIG, str(source))
    if not any(
        os.path.lexists(folder / name) for name in (WEIGHTS, INDEX)
    ):  # transformers reads nothing but weights from a pickle, or raises
        yield source, {}
        return
    files = weight_files(folder, str(source))
    tensors = read_tensors(files, str(source))
    with tempfile.TemporaryDirectory(prefix="mobilebert-") as temporary:
        note = unwrap(files, tensors, Path(temporary), str(source))
        if note:
            logger.warning("%s", note)
            source, tensors = temporary, read_tensors([Path(temporary, WEIGHTS)], str(source))
            if (folder / CONFIG).is_file():
                shutil.copyfile(folder / CONFIG, Path(temporary, CONFIG))
        yield source, tensors


def check_size(kind: Any, config: PreTrainedConfig, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise UserError if the configuration's model is far larger than the weights.

    This comes before the model is built, which would take the memory and the time.
    """
    check_counts(config.to_dict(), tensors, source)
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False) if hasattr(kind, "from_config") else kind(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if wanted > 4 * held + NEW_WEIGHTS:
        raise UserError(f"{source}: config.json describes a model of {wanted:,} weights, but the checkpoint holds {held:,}")


def check_types(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise UserError, with its name, for the first weight saved as integers or 8-bit floats.

    Such weights lack their scales.
    """
    prefix = f"{model.base_model_prefix}."
    weights = {name.removeprefix(prefix) for name, _ in model.named_parameters()}
    for name in sorted(tensors):
        own = re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name.removeprefix(prefix)))  # names in old checkpoints
        if own in weights and tensors[name].type not in FLOATS:
            allowed = ", ".join(FLOATS.values())
            raise UserError(f"{source}: {name} has type {tensors[name].type}; allowed: {allowed}")


def check_loaded(
    model: torch.nn.Module, source: object, report: dict, ignore_mismatched_sizes: bool, left_out: range = range(0)
) -> None:
    """Raise UserError for weights of another architecture, and for NaN or infinite weights.

    report: transformers' loading report (missing_keys, unexpected_keys, mismatched_keys as (key,
        found, wanted)).
    left_out: encoder layers of the checkpoint that the caller does not want; a warning names them.

    Another architecture: a shape differs (unless ignored), or the checkpoint and the model do not
    have the same weights in embeddings and encoder.
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
        logger.warning("%s: encoder %s left out (num_hidden_layers=%d of %d)", source, names, left_out.start, left_out.stop)


@contextlib.contextmanager
def one_refusal(source: object, folder: Path | None = None) -> Iterator[None]:
    """Turn what transformers raises about a checkpoint into a one-line UserError with `source`.

    transformers' warnings about initialised weights are not shown, because `check_loaded` checks
    them. folder: where the checked files lie. With it, every error is the checkpoint's, and
    messages name `source` in place of the folder.
    """
    theirs = logging.getLogger("transformers")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        line = str(error).replace(str(folder), str(source)) if folder else str(error)
        raise UserError(line if str(source) in line else f"{source}: {line}") from None
    except SafetensorError as error:
        raise UserError(f"{source}: no safetensors file that can be read ({error})") from None
    except pickle.UnpicklingError:
        raise UserError(f"{source}: its pickle holds more than weights, so it is not read; use safetensors") from None
    except Exception as error:  # bad values of config.json fail anywhere in transformers and torch
        if folder is None or isinstance(error, torch.OutOfMemoryError):
            raise
        line = " ".join(f"{type(error).__name__}: {error}".replace(str(folder), str(source)).split())[:200]
        raise UserError(f"{source}: no model can be built from its config.json and weights ({line})") from None
    finally:
        theirs.setLevel(level)


def check_finite(model: torch.nn.Module, source: object) -> None:
    """Raise UserError, with its name, for the first weight with NaN or infinite values."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.device.type == "meta":
            continue
        # The sum takes one pass and no copy. It is finite unless a weight is not, or the sum is too
        # large; the second test tells the two apart.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise UserError(f"{source}: {name} holds NaN or infinite values; only finite weights can be loaded")


def _of_body(model: torch.nn.Module, keys) -> list[str]:
    """Return, sorted, those keys that are weights of embeddings or encoder.

    No checkpoint may lack them. Heads and poolers may be new, as at the start of fine-tuning.
    """
    prefix = f"{model.base_model_prefix}."
    base: Any = model.base_model
    body = tuple(f"{name}." for name, _ in base.named_children() if name != "pooler")
    # position_ids is a buffer of older transformers (0, 1, 2, ...), not a weight.
    return sorted(key for key in keys if key.removeprefix(prefix).startswith(body) and not key.endswith(".position_ids"))


def _layer_of(key: str) -> int | None:
    """Return the encoder layer of a weight, from 0; None for weights outside the encoder."""
    found = re.search(r"\bencoder\.layer\.(\d+)\.", key)
    return int(found[1]) if found else None


def _and_others(keys: list) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
