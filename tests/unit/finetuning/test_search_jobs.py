"""The trials of a search as one resumable job: its lines, its summary, and kills."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_search import Stop, kill_after_the_first_trial, lasting, new_run, train, whole_job

from mobilebert.finetuning.trials import collect, constant_exact_match, subset_labels
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.util.errors import Diverged

torch.set_num_threads(1)


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


@pytest.mark.parametrize("steps", [0, 7, 61])
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


@pytest.mark.parametrize("runs", [1, 8, 10])
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
