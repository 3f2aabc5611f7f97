"""The search of fine-tuning settings: its grid, its choice, and kills.

The grid is compared with the paper's, the choice with brute force.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilebert.data.examples import Examples
from mobilebert.evaluation.glue import score, share
from mobilebert.finetuning.search import Trial, grid, passes, rungs, search, total
from mobilebert.finetuning.task import BagOfEmbeddings, finetune, forward_of
from mobilebert.finetuning.trials import _rank, collect, constant_exact_match, run_all_trials, setting_labels, subset_labels
from mobilebert.jobs.context import JobContext
from mobilebert.study.graph import build_graph
from mobilebert.study.job import Job
from mobilebert.study.load import load_study
from mobilebert.study.recipe import Finetune
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.util.errors import Diverged, UserError

torch.set_num_threads(1)
TASK = {
    "task": "cola", "recipe": "paper", "precision": "fp32", "warmup_share": 0.1, "weight_decay": 0.01, "seeds": [0, 1],
    "search": "quick", "halving": True, "batch_size": 4, "learning_rate": 0.02, "epochs": 4,
    "length": 16, "train_rows": None, "eval_rows": None,
    "architecture": {"model_type": "bag-of-embeddings"},
}  # fmt: skip
SETTING = FinetuneConfig.model_construct(**TASK)


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


# --- one resumable job


class Rows:
    """36 rows that a bag of embeddings learns: the vocabulary's first half is class 0."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        ids = [rng.integers(2, 12, 6).astype(np.int32) for _ in range(36)]
        labels = np.array([row[0] > 6 for row in ids], np.int64)
        ids = [np.where(row[0] > 6, row % 5 + 7, row % 5 + 2).astype(np.int32) for row in ids]
        self.examples = Examples(ids, [np.zeros(6, np.int8)] * 36, 0, {"labels": labels})


def new_run(folder: Path) -> JobContext:
    run = JobContext(Job("finetune", "toy/cola", TASK, (), "a" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def train(part, trial, out, stop=lambda: None):
    rows = Rows(0).examples
    torch.manual_seed(trial.seed)
    model = BagOfEmbeddings(12, 8, 2).train()
    seen = rows if trial.part == 1 else rows.part(36 // trial.part)
    model.register_forward_pre_hook(lambda *_: stop())
    finetune(part, seen, model, SETTING.model_copy(update=trial.setting), trial.seed, "cpu", trial.name)
    return scores(model, out)


def scores(model, out):
    test = Rows(1).examples
    batch = test.batch(np.arange(36))
    predicted = forward_of(model, "cpu")(batch)["logits"].argmax(-1)
    (out / "predictions.txt").write_text(" ".join(map(str, predicted)))
    labels = test.targets["labels"]
    return score("cola", predicted, labels), {"rows": {"validation": 36}, "shares": {"validation": share(predicted, 2)}}


def whole_job(folder, train=train):
    run = new_run(folder)
    collect(run, run_all_trials(run, train), "matthews_correlation")
    return run


def lasting(run):
    """Return the output of a job that must not depend on kills: everything but times."""
    speed = ("_per_second", "_data_wait_share", "_first_step_seconds")
    lines = [json.loads(line) for line in (run.folder / "runs.jsonl").read_text().splitlines()]
    for line in lines:
        del line["started"], line["seconds"]
        line["training"] = {key: value for key, value in line["training"].items() if not key.endswith(speed)}
    details = {key: value for key, value in run.details.items() if not key.endswith(speed)}
    return lines, run.metrics, run.samples, run.curves, details


@pytest.fixture(scope="module")
def passes_made():
    """Return a list with one item for each forward pass of the whole job; `whole` fills it."""
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, passes_made):
    return whole_job(tmp_path_factory.mktemp("whole"), lambda *arguments: train(*arguments, lambda: passes_made.append(1)))


def test_a_job_writes_one_line_per_trial_and_one_summary(whole):
    lines, metrics, samples, curves, details = lasting(whole)
    assert [(line["role"], line["part"]) for line in lines] == (
        [("search", 9)] * 6 + [("search", 3)] * 2 + [("search", 1)] + [("seed", 1)] * 2
    )
    assert set(lines[0]["setting"]) == {"batch_size", "learning_rate", "epochs"}
    assert lines[-1]["setting"] == lines[8]["setting"] == details["setting"]
    values = samples["matthews_correlation"]
    assert values == [line["metrics"]["matthews_correlation"] for line in lines[-2:]]
    figures = details["summary"]["matthews_correlation"]
    assert figures["median"] == metrics["matthews_correlation"] == pytest.approx(np.median(values))
    assert (figures["mean"], figures["sd"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (figures["best"], figures["n"]) == (max(values), 2)
    assert details["search"]["runs"] == 9
    assert set(curves) == {"seed0_loss", "seed1_loss"}  # no curves of the nine trials of the search
    assert {"runs.jsonl", "predictions.txt", "runs/seed0/predictions.txt", "runs/seed1/predictions.txt"} == set(whole.artefacts)
    assert not list(whole.state.rglob("*.safetensors"))


def test_the_kept_model_is_of_the_best_seed_that_learnt(tmp_path):
    """A failed trial can score higher; its model is kept only if no trial learnt."""
    for failed, kept in ((("failed", "ok", "ok"), 2), (("failed", "failed", "failed"), 0)):
        run = new_run(tmp_path / str(kept))
        runs = []
        for seed, (status, value) in enumerate(zip(failed, (0.9, 0.4, 0.6), strict=True)):
            (run.state / f"seed{seed}").mkdir()
            (run.state / f"seed{seed}" / "predictions.txt").write_text(str(seed))
            record = {"run": f"seed{seed}", "role": "seed", "seed": seed, "status": status, "setting": {}, "training": {}}
            runs.append({**record, "reason": None, "metrics": {"matthews_correlation": value}, "details": {}})
        collect(run, runs, "matthews_correlation")
        assert run.details["best_seed"] == kept
        assert (run.folder / "predictions.txt").read_text() == str(kept)
        assert run.metrics["matthews_correlation"] == 0.6  # the median counts them all


def test_one_bar_counts_the_whole_search(tmp_path, capsys):
    whole_job(tmp_path)
    assert "finetune/toy/cola runs: 100%" in (shown := capsys.readouterr().err)
    assert "11/11" in shown


def test_the_constant_answer_that_a_trial_on_squad_must_beat(tmp_path):
    """One of four questions is answered by the context's first word, two by nothing: half."""
    frame = pd.DataFrame({
        "id": list("abcd"), "context": ["Rome fell.", "It is so.", "Sky.", "Sun."], "question": ["?"] * 4,
        "answers": [{"text": text, "answer_start": [0] * len(text)} for text in (["rome"], ["so"], [], [])],
    })  # fmt: skip
    file = tmp_path / "tasks/squad_v2.0/validation.parquet"
    file.parent.mkdir(parents=True)
    frame.to_parquet(file)
    setting = FinetuneConfig.model_construct(task="squad_v2.0", eval_rows=None)
    assert constant_exact_match(tmp_path, setting) == {"constant_exact_match": 0.5}
    frame.iloc[[0, 1]].to_parquet(file)
    assert constant_exact_match(tmp_path, setting) == {"constant_exact_match": 0.5}  # the first word answers one of two


class Stop(Exception):
    pass


@pytest.mark.parametrize("steps", [0, 1, 7, 30, 61, 95])
def test_a_job_stopped_inside_a_trial_resumes_there(tmp_path, whole, passes_made, steps, monkeypatch):
    """The job stops after `steps` steps; it saves a state at every second step."""
    left = [steps]

    def stop():
        if not left[0]:
            raise Stop
        left[0] -= 1

    monkeypatch.setattr("mobilebert.finetuning.task.CHECKPOINT_EVERY", 2)
    with pytest.raises(Stop):
        whole_job(tmp_path, lambda *arguments: train(*arguments, stop=stop))
    done = {path.stem for path in (tmp_path / "study").rglob("runs/*.json")}
    made, count = [], [0]

    def counted(part, trial, out):
        made.append(trial.name)
        return train(part, trial, out, lambda: count.__setitem__(0, count[0] + 1))

    again = whole_job(tmp_path, counted)
    assert lasting(again) == lasting(whole)
    assert not done & set(made)  # finished trials do not run again
    left_over = len(passes_made) - steps
    assert left_over <= count[0] <= left_over + 2  # only steps since the last state, or the scoring, run twice


@pytest.mark.parametrize("runs", [1, 6, 8, 9, 10])
def test_a_job_stopped_between_trials_repeats_none(tmp_path, whole, runs):
    made = []

    def stopping(part, trial, out):
        if len(made) == runs:
            raise Stop
        made.append(trial.name)
        return train(part, trial, out)

    with pytest.raises(Stop):
        whole_job(tmp_path, stopping)
    runs = 99
    assert lasting(whole_job(tmp_path, stopping)) == lasting(whole)
    assert len(made) == len(set(made)) == 11


def kill_after_the_first_trial(program: str, folder: Path) -> float:
    """Run a program, kill it soon after its first trial; return how many seconds after."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # pytest's: it has tests/support
    process = subprocess.Popen([sys.executable, program, str(folder)], stderr=subprocess.PIPE, env=environment)
    try:
        while process.poll() is None and not list(folder.rglob("runs/*.json")):
            time.sleep(0.005)
        moment = random.uniform(0, 0.3)
        time.sleep(moment)
    finally:
        process.kill()
        error = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, error
    return moment


def test_a_killed_job_goes_on(tmp_path, whole):
    moment = kill_after_the_first_trial(__file__, tmp_path)
    assert lasting(whole_job(tmp_path)) == lasting(whole), moment


def test_a_diverged_trial_is_counted_and_the_job_continues(tmp_path):
    def partly(part, trial, out):
        if trial.seed == 0 or trial.epochs == 4:
            raise Diverged("loss nan")
        return train(part, trial, out)

    run = whole_job(tmp_path, partly)
    assert run.details["statuses"][0] == "diverged"
    assert run.samples["matthews_correlation"][0] is None
    assert run.metrics["failed_share"] >= 0.5
    assert run.details["setting"]["epochs"] == 8
    assert run.details["search"]["diverged"] >= 3


def test_a_job_whose_every_seed_diverged_has_diverged(tmp_path):
    def never(part, trial, out):
        raise Diverged("loss nan at step 3")

    with pytest.raises(Diverged, match="every seed: loss nan at step 3"):
        whole_job(tmp_path, never)
    assert len((new_run(tmp_path).folder / "runs.jsonl").read_text().splitlines()) == 11


if __name__ == "__main__":  # the process to kill
    whole_job(Path(sys.argv[1]), lambda *arguments: train(*arguments, stop=lambda: time.sleep(0.002)))


@pytest.mark.parametrize(("rows", "used", "labels"), [(9, 9, []), (9, 4, ["subset (validation): 4 rows drawn at random"])])
def test_a_whole_development_set_is_not_labelled_a_subset(rows, used, labels):
    data = SimpleNamespace(details={"labels": {}, "rows": {"rte": {"validation": rows}}})
    run = SimpleNamespace(record_of=lambda key: data, details={"rows": {"validation": used}})
    assert subset_labels(run, "rte", 5, 5, FinetuneConfig.model_construct(eval_rows=used)) == labels
