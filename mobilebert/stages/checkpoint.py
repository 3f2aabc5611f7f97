"""Load a published checkpoint in place of pre-training and check that it has its row's shapes.

A row is a model of the paper's tables, or a baseline. The checkpoint is a hub name or a folder in
Hugging Face layout.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModel, BertForPreTraining, PreTrainedConfig, PreTrainedModel

from mobilebert.data.reading import lines
from mobilebert.data.tokenizer import vocab_hash
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.checkpoint_config import INDEX, WEIGHTS, read_json
from mobilebert.modeling.checkpoint_files import Files, checked
from mobilebert.modeling.heads import MobileBertForPreTraining
from mobilebert.modeling.loading import configuration, load
from mobilebert.pretraining import objective
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import CheckpointConfig
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

# Fields that must equal the row's. Dropout and initial ranges may differ.
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
    """Return the float32 body of any model that transformers' Auto classes load.

    Heads are dropped; a missing pooler is initialised. Raises UserError as `loading.load` does.
    """
    with checked(source, revision) as files:
        return load(AutoModel, files)[0]


def kind_of(model_type: str) -> type:
    """Return the class that reads a row's weights.

    It is the pre-training model for the paper's rows and the body for a baseline.
    """
    if model_type == "mobilebert":
        return MobileBertForPreTraining
    return BertForPreTraining if model_type == "bert" else AutoModel


def vocabulary(files: Files) -> str | None:
    """Return the tokens in the weights' folder, one a line.

    They are those of vocab.txt, else of a WordPiece tokenizer.json. Return None if there is neither
    or the tokenizer is of another kind. Raises UserError if a file cannot be read.
    """
    text, rules = files.folder / "vocab.txt", files.folder / "tokenizer.json"
    if text.is_file():
        try:
            return text.read_bytes().decode()
        except UnicodeDecodeError:
            raise UserError(f"{files.source}: vocab.txt is not UTF-8") from None
    try:
        ids = read_json(rules, files.source)["model"]["vocab"] if rules.is_file() else {}
        return "\n".join(sorted(ids, key=ids.__getitem__)) or None
    except (KeyError, TypeError, AttributeError):  # the vocabulary is no mapping in other kinds of tokenizers
        return None


def main(context: JobContext, study: Study) -> None:
    """Save the checkpoint as the row's model.

    Raises UserError, naming the study's key, if it cannot be loaded or is not the row's model.
    """
    weights, wanted = study.checkpoints[context.job.name], context.settings(CheckpointConfig).architecture
    where, source = f"checkpoints.{context.job.name}", weights.source
    if weights.is_local:
        source = str(Path(source).expanduser())
        assert weights.sha256 is not None
        check_pin(Path(source), weights.sha256, where)
    try:
        with checked(source, weights.revision) as files:
            kind = kind_of(wanted["model_type"])
            config = configuration(files, kind)
            check_form(config, wanted, f"{where}: {source}")
            model, _ = load(kind, files, config)
            context.weights_dtype[weights.source] = files.type
            if vocab := vocabulary(files):
                size = len(lines(vocab))
                if size > files.values.get("vocab_size", size):
                    raise UserError(f"{source}: its tokenizer has {size} tokens, its model {files.values['vocab_size']}")
                context.details |= {"vocab": vocab_hash(vocab), "vocab_size": size}
            objective.save_model(context, model, files.folder)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    context.label(study.labels("checkpoint"))


def check_pin(folder: Path, pinned: str, where: str) -> None:
    """Raise UserError if model.safetensors is missing or its sha256 is not the one in the study."""
    file = folder / WEIGHTS
    if not file.is_file():
        hint = f'; {INDEX} is there: a study pins one file, so save the model again with max_shard_size="100GB"'
        raise UserError(f"{where}: no {WEIGHTS} in {folder}{hint if (folder / INDEX).exists() else ''}")
    if file_sha256(file) != pinned:
        raise UserError(f"{where}: {file} has sha256 {file_sha256(file)}, the study names {pinned}")


def check_form(config: PreTrainedConfig, wanted: dict, where: str) -> None:
    """Raise UserError if a field of SHAPES differs from the row's."""
    for field in sorted(SHAPES & wanted.keys()):
        found = getattr(config, field, None)
        if found != wanted[field]:
            raise UserError(f"{where} has {field} {found}, the row needs {wanted[field]}")
