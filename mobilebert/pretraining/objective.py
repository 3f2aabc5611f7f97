"""Compute BERT's pre-training loss and its held-out figures; load and save pre-training models.

The functions take the bottleneck family and transformers' BERT alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.data.segment_pairs import Pairs
from mobilebert.data.tokenizer import BERT_POSITIONS, copy_tokenizer, load_tokenizer
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.loading import check_loaded
from mobilebert.modeling.weight_files import float_types, read_tensors
from mobilebert.study.stage_config import ModelConfig
from mobilebert.training import checkpoint
from mobilebert.util.errors import Diverged

logger = logging.getLogger(__name__)

# 1,024 held-out pairs, the same for every model of a study. At length 64 they have some 10,000
# masked tokens, enough to tell two models apart that differ by 0.05 nats.
HELDOUT_BATCHES, HELDOUT_SIZE = 32, 32


def new_model(architecture: dict) -> nn.Module:
    """Return a pre-training model with new weights, drawn from torch's current seed."""
    fields = {key: value for key, value in architecture.items() if key != "model_type"}
    if architecture["model_type"] == "bert":
        from transformers import BertConfig, BertForPreTraining

        return BertForPreTraining(BertConfig(**fields))
    from mobilebert.modeling.configuration import MobileBertConfig
    from mobilebert.modeling.heads import MobileBertForPreTraining

    return MobileBertForPreTraining(MobileBertConfig(**fields))


def load_model(folder: Path | str, architecture: dict, revision: str = "main") -> nn.Module:
    """Return the pre-training model of a folder or hub name, as float32 whatever its weights' type.

    Raises UserError as `loading.check_loaded` does.
    """
    if architecture["model_type"] == "bert":
        from transformers import BertForPreTraining

        # Read the loading report: transformers only warns if it draws missing weights anew.
        model, report = BertForPreTraining.from_pretrained(  # pyrefly: ignore[not-iterable]  (Self, it says)
            folder, revision=revision, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
        check_loaded(model, folder, report, ignore_mismatched_sizes=False)
        return model
    from mobilebert.modeling.heads import MobileBertForPreTraining

    return cast(nn.Module, MobileBertForPreTraining.from_pretrained(folder, revision=revision, dtype=torch.float32))


def save_model(context: JobContext, model: nn.Module, tokenizer: Path | None = None) -> None:
    """Save the model and its tokenizer in Hugging Face layout beside the record.

    tokenizer: the folder of the tokenizer's files; None takes those of the job's data.
    """
    folder = context.folder / "model"
    checkpoint.save_pretrained(model, folder)
    tokenizer = tokenizer or context.artefact_of("data", "tokenizer/tokenizer.json").parent
    copied = copy_tokenizer(tokenizer, folder, getattr(model.config, "max_position_embeddings", BERT_POSITIONS))
    context.artefacts += [f"model/{name}" for name in ("config.json", "model.safetensors", *copied)]


def input_model(context: JobContext, key: str) -> nn.Module:
    """Return the model that another job saved, after a check of its hashes."""
    context.artefact_of(key, "model/config.json")
    return load_model(weights_folder(context, key), context.graph[key].settings(ModelConfig).architecture)


def weights_folder(context: JobContext, key: str) -> Path:
    """Return the folder of the model that another job saved, after a check of its hash.

    The type of its weights goes into the record.
    """
    file = context.artefact_of(key, "model/model.safetensors")
    context.weights_dtype[key] = kind = float_types(read_tensors([file], str(file.parent)))
    if kind != "float32":
        logger.warning("%s: %s weights are loaded as float32", file.parent, kind)
    return file.parent


def batches(
    folder: Path,
    split: str,
    length: int,
    size: int,
    seed: int,
    max_predictions: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> Callable[[int], dict[str, torch.Tensor]]:
    """Return a function of the step that returns its batch of segment pairs.

    A batch has input_ids and token_type_ids (B, T), masked_positions and masked_labels (N,),
    next_sentence_label (B,). It has attention_mask (B, T) only if a row is padded: full batches
    need no mask. Each of several processes gets only its rows, and `whole` (3,) of all processes
    (see `training.batches.split`).
    """
    pairs = Pairs(
        folder,
        split,
        length=length,
        tokenizer=load_tokenizer(folder.parent / "tokenizer"),
        seed=seed,
        max_predictions=max_predictions,
    )

    def batch(step: int) -> dict[str, torch.Tensor]:
        arrays = pairs.batch(step, size, process, processes)
        if arrays["whole"][2] == size * length:
            del arrays["attention_mask"]
        if processes == 1:
            del arrays["whole"]
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    return batch


INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def heads(model: nn.Module, batch: dict[str, torch.Tensor], **wanted) -> dict:
    """Return masked-LM logits (N, V) of the masked positions and NSP logits (B, 2).

    The bottleneck family also gives the hidden states and attentions that `wanted` asks for.
    """
    inputs = {key: batch[key] for key in INPUTS if key in batch}
    named: Any = model
    if hasattr(model, "mobilebert"):
        out = model(**inputs, masked_positions=batch["masked_positions"], **wanted)
        return {
            "mlm": out.prediction_logits,
            "nsp": out.seq_relationship_logits,
            "states": out.hidden_states,
            "attentions": out.attentions,
        }
    hidden = named.bert(**inputs)
    masked = hidden.last_hidden_state.flatten(0, 1)[batch["masked_positions"]]
    return {"mlm": named.cls.predictions(masked), "nsp": named.cls.seq_relationship(hidden.pooler_output)}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return BERT's loss, MLM + NSP, and both terms: each a mean cross-entropy in nats."""
    out = heads(model, batch)
    mlm = F.cross_entropy(out["mlm"].float(), batch["masked_labels"]) * batch.get("masked_weight", 1.0)
    nsp = F.cross_entropy(out["nsp"].float(), batch["next_sentence_label"])
    return {"loss": mlm + nsp, "mlm": mlm, "nsp": nsp}


@torch.no_grad()
def heldout_figures(model: nn.Module, corpus: Path, length: int, device: str, count: int = HELDOUT_BATCHES) -> dict[str, float]:
    """Return masked-LM loss (nats), masked-LM accuracy and NSP accuracy on held-out pairs.

    The `count` batches are the same for every model.
    """
    batch_at = batches(corpus, "heldout", length, HELDOUT_SIZE, seed=20)
    totals = dict.fromkeys(("loss", "right", "masked", "next", "rows"), 0.0)
    for index in range(count):
        batch = {key: value.to(device) for key, value in batch_at(index).items()}
        out = heads(model, batch)
        labels = batch["masked_labels"]
        totals["loss"] += F.cross_entropy(out["mlm"].float(), labels, reduction="sum").item()
        totals["right"] += (out["mlm"].argmax(-1) == labels).sum().item()
        totals["masked"] += len(labels)
        totals["next"] += (out["nsp"].argmax(-1) == batch["next_sentence_label"]).sum().item()
        totals["rows"] += len(batch["next_sentence_label"])
    return {
        "heldout_mlm_loss": totals["loss"] / totals["masked"],
        "heldout_mlm_accuracy": totals["right"] / totals["masked"],
        "heldout_nsp_accuracy": totals["next"] / totals["rows"],
    }


def heldout_point(model: nn.Module, corpus: Path, length: int, device: str) -> dict[str, float]:
    """Return the held-out masked-LM loss of one batch during training; `model` keeps its mode."""
    training = model.training
    figures = heldout_figures(model.eval(), corpus, length, device, count=1)
    model.train(training)
    return {"heldout_mlm": figures["heldout_mlm_loss"]}


def heldout(context: JobContext, model: nn.Module, corpus: Path, length: int, device: str) -> None:
    """Write the held-out figures and the corpus's unigram and trigram entropy into the record.

    Nats depend on the vocabulary. So the loss is also written as bits per byte of text.

    Leaves `model` in evaluation mode. Raises Diverged if the loss is not finite.
    """
    context.metrics |= heldout_figures(model.eval(), corpus, length, device)
    corpus_figures = cast(dict[str, float], context.record_of("data").metrics)
    context.metrics |= {key: corpus_figures[key] for key in ("unigram_entropy", "trigram_entropy")}
    bits = context.metrics["heldout_mlm_loss"] / math.log(2)
    context.metrics["heldout_bits_per_byte"] = bits / corpus_figures["bytes_per_token"]
    if not math.isfinite(context.metrics["heldout_mlm_loss"]):
        raise Diverged("held-out loss is not finite")
