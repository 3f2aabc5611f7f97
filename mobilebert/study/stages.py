"""Define the stages in one table, which the commands, the graph and the views read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage: a command, a rule of the workflow and a kind of record.

    help: what its command does.
    takes: the kind of name, "MODEL" or "MODEL/TASK"; None for a stage that runs once a study.
    gpu: whether it takes a whole GPU if the study's device is cuda.
    distributed: whether torchrun can start it in several processes.
    is_view: whether it only reads the records of other stages.
    """

    name: str
    help: str
    takes: str | None = None
    gpu: bool = False
    distributed: bool = False
    is_view: bool = False


_MODEL, _TASK = "MODEL", "MODEL/TASK"
STAGES = {
    stage.name: stage
    for stage in (
        Stage("data", "check the tables, build the tokenizer, tokenize the corpus"),
        Stage("pretrain", "pre-train MODEL with masked LM and next-sentence prediction", _MODEL, True, True),
        Stage("checkpoint", "take MODEL's weights from a published checkpoint", _MODEL),
        Stage("transfer", "transfer knowledge from the teacher to MODEL (PKT, JKT)", _MODEL, True, True),
        Stage("distill", "distil MODEL from its teacher in pre-training", _MODEL, True, True),
        Stage("attention", "keep attention maps of MODEL and its teacher on one held-out text", _MODEL),
        Stage("finetune", "fine-tune and score MODEL/TASK", _TASK, True),
        Stage("quantize", "quantize MODEL/TASK to int8 and score it again", _TASK),
        Stage("latency", "time models side by side: those that are named, else the study's"),
        Stage("report", "write tables, figures and the page", is_view=True),
        Stage("track", "write every record to MLflow", is_view=True),
        Stage("check", "compare the records with what the study expects; exit 1 if it does not hold", is_view=True),
    )
}
VIEWS = tuple(name for name, stage in STAGES.items() if stage.is_view)
