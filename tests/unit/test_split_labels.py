"""The split of a batch is a label if it decided the dropout; the cell is judged all the same."""

from types import SimpleNamespace

import pytest

from mobilebert.finetuning.trials import setting_labels
from mobilebert.reporting.verdicts import cell
from mobilebert.stages.pretrain import split_labels
from mobilebert.study.stage_config import FinetuneConfig

SPLIT = "split: 2 processes x 3 micro-batches, each with a dropout of its own"


@pytest.mark.parametrize(
    ("by_row", "dropout", "processes", "accumulate", "labels"),
    [
        (False, True, 2, 3, [SPLIT]),
        (False, True, 1, 1, []),
        (False, False, 2, 3, []),  # a student
        (True, True, 2, 3, []),  # on a CPU
    ],
)
def test_a_split_is_named_if_it_decided_the_dropout(by_row, dropout, processes, accumulate, labels):
    split = {"processes": processes, "accumulate": accumulate}
    assert split_labels(SimpleNamespace(by_row=by_row), dropout, split) == labels


def test_a_cell_with_a_split_is_judged():
    assert cell(80.0, 80.1, 0.5, [SPLIT]) == "match"
    assert cell(80.0, 80.1, 0.5, [SPLIT, "scaled: widths / 8"]) == "not judged"


def test_a_split_hides_no_other_footnote():
    """A cell that is judged also says that no setting was searched for."""
    study = SimpleNamespace(finetune=SimpleNamespace(changed=lambda task: ["changed: finetune epochs 1"]))
    found = setting_labels(study, FinetuneConfig.model_construct(search="none", task="sst2"), [SPLIT])
    assert found == ["search: none, one setting a task", "changed: finetune epochs 1"]
