"""Masked-LM and next-sentence prediction, alike for the bottleneck family and transformers' BERT; and its held-out loss."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.data.segment_pairs import Pairs
from mobilebert.data.tokenizer import BERT_POSITIONS, copy_tokenizer, load_tokenizer
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.checkpoint_files import float_types, read_tensors
from mobilebert.modeling.loading import check_loaded
from mobilebert.study.stage_config import ModelConfig
from mobilebert.training import checkpoint
from mobilebert.util.errors import Diverged

HELDOUT_BATCHES, HELDOUT_SIZE = 8, 32  # 256 held-out pairs, the same for every model of a study


def new_model(architecture: dict) -> nn.Module:
    """A pre-training model of the architecture, fresh weights from torch's current seed."""
    fields = {key: value for key, value in architecture.items() if key != "model_type"}
    if architecture["model_type"] == "bert":
        from transformers import BertConfig, BertForPreTraining

        return BertForPreTraining(BertConfig(**fields))
    from mobilebert.modeling.configuration import MobileBertConfig
    from mobilebert.modeling.heads import MobileBertForPreTraining

    return MobileBertForPreTraining(MobileBertConfig(**fields))


def load_model(folder: Path | str, architecture: dict, revision: str = "main") -> nn.Module:
    """Return the float32 pre-training model saved in a folder, or that of a hub name, whatever type its weights have there."""
    if architecture["model_type"] == "bert":
        from transformers import BertForPreTraining

        # Every loading report is read: transformers only warns where it draws lost weights anew.
        model, report = BertForPreTraining.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  (Self, it says)
            folder, revision=revision, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
        check_loaded(model, folder, report, ignore_mismatched_sizes=False)
        return model
    from mobilebert.modeling.heads import MobileBertForPreTraining

    return cast(nn.Module, MobileBertForPreTraining.from_pretrained(folder, revision=revision, dtype=torch.float32))


def save_model(context: JobContext, model: nn.Module, tokenizer: Path | None = None) -> None:
    """Save the model in Hugging Face layout beside the record, with the files of its tokenizer: a folder that stands alone.

    tokenizer: the folder of these files. None takes the tokenizer of the job's data.
    """
    folder = context.folder / "model"
    checkpoint.save_pretrained(model, folder)
    tokenizer = tokenizer or context.artefact_of("data", "tokenizer/tokenizer.json").parent
    copied = copy_tokenizer(tokenizer, folder, getattr(model.config, "max_position_embeddings", BERT_POSITIONS))
    context.artefacts += [f"model/{name}" for name in ("config.json", "model.safetensors", *copied)]


def input_model(context: JobContext, key: str) -> nn.Module:
    """The model that another job saved, hashes checked."""
    context.artefact_of(key, "model/config.json")
    return load_model(weights_folder(context, key), context.graph[key].settings(ModelConfig).architecture)


def weights_folder(context: JobContext, key: str) -> Path:
    """Return the folder of the model that another job saved, its hash checked, and note the type of its weights."""
    file = context.artefact_of(key, "model/model.safetensors")
    context.weights_dtype[key] = kind = float_types(read_tensors([file], str(file.parent)))
    if kind != "float32":
        print(f"mobilebert: {file.parent}: {kind} weights are loaded as float32", file=sys.stderr)
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
    """Step -> batch of segment pairs: input_ids, token_type_ids (B, T), masked_positions, masked_labels (N,),
    next_sentence_label (B,).

    `attention_mask` (B, T) is there only when something is padded, so that full batches need no mask. Each of several processes
    makes its own rows alone, with `whole` (3,) beside them (see `batches.split`).
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
    """Masked-LM logits (N, V) at the masked positions alone, NSP logits (B, 2), and what else `wanted` names."""
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
    """MLM + NSP, each a mean cross-entropy in nats (BERT's objective)."""
    out = heads(model, batch)
    mlm = F.cross_entropy(out["mlm"].float(), batch["masked_labels"]) * batch.get("masked_weight", 1.0)
    nsp = F.cross_entropy(out["nsp"].float(), batch["next_sentence_label"])
    return {"loss": mlm + nsp, "mlm": mlm, "nsp": nsp}


@torch.no_grad()
def heldout_figures(model: nn.Module, corpus: Path, length: int, device: str, count: int = HELDOUT_BATCHES) -> dict[str, float]:
    """Masked-LM loss (nats), its accuracy and that of next-sentence prediction on `count` batches of held-out pairs, the same
    for every model."""
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
    """The held-out masked-LM loss of one batch during training; `model` stays in the mode it is in."""
    training = model.training
    figures = heldout_figures(model.eval(), corpus, length, device, count=1)
    model.train(training)
    return {"heldout_mlm": figures["heldout_mlm_loss"]}


def heldout(context: JobContext, model: nn.Module, corpus: Path, length: int, device: str) -> None:
    """The held-out figures and the unigram entropy beside them into the record; leaves `model` in evaluation mode.

    Raises Diverged when the loss is not finite.
    """
    context.metrics |= heldout_figures(model.eval(), corpus, length, device)
    context.metrics["unigram_entropy"] = cast(float, context.record_of("data").metrics["unigram_entropy"])
    if not math.isfinite(context.metrics["heldout_mlm_loss"]):
        raise Diverged("held-out loss is not finite")
