"""A published checkpoint in place of pre-training: a hub name or a folder in Hugging Face layout, checked against the row."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModel, PreTrainedModel
from transformers.utils import cached_file

from mobilebert.config import Study
from mobilebert.data.reading import lines
from mobilebert.data.tokenizer import vocab_hash
from mobilebert.errors import UserError
from mobilebert.modeling.loading import check_finite
from mobilebert.records import Run, sha256
from mobilebert.training import pretraining

# Fields that make a model another one; dropout and initial ranges do not.
SHAPES = {
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "embedding_size",
    "intra_bottleneck_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_feedforward_networks",
    "hidden_act",
    "normalization_type",
    "trigram_input",
    "use_bottleneck",
    "use_bottleneck_attention",
    "key_query_shared_bottleneck",
    "classifier_activation",
}


def load_baseline(source: str, revision: str) -> PreTrainedModel:
    """The body of any model that transformers' Auto classes can load; heads are left behind, a pooler may be new.

    Raises UserError for weights that the checkpoint lacks, of another shape or not finite.
    """
    model, report = AutoModel.from_pretrained(source, revision=revision, ignore_mismatched_sizes=True, output_loading_info=True)
    lost = {key for key in report["missing_keys"] if "pooler" not in key} | {key for key, *_ in report["mismatched_keys"]}
    if lost:
        raise UserError(f"{source}: {min(lost)} of {type(model).__name__} is not there, or of another shape")
    check_finite(model, source)
    return model


def vocabulary(source: str, revision: str) -> str | None:
    """The tokens that lie beside the weights, one a line: vocab.txt, or those of a WordPiece tokenizer.json; None: neither."""
    for name in ("vocab.txt", "tokenizer.json"):
        try:
            text = Path(cached_file(source, name, revision=revision)).read_bytes().decode()
            if name == "vocab.txt":
                return text
            ids = json.loads(text)["model"]["vocab"]
            return "\n".join(sorted(ids, key=ids.__getitem__))
        except (OSError, ValueError, KeyError, TypeError):  # not there; not a mapping, as other kinds of tokenizers have it
            continue
    return None


def run(run: Run, study: Study) -> None:
    weights, wanted = study.checkpoints[run.job.name], run.job.config["architecture"]
    source = weights.source
    if weights.is_local:
        file = Path(source).expanduser() / "model.safetensors"
        if not file.is_file():
            raise UserError(f"checkpoints.{run.job.name}: no model.safetensors in {source}")
        if sha256(file) != weights.sha256:
            raise UserError(f"checkpoints.{run.job.name}: {file} has sha256 {sha256(file)}, the study names {weights.sha256}")
        source = str(file.parent)
    try:
        if wanted["model_type"] == "auto":
            model = load_baseline(source, weights.revision)
        else:
            model = pretraining.load_model(source, wanted, weights.revision)
    except (OSError, ValueError) as error:  # not found; a model type that transformers does not know
        line = str(error).strip().splitlines()[0]
        raise UserError(f"checkpoints.{run.job.name}: {source} cannot be loaded ({line}); a local folder works offline") from None
    for field in SHAPES & wanted.keys():
        found = getattr(model.config, field, None)
        if found != wanted[field]:
            raise UserError(f"checkpoints.{run.job.name}: {source} has {field} {found}, the row needs {wanted[field]}")
    if vocab := vocabulary(source, weights.revision):
        run.details |= {"vocab": vocab_hash(vocab), "vocab_size": len(lines(vocab))}
    pretraining.save_model(run, model)
    run.label(study.labels("checkpoint"))
