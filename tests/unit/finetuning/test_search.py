"""The search of fine-tuning settings: its grid and its choice.

The grid is compared with the paper's, the choice with brute force.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_search import SETTING

from mobilebert.finetuning.search import Trial, grid, passes, rungs, search, total
from mobilebert.finetuning.trials import _rank, setting_labels
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.study.recipe import Finetune
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.util.errors import UserError

torch.set_num_threads(1)


def config(**changes):
    return SETTING.model_copy(update={"halving": False, **changes})


def test_the_papers_grid_is_that_of_section_4_3():
    """Three batch sizes, ten learning rates and nine numbers of epochs; with five seeds of the best
    setting, 275 trials a task."""
    found = grid(config(search="paper"))
    assert len({tuple(setting.values()) for setting in found}) == len(found) == 270
    assert {setting["batch_size"] for setting in found} == {16, 32, 48}
    assert sorted({setting["learning_rate"] for setting in found}) == [float(f"{step}e-5") for step in range(1, 11)]
    assert {setting["epochs"] for setting in found} == {2, 3, 4, 5, 6, 7, 8, 9, 10}
    assert total(config(search="paper", seeds=[0, 1, 2, 3, 4])) == 275
    assert passes(config(search="paper", seeds=[0, 1, 2, 3, 4])) == 275 * 6


def test_quick_and_none_try_settings_around_the_tasks_own():
    own = {"batch_size": 4, "learning_rate": 0.02, "epochs": 4}
    assert grid(config(search="none")) == [own]
    assert rungs(config(search="none")) == []
    assert total(config(search="none")) == 2
    found = grid(config(search="quick"))
    assert own in found
    assert {(setting["learning_rate"], setting["epochs"]) for setting in found} == {
        (rate, epochs) for rate in (0.01, 0.02, 0.04) for epochs in (4, 8)
    }


def test_halving_runs_270_ninths_90_thirds_and_30_whole():
    wanted = config(search="paper", halving=True)
    assert rungs(wanted) == [(270, 9), (90, 3), (30, 1)]
    assert passes(wanted) == pytest.approx((30 + 30 + 30 + 2) * 6)


def test_names_of_trials_are_distinct():
    for kind in ("paper", "quick"):
        names = {Trial(**item, seed=0, part=part, role="search").name for item in grid(config(search=kind)) for part in (9, 3, 1)}
        assert len(names) == 3 * len(grid(config(search=kind)))


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3]), st.floats(-1, 1)), min_size=6, max_size=6))
def test_the_plain_grid_chooses_the_best_and_of_equals_the_first(scores):
    chosen = search(config(), lambda trials: scores)
    finite = [-2 if value is None else value for value in scores]
    assert chosen == grid(config())[finite.index(max(finite))]


@given(st.permutations(range(6)))
def test_halving_keeps_the_best_third_of_each_rung(order):
    """A setting has one score in every rung: of six settings two stay, then one, the best."""
    value = dict(zip(map(str, grid(config())), order, strict=True))
    seen = []

    def scores_of(trials):
        seen.append([(trial.part, str(trial.setting)) for trial in trials])
        return [value[str(trial.setting)] for trial in trials]

    assert value[str(search(config(halving=True), scores_of))] == 5
    assert [(len(rung), rung[0][0]) for rung in seen] == [(6, 9), (2, 3), (1, 1)]
    assert {value[name] for _, name in seen[1]} == {4, 5}


def test_a_failed_trial_is_chosen_only_if_none_learnt(tmp_path, monkeypatch):
    """The fifth trial has a high score yet failed, as "duplicate" always does for QQP's F1."""

    def chosen(statuses, scores):
        records = [
            {"role": "search", "setting": {}, "status": status, "metrics": {} if score is None else {"f1": score}}
            for status, score in zip(statuses, scores, strict=True)
        ]
        return search(config(), lambda trials: [_rank(record, "f1") for record in records])

    scores = [0.3, 0.4, 0.2, None, 0.9, 0.1]
    assert chosen(["ok", "ok", "ok", "diverged", "failed", "ok"], scores) == grid(config())[1]
    assert chosen(["failed", "failed", "failed", "diverged", "failed", "failed"], scores) == grid(config())[4]
    assert chosen(["diverged"] * 5 + ["failed"], [None] * 5 + [-1.0]) == grid(config())[5]


def test_labels_say_how_the_setting_was_chosen():
    kind = {"task": "rte", "halving": False, "learning_rate": 1e-4, "batch_size": 8, "epochs": 3}

    def said(others, study="paper", **changes):
        return setting_labels(load_study(study), FinetuneConfig.model_construct(**kind | changes), others)

    assert said([], search="paper") == ["search: chosen among 270 settings on this development set"]
    halved = said(["scaled: widths / 8"], search="quick", halving=True)
    assert halved == ["search: chosen among 6 settings on this development set, by successive halving"]
    for others in ([], ["corpus: other books", "changed: pretrain precision bf16"]):
        assert said(others, search="none") == ["search: none, one setting a task"]
        assert said(others, "released", search="none")[1:] == ["changed: finetune precision bf16"]
    assert said(["corpus: other books", "scaled: widths / 8"], "released", search="none") == []


def test_a_diverged_run_is_never_chosen_before_another():
    assert search(config(), lambda trials: [None] * 5 + [-1.0]) == grid(config())[5]


def test_the_search_is_part_of_the_fingerprint():
    def prints(**changes):
        graph = build_graph(load_study("smoke").model_copy(update={"finetune": Finetune(**changes)}))
        return {key: graph[key].fingerprint for key in ("finetune/mobilebert/sst2", "finetune/bag-of-embeddings/sst2")}

    kinds = [prints(search=kind, halving=halving) for kind, halving in (("none", False), ("quick", False), ("quick", True))]
    kinds.append(prints())
    assert len({found["finetune/mobilebert/sst2"] for found in kinds}) == 4
    assert len({found["finetune/bag-of-embeddings/sst2"] for found in kinds}) == 1  # it has one setting and no search


def test_a_setting_that_the_papers_search_ignores_is_refused(tmp_path):
    file, head = tmp_path / "mine.yaml", "schema: 1\ndescription: d\nfinetune: "
    for text, key in (
        ("{epochs: 7}", "epochs"),
        ("{search: paper, batch_size: 8}", "batch_size"),
        ("{tasks: {rte: {length: 64, learning_rate: 1e-4}}}", r"tasks\.rte\.learning_rate"),
    ):
        file.write_text(head + text)
        with pytest.raises(UserError, match=f"finetune: {key}: search: paper tries its own values"):
            load_study(file)
    file.write_text(head + "{serch: none, epochs: 7}")
    with pytest.raises(UserError, match=r"finetune\.serch: unknown key"):  # not that the paper's search ignores epochs
        load_study(file)
    file.write_text(head + "{length: 64, tasks: {rte: {length: 64}}}")
    assert load_study(file).finetune.setting("rte")["length"] == 64
    file.write_text(head + "{search: quick, epochs: 7}")
    assert load_study(file).finetune.epochs == 7


def test_the_papers_search_is_the_default_and_the_small_studies_have_none():
    assert load_study("paper").finetune.search == "paper"
    assert not load_study("paper").finetune.halving
    assert {load_study(name).finetune.search for name in ("smoke", "cpu", "gpu", "released", "small-tasks")} == {"none"}


def test_halving_without_a_search_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("schema: 1\ndescription: d\nfinetune: {search: none, halving: true}\n")
    with pytest.raises(UserError, match="finetune: halving: true needs a search"):
        load_study(file)
    file.write_text("schema: 1\ndescription: d\nfinetune: {search: full}\n")
    with pytest.raises(UserError, match=r"finetune\.search: .*'paper', 'quick' or 'none'"):
        load_study(file)


def test_the_plan_counts_the_trials_of_the_search():
    """RTE: 2,490 rows, 277 for validation, length 128; 275 trials of 6 epochs on average."""
    from mobilebert.reporting.plan import plan

    study = Study(schema=1, description="d", run={"mobilebert": ("rte",)}, quantize={})
    line = next(line for line in plan(study, build_graph(study), "h100").splitlines() if line.startswith("finetune/"))
    assert float(line.split()[1]) == pytest.approx(275 * 128 * (6 * 2490 + 277), rel=0.005)
