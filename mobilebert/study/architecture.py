"""Compute the architecture of a model row at a study's scale, as a plain dictionary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mobilebert.modeling.presets import check, preset
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError

WIDTHS = ("hidden_size", "embedding_size", "intra_bottleneck_size", "intermediate_size")


def architecture(study: Study, model: str, full_size: bool = False) -> dict:
    """Return the `MobileBertConfig` or `BertConfig` fields of a model row, `model_type` included.

    The study's scale divides the sizes; with `full_size` they stay the paper's. A row with
    published weights (preset `checkpoint`) keeps its size, and its fields are only the vocabulary's
    size and the model type "auto". Raises UserError if the divisor does not divide a width, or if
    no valid model is left at this scale.
    """
    row = study.models[model]
    if row.preset == "checkpoint":  # its sizes are known once it is loaded; its vocabulary must be the study's
        return {"model_type": "auto", "vocab_size": study.data.vocab_size or preset("bert-base")["vocab_size"]}
    if row.preset == "bag-of-embeddings":
        base = preset("mobilebert")
        fields: dict[str, Any] = {
            "model_type": "bag-of-embeddings",
            "hidden_size": base["hidden_size"],
            "vocab_size": base["vocab_size"],
        }
    else:
        fields = preset(row.preset, **row.overrides)
    if full_size:
        return fields
    scale = study.scale
    for key in WIDTHS:
        if key in fields:
            if fields[key] % scale.width_divisor:
                raise UserError(
                    f"{study.name}: scale.width_divisor: {scale.width_divisor} does not divide {key} {fields[key]} of {model}"
                )
            fields[key] //= scale.width_divisor
    if "num_hidden_layers" in fields:
        fields["num_hidden_layers"] = max(1, round(fields["num_hidden_layers"] / scale.layer_divisor))
        if scale.max_position_embeddings:
            fields["max_position_embeddings"] = scale.max_position_embeddings
        if scale.residual_init and fields["model_type"] == "mobilebert":
            fields["residual_init_scale"] = (2 * fields["num_hidden_layers"]) ** -0.5
    if study.data.vocab_size:
        fields["vocab_size"] = study.data.vocab_size
    if fields["model_type"] != "bag-of-embeddings":
        try:
            check(fields)
        except UserError as error:
            raise UserError(f"{study.name}: scale: no model {model} at this scale: {error}") from None
    return fields


def mismatch(student: Mapping, teacher: Mapping, losses: Collection[str] = ("fmt", "at")) -> str | None:
    """Return in one line why the teacher cannot teach the student; None if it can.

    Distilling the logits of masked words needs equal vocabularies. Any of `losses` needs equal
    numbers of layers and equal hidden sizes; "at" also needs equal numbers of attention heads.
    """
    fields = ["vocab_size"]
    if losses:
        fields += ["num_hidden_layers", "hidden_size"]
    if "at" in losses:
        fields.append("num_attention_heads")
    for field in fields:
        mine, theirs = student[field], teacher[field]
        if mine != theirs:
            return f"{field}: the student has {mine}, the teacher {theirs}; knowledge transfer needs them equal"
    return None
