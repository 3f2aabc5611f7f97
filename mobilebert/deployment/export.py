"""A trained model as an ONNX file that any batch size and sequence length can be fed to."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mobilebert.util.errors import UserError
from mobilebert.util.files import settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# The heads' outputs first: a model with a head also names its encoder's, and those are not what is deployed.
OUTPUTS = (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",))
# Added to the score of a padded key. The float's minimum (transformers, and ours in training) would stretch an int8
# range until every real score rounds to zero; -10000 is BERT's own constant and gives the same float32 probabilities
# while the scores of a row lie within 9,896 of each other, as exp(-104) is zero.
MASKED_SCORE = -10_000.0
OPSET = 20  # the first with a Gelu operator


def export_onnx(model: "PreTrainedModel", path: Path, *, length: int) -> None:
    """Write `model`, in evaluation mode and folded where it can be (`modeling.folding`), to `path` as ONNX (float32, opset 20).

    Inputs: input_ids, attention_mask (1 for a token, 0 for padding), token_type_ids: int64 (batch, sequence), both axes
    free, sequence up to `max_position_embeddings`. Outputs: logits (batch, num_labels); or start_logits and end_logits
    (batch, sequence); or, of a model without a head, last_hidden_state (batch, sequence, hidden_size).

    length: tokens of the example that is traced, 2 at least.
    The file appears under its name only when it is complete. Raises UserError for a model that gives none of these
    outputs, one that is not float32, a length that it cannot take, and a disk that is full.
    """
    import torch

    from mobilebert.modeling.folding import fold, foldable

    longest = model.config.max_position_embeddings
    if not 2 <= length <= longest:
        raise UserError(f"length: {length} is not from 2 to {longest}, the model's max_position_embeddings")
    if model.dtype != torch.float32:
        raise UserError(f"dtype: the model holds {model.dtype}; only float32 is exported")

    # Where the padding's score takes the place of the key's own, the model must find it as it is.
    masked_score = -6.0 if getattr(model.config, "mask_value", None) == "-6" else MASKED_SCORE

    class Deployed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = fold(model) if foldable(model) else model

        def forward(self, input_ids, attention_mask, token_type_ids):
            # (batch, 1, 1, sequence), made once for all layers; both model families add a 4-D mask as it is.
            mask = (1.0 - attention_mask.to(torch.float32))[:, None, None, :] * masked_score
            out = self.model(input_ids=input_ids, attention_mask=mask, token_type_ids=token_type_ids)
            return tuple(out[name] for name in names or ())

    # Padded, so that no branch of a model that looks at the mask is traced as "nothing to mask".
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
                f"model: {type(model).__name__} gives {', '.join(given)}; exported are models with "
                + " or ".join(" and ".join(group) for group in OUTPUTS)
            )
        axes = {0: "batch", 1: "sequence"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # Of sizes that the trace may have fixed: it has not, the tests try sizes other than the traced ones.
            warnings.simplefilter("ignore")
            # Not dynamo=True: its file is as right, but a 3-layer model takes 3.5 to 7 s there and 0.2 to 0.4 s here
            # (torch 2.13, one core), which is most of a small job's time.
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
