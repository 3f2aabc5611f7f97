"""Define the GLUE and SQuAD tasks: their files, columns, labels and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

HIDDEN_LABEL = -1  # GLUE's value for a test label that it hides

STSB_RANGE = (0.0, 5.0)


@dataclass(frozen=True)
class Task:
    """One GLUE or SQuAD task.

    column: its heading in the paper's Table 4 (SQuAD: Table 5).
    folder: the folder of its files, below the data folder.
    text_columns: one sentence, or a pair in the order the model reads it.
    labels: class names by class index; None for regression and for SQuAD.
    num_labels: outputs of the head: the classes, 1 for regression, 2 (start and end) for SQuAD.
    splits: role -> file stem. `train` and `validation` are required if a task lists them;
        `validation_mismatched` and the test splits may be absent.
    metrics: names of the scores; the paper prints the first for the development set.
    test_metric: the score from the test server that Table 4 prints.
    """

    name: str
    column: str
    folder: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    num_labels: int
    splits: Mapping[str, str]
    metrics: tuple[str, ...]
    test_metric: str

    @property
    def is_squad(self) -> bool:
        """Return whether the task is SQuAD v1.1 or v2.0."""
        return self.folder.startswith("squad/")

    @property
    def is_regression(self) -> bool:
        """Return whether the label is a number (STS-B)."""
        return self.labels is None and not self.is_squad

    @property
    def columns(self) -> dict[str, str]:
        """Return the required columns and their kinds: text, class, score, integer or answers."""
        if self.is_squad:
            return {"id": "text", "title": "text", "context": "text", "question": "text", "answers": "answers"}
        kinds = dict.fromkeys(self.text_columns, "text")
        return {**kinds, "label": "score" if self.is_regression else "class", "idx": "integer"}


_SPLITS = MappingProxyType({"train": "train", "validation": "validation", "test": "test"})

_MNLI_SPLITS = MappingProxyType(
    {
        "train": "train",
        "validation": "validation_matched",
        "validation_mismatched": "validation_mismatched",
        "test": "test_matched",
        "test_mismatched": "test_mismatched",
    }
)

_PAIR = ("sentence1", "sentence2")

_NLI = ("premise", "hypothesis")

_ENTAILMENT = ("entailment", "not_entailment")

_THREE_WAY = ("entailment", "neutral", "contradiction")


def _glue(name, column, text_columns, labels, metrics, test_metric=None, splits=_SPLITS) -> Task:
    num_labels = len(labels) if labels else 1
    return Task(name, column, f"glue/{name}", text_columns, labels, num_labels, splits, metrics, test_metric or metrics[0])


def _squad(version: str) -> Task:
    splits = MappingProxyType({"train": "train", "validation": "validation"})
    return Task(
        name=f"squad_v{version}",
        column=f"SQuAD v{version}",
        folder=f"squad/v{version}",
        text_columns=("question", "context"),
        labels=None,
        num_labels=2,
        splits=splits,
        metrics=("f1", "exact_match"),
        test_metric="f1",
    )


# MRPC: Tables 6, 8 and 9 print development accuracy, Table 4 the test server's F1.
# Table 4 prints F1 for MRPC and QQP, and Spearman for STS-B.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        _glue("mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), test_metric="f1"),
        _glue("stsb", "STS-B", _PAIR, None, ("spearmanr", "pearson")),
        _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
        _glue("mnli", "MNLI-m", _NLI, _THREE_WAY, ("accuracy",), splits=_MNLI_SPLITS),
        _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
        _glue("rte", "RTE", _PAIR, _ENTAILMENT, ("accuracy",)),
        _glue("wnli", "WNLI", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
        _glue("ax", "AX", _NLI, _THREE_WAY, ("matthews_correlation",), splits=MappingProxyType({"test": "test"})),
        _squad("1.1"),
        _squad("2.0"),
    )
}
