"""What a checkpoint must hold before a model made from it is handed out."""

import contextlib
import logging
import re
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from mobilebert.errors import UserError

BODY = ("embeddings.", "encoder.")  # what no checkpoint may lack; heads and poolers may be new, as fine-tuning starts


def check_loaded(model: torch.nn.Module, source, report: dict, ignore_mismatched_sizes: bool, left_out: range = range(0)) -> None:
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
            f"{source}: {key} has shape {tuple(found)}, the model's is {tuple(wanted)}"
            f"{_and_others(mismatched)}; ignore_mismatched_sizes=True draws such weights anew"
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
def one_refusal(source) -> Iterator[None]:
    """Around transformers' loading: its reports of what it drew anew stay off standard error, for `check_loaded` judges that in
    one line; a file of weights that is cut short raises UserError."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{source}: no safetensors file that can be read ({error})") from None
    finally:
        logger.setLevel(level)


def check_finite(model: torch.nn.Module, source) -> None:
    """Raise UserError, by name, for the first weight with NaN or infinite values."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.device.type != "meta" and not weight.isfinite().all():
            raise UserError(f"{source}: {name} holds NaN or infinite values; only finite weights can be loaded")


def _of_body(model: torch.nn.Module, keys) -> list[str]:
    prefix = f"{model.base_model_prefix}."
    # A buffer of older transformers: position_ids is the row 0, 1, 2, ..., not a weight.
    return sorted(key for key in keys if key.removeprefix(prefix).startswith(BODY) and not key.endswith(".position_ids"))


def _layer_of(key: str) -> int | None:
    """Encoder layer of a weight, from 0; None outside the encoder."""
    found = re.search(r"\bencoder\.layer\.(\d+)\.", key)
    return int(found[1]) if found else None


def _and_others(keys: list) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
