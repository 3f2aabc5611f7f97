"""A fine-tuning job that trains its trials in stacks: its lines, memory, kills."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import toy_search as toy
import yaml

from mobilebert.cli.main import main
from mobilebert.finetuning.stacked import train as together
from mobilebert.finetuning.task import BagOfEmbeddings
from mobilebert.finetuning.trials import collect, run_all_trials

torch.set_num_threads(1)


def several(part, trials, before=lambda model: None):
    """Train several trials as `toy_search.train` trains one."""

    def new(trial):
        torch.manual_seed(trial.seed)
        model = BagOfEmbeddings(12, 8, 2).train()
        model.register_forward_pre_hook(lambda model, _: before(model))
        return model

    def seen(trial):
        examples = toy.Rows(0).examples
        return examples if trial.part == 1 else examples.part(36 // trial.part)

    trained = together.fit(part, trials, new, seen, toy.SETTING, "cpu")

    def one(part, trial, out):
        return toy.scores(trained(trial), out)

    return one


def whole_job(folder, train_together=several, most=3):
    run = toy.new_run(folder)
    collect(run, run_all_trials(run, toy.train, train_together, most), "matthews_correlation")
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_job(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def alone_job(tmp_path_factory):
    return toy.whole_job(tmp_path_factory.mktemp("alone"))


def sizes_of(run, alone):
    """Return how many trials each trial was trained with, or None if alone. Apart from that, the
    lines of the job must equal those of `alone`."""
    (mine, *figures), (theirs, *expected) = toy.lasting(run), toy.lasting(alone)
    sizes = [line["details"].pop("stacked_with", None) for line in mine]
    assert [line["run"] for line in mine] == [line["run"] for line in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a.pop("loss") == pytest.approx(b.pop("loss"), rel=1e-4)
        assert a == b
    assert figures[:2] == expected[:2]
    assert figures[2].keys() == expected[2].keys()
    assert run.details.keys() - {"stacked_with"} == alone.details.keys() - {"stacked_with"}
    assert not list(run.state.rglob("*.safetensors"))
    return sizes


def test_a_job_of_stacks_writes_the_same_as_a_job_of_single_trials(whole, alone_job):
    """Lines differ only in the size of the stack: 2 x 3, 2 and 1 in the rungs, 2 seeds."""
    sizes = sizes_of(whole, alone_job)
    assert sizes[:6] == [3] * 6
    assert sizes[8:] == [None, 2, 2]
    assert whole.details["stacked_with"] == 2


@pytest.mark.parametrize("room", [1, 2])
def test_a_stack_that_runs_out_of_memory_is_split(tmp_path, alone_job, room):
    """Three trials become 1 + 2, or each alone. The device is full at the third step."""
    passes = []

    def some(part, trials):
        passes.clear()
        return several(part, trials, lambda model: full(len(trials)))

    def full(count):
        passes.append(count)
        if count > room and len(passes) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    sizes = sizes_of(whole_job(tmp_path, some), alone_job)
    assert Counter(sizes[:6]) == ({2: 4, None: 2} if room == 2 else {None: 6})
    assert sizes[9:] == [2 if room == 2 else None] * 2


@pytest.mark.parametrize("steps", [0, 40])
def test_a_stopped_job_of_stacks_resumes_there(tmp_path, whole, steps, monkeypatch):
    """The job stops after `steps` passes of its models; it saves a state at every second step."""
    monkeypatch.setattr("mobilebert.finetuning.task.CHECKPOINT_EVERY", 2)
    left, made = [steps], []

    def stop(model):
        if not left[0]:
            raise toy.Stop
        left[0] -= 1

    with pytest.raises(toy.Stop):
        whole_job(tmp_path, lambda part, trials: several(part, trials, stop))
    done = {path.stem for path in (tmp_path / "study").rglob("runs/*.json")}

    def counted(part, trials):
        one = several(part, trials)
        return lambda part, trial, out: made.append(trial.name) or one(part, trial, out)

    assert toy.lasting(whole_job(tmp_path, counted)) == toy.lasting(whole)
    assert not done & set(made)


@pytest.mark.parametrize("runs", [1, 4])
def test_a_job_stopped_between_the_trials_of_a_stack_repeats_none(tmp_path, whole, runs):
    scored, steps = [], []

    def count(model):
        if model.training:
            steps.append(1)

    def counted(part, trials):
        one = several(part, trials, count)

        def score(part, trial, out):
            if len(scored) == runs:
                raise toy.Stop
            scored.append(trial.name)
            return one(part, trial, out)

        return score

    with pytest.raises(toy.Stop):
        whole_job(tmp_path / "stopped", counted)
    runs = 99
    assert toy.lasting(whole_job(tmp_path / "stopped", counted)) == toy.lasting(whole)
    assert len(scored) == len(set(scored))
    made = len(steps)
    scored.clear()
    whole_job(tmp_path / "at once", counted)
    assert made == len(steps) - made + 2  # two passes before the stack works: one of a model, one of the stack


def test_a_trial_alone_after_a_kill_keeps_the_curves_of_its_stack(tmp_path, whole):
    """The job stops when one seed of the last stack has its record; then each trial runs alone."""

    def broken(part, trials):
        one = several(part, trials)

        def score(part, trial, out):
            if trial == trials[1] and trial.role == "seed":
                raise toy.Stop
            return one(part, trial, out)

        return score

    with pytest.raises(toy.Stop):
        whole_job(tmp_path, broken)
    run = whole_job(tmp_path, most=1)
    assert run.curves.keys() == whole.curves.keys()
    for name, curve in whole.curves.items():
        assert [step for step, _ in run.curves[name]] == [step for step, _ in curve]


def test_a_killed_job_of_stacks_goes_on(tmp_path, whole):
    moment = toy.kill_after_the_first_trial(__file__, tmp_path)
    assert toy.lasting(whole_job(tmp_path)) == toy.lasting(whole), moment


def test_a_model_that_cannot_be_stacked_is_trained_alone(tmp_path):
    run = whole_job(tmp_path / "none", lambda part, trials: None)
    assert toy.lasting(run) == toy.lasting(toy.whole_job(tmp_path / "alone"))


def test_the_program_trains_as_many_trials_together_as_the_study_says(tmp_path):
    content = {
        "schema": 1, "description": "d", "device": "cpu", "data": {"source": "synthetic", "vocab_size": 600, "documents": 100},
        "scale": {"width_divisor": 8, "layer_divisor": 12, "max_position_embeddings": 80}, "pretrain": {"length": 32},
        "search": {"length": 32}, "transfer": {"length": 32}, "distill": {"length": 32}, "latency": {"length": 32},
        "run": {"bag-of-embeddings": ["sst2"]}, "quantize": {},
    }  # fmt: skip
    tuning = {"search": "none", "seeds": [0, 1], "epochs": 2, "length": 48, "doc_stride": 32, "max_query_length": 16}
    tuning["tasks"] = {"squad_v1.1": {"length": 80}, "squad_v2.0": {"length": 80}}
    file, found = tmp_path / "mine.yaml", []
    folder = tmp_path / "results/mine/finetune/bag-of-embeddings/sst2"
    for count in (1, 2):
        file.write_text(yaml.safe_dump(content | {"finetune": tuning | {"together": count}}))
        for stage_of in (["data"], ["finetune", "bag-of-embeddings/sst2"]):
            assert main([*stage_of, "--study", str(file), "--results", str(tmp_path / "results")]) == 0
        found.append(json.loads((folder / "result.json").read_text()))
        (folder / "result.json").unlink()
    alone, together = found
    assert together["details"].pop("stacked_with") == 2
    assert together["details"].keys() == alone["details"].keys()
    for key in ("fingerprint", "status", "metrics", "samples", "labels"):
        assert together[key] == alone[key]
    for name, curve in alone["curves"].items():
        assert [value for _, value in together["curves"][name]] == pytest.approx([value for _, value in curve], rel=1e-4)


if __name__ == "__main__":  # the process to kill
    whole_job(Path(sys.argv[1]), lambda part, trials: several(part, trials, lambda model: time.sleep(0.004)))
