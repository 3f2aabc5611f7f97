"""Export a trained model as an ONNX file that takes any batch size and sequence length."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mobilebert.util.errors import UserError
from mobilebert.util.files import settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# The heads' outputs come first, because a model with a head also returns those of its encoder.
OUTPUTS = (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",))
# Added to the score of a padded key. The minimum of float32, which training uses (as transformers
# does), would stretch an int8 range until every real score rounds to zero. -10000 is BERT's
# constant. It gives the same float32 probabilities while the scores of a row lie within 9,896 of
# each other, because exp(-104) is zero.
MASKED_SCORE = -10_000.0
OPSET = 20  # the first with a Gelu operator


def export_onnx(model: "PreTrainedModel", path: Path, *, length: int, folds: bool = True) -> None:
    """Write `model` to `path` as ONNX (float32, opset 20), folded if possible (`modeling.folding`).

    Inputs: input_ids, attention_mask (1 for a token, 0 for padding) and token_type_ids, int64
    (batch, sequence). Both axes are free; a sequence has up to `max_position_embeddings` tokens.
    Outputs: logits (batch, num_labels); or start_logits and end_logits (batch, sequence); or, for a
    model without a head, last_hidden_state (batch, sequence, hidden_size).

    length: tokens of the example that is traced, at least 2. folds: False to write the model as it
        is; a model with fake quantization cannot be folded.
    The model is exported in evaluation mode. The file appears under its name only when it is
    complete. Raises UserError for a model with none of these outputs, a model that is not float32,
    a length that the model cannot take, and a full disk.
    """
    import torch

    from mobilebert.modeling.folding import fold, foldable

    longest = model.config.max_position_embeddings
    if not 2 <= length <= longest:
        raise UserError(f"length: {length} is not from 2 to {longest}, the model's max_position_embeddings")
    if model.dtype != torch.float32:
        raise UserError(f"dtype: the model holds {model.dtype}; only float32 is exported")

    # With mask_value "-6" the model recognises padded keys by the value -6 in the mask.
    masked_score = -6.0 if getattr(model.config, "mask_value", None) == "-6" else MASKED_SCORE

    class Deployed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = fold(model) if folds and foldable(model) else model

        def forward(self, input_ids, attention_mask, token_type_ids):
            # (batch, 1, 1, sequence), computed once for all layers; both model families (MobileBERT
            # and BERT) add a 4-D mask unchanged.
            mask = (1.0 - attention_mask.to(torch.float32))[:, None, None, :] * masked_score
            out = self.model(input_ids=input_ids, attention_mask=mask, token_type_ids=token_type_ids)
            return tuple(out[name] for name in names or ())

    # The example has padding, so that no branch on the mask is traced as "nothing to mask".
    ids = torch.zeros(2, length, dtype=torch.int64, device=model.device)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    training = model.training
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        model.eval()
        with torch.inference_mode():
            given = model(input_ids=ids, attention_mask=mask, token_type_ids=ids)
        names = next((group for group in OUTPUTS if all(given.get(name) is not None for name in group)), None)
        if names is None:
            raise UserError(
                f"model: {type(model).__name__} returns {', '.join(given)}; only these can be exported: models with "
                + " or ".join(" and ".join(group) for group in OUTPUTS)
            )
        axes = {0: "batch", 1: "sequence"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # The tracer warns that it may have fixed sizes. It has not: tests use other sizes.
            warnings.simplefilter("ignore")
            # Not dynamo=True: its file is as correct, but a 3-layer model then takes 3.5 to 7 s,
            # not 0.2 to 0.4 s (torch 2.13, one core), which is most of a small job's time.
            torch.onnx.export(
                Deployed().eval(),
                (ids, mask, ids),
                temporary,
                input_names=list(INPUTS),
                output_names=list(names),
                dynamic_axes=dict.fromkeys(INPUTS, axes) | {name: axes if name != "logits" else {0: "batch"} for name in names},
                opset_version=OPSET,
                dynamo=False,
            )
        settle(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
    finally:
        model.train(training)
        temporary.unlink(missing_ok=True)
