"""Keep attention maps of a student and its teacher on one held-out text.

The paper's appendix shows such maps. The models read the text once, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch

from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.distillation.transfer import copy_outside_encoder, shuffle_weights
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import Attention, AttentionMaps
from mobilebert.modeling.heads import MobileBertForPreTraining
from mobilebert.pretraining import objective
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import AttentionConfig, ModelConfig, StudentConfig
from mobilebert.util.errors import Diverged

TOKENS, HEADS = 16, 4  # of a map; a record of 4 models with 2 layers each stays below 200 KB
TEXT = "corpus/heldout.tokens.npy"


def main(context: JobContext, study: Study) -> str | None:
    """Keep the maps in the record.

    Return a reason, which makes the record void, if a model's file or the text is not on this
    machine: records may have been copied here without the teacher.
    """
    for key in context.job.inputs:
        file = TEXT if key == "data" else "model/model.safetensors"
        if not (record_folder(context.results, context.study, context.graph[key]) / file).is_file():
            return f"{file} of {key} is not on this machine"
    inputs, tokens = text(context)
    found = [AttentionMaps(model=name, weights=weights, layers=maps(model, inputs)) for name, weights, model in models(context)]
    context.attention = Attention(tokens=tuple(tokens), maps=tuple(found))
    context.label([], *context.job.inputs[1:])
    return None


def models(context: JobContext) -> Iterator[tuple[str, str, MobileBertForPreTraining]]:
    """Yield name, stage of the weights and model.

    They are the teacher, then the student before its first step, after knowledge transfer (PKT,
    JKT) and after distillation.
    """
    student, (first, *later) = context.job.name, context.job.inputs[1:]
    teacher = _input(context, first)
    yield context.settings(AttentionConfig).teacher, first.partition("/")[0], teacher
    yield student, "initial", initial(context.graph[later[0]].settings(StudentConfig), teacher)
    del teacher  # the paper's has 1.2 GB
    for key in later:
        yield student, key.partition("/")[0], _input(context, key)


def _input(context: JobContext, key: str) -> MobileBertForPreTraining:
    return cast(MobileBertForPreTraining, objective.input_model(context, key).eval())


def initial(config: StudentConfig, teacher: MobileBertForPreTraining) -> MobileBertForPreTraining:
    """Return the student as its training begins; a control's teacher is shuffled in place."""
    if config.control == "shuffled-teacher":
        shuffle_weights(teacher, config.seed)
    torch.manual_seed(config.seed)
    student = cast(MobileBertForPreTraining, objective.new_model(config.architecture).eval())
    if config.control != "fresh-student":
        copy_outside_encoder(student, teacher)
    return student


def text(context: JobContext) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the first held-out pair of segments, without masks, as model inputs and as tokens."""
    keys = context.job.inputs[1:]
    longest = min(context.graph[key].settings(ModelConfig).architecture["max_position_embeddings"] for key in keys)
    corpus = context.artefact_of("data", TEXT).parent
    batch = objective.batches(corpus, "heldout", min(TOKENS, longest), 1, seed=20)(0)
    ids = batch["input_ids"].flatten()
    ids[batch["masked_positions"]] = batch["masked_labels"]
    real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else len(ids)
    tokenizer = load_tokenizer(corpus.parent / "tokenizer")
    inputs = {"input_ids": ids[None, :real], "token_type_ids": batch["token_type_ids"][:, :real]}
    return inputs, [tokenizer.id_to_token(token) or "" for token in inputs["input_ids"][0].tolist()]


@torch.no_grad()
def maps(model: MobileBertForPreTraining, inputs: dict[str, torch.Tensor]) -> dict[int, list]:
    """Return the maps of two layers, the first and the middle one: of 24 the 1st and the 12th, as
    in the paper.

    Each is head -> looking token -> share of each token, to three digits. Raises Diverged if a
    share is not finite.
    """
    last = model.config.num_hidden_layers
    wanted = sorted({1, min(last, max(2, last // 2))})
    found = model.mobilebert(**inputs, attention_layers=[layer - 1 for layer in wanted]).attentions
    layers = {layer: found[layer - 1][0, :HEADS] for layer in wanted}
    if not all(torch.isfinite(heads).all() for heads in layers.values()):
        raise Diverged("attention is not finite")
    return {
        layer: [[[round(share, 3) for share in row] for row in head] for head in heads.tolist()]
        for layer, heads in layers.items()
    }
