"""A published checkpoint in place of pre-training: a hub name or a folder in Hugging Face layout, checked against the row."""

from __future__ import annotations

from pathlib import Path

from mobilebert.config import Study
from mobilebert.errors import UserError
from mobilebert.records import Run, sha256
from mobilebert.training import pretraining


def run(run: Run, study: Study) -> None:
    source, wanted = run.job.config["source"], run.job.config["architecture"]
    local = Path(source)
    if source.startswith((".", "/", "~")) and not (local.expanduser() / "config.json").is_file():
        raise UserError(f"checkpoints.{run.job.name}: no config.json in {source}")
    try:
        model = pretraining.load_model(local.expanduser() if local.expanduser().is_dir() else source, wanted)
    except OSError as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"checkpoints.{run.job.name}: {source} cannot be loaded ({line}); a local folder works offline") from None
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        found = getattr(model.config, field)
        if found != wanted[field]:
            raise UserError(f"checkpoints.{run.job.name}: {source} has {field} {found}, the row needs {wanted[field]}")
    pretraining.save_model(run, model)
    run.label(study.labels("checkpoint"))
    run.details["source_sha256"] = sha256(run.folder / "model" / "model.safetensors")
