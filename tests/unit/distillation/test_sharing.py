"""Several students that share one teacher: order of requests, who may join, and errors of one."""

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import Recorder
from torch import nn

from mobilebert.distillation import shared_teacher
from mobilebert.distillation.shared_teacher import SharedPass, Stopped, jobs_sharing_teacher, train_together
from mobilebert.jobs import locks
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.execute import execute_job
from mobilebert.study.graph import build_graph
from mobilebert.study.job import Job
from mobilebert.study.load import load_study
from mobilebert.training import checkpoint, optim
from mobilebert.training.accelerated import cuda_graphs
from mobilebert.training.distributed.processes import World
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import Diverged, UserError

torch.set_num_threads(1)
STEPS, EVERY = 9, 4


def join(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=4), st.integers(1, 3))
def test_each_result_is_computed_once_in_order_and_one_member_works_at_a_time(spans, parts):
    """Members begin at different steps, some after others have ended."""
    shared, made, got = SharedPass([str(index) for index in range(len(spans))]), [], {}
    working, alone = threading.Lock(), []

    def member(name, start, steps):
        try:
            for step, part in itertools.product(range(start, start + steps), range(parts)):
                got.setdefault(name, []).append(shared.get(name, step, lambda key=(step, part): made.append(key) or key))
                alone.append(working.acquire(blocking=False))
                time.sleep(0)
                working.release()
        finally:
            shared.leave(name)

    join([threading.Thread(target=member, args=(str(index), *span), daemon=True) for index, span in enumerate(spans)])
    for index, (start, steps) in enumerate(spans):
        assert got[str(index)] == [(step, part) for step in range(start, start + steps) for part in range(parts)]
    assert made == sorted({key for keys in got.values() for key in keys})
    assert all(alone)
    assert shared.kept is None


def test_a_failed_computation_fails_one_member_alone():
    """The next member that asks computes it."""
    shared, tries, got = SharedPass(["a", "b"]), [], {}

    def make():
        tries.append(None)
        if len(tries) == 1:
            raise MemoryError
        return "made"

    def member(name):
        try:
            got[name] = shared.get(name, 0, make)
        except MemoryError:
            got[name] = "failed"
        finally:
            shared.leave(name)

    join([threading.Thread(target=member, args=(name,), daemon=True) for name in "ab"])
    assert sorted(got.values()) == ["failed", "made"]
    assert len(tries) == 2


def test_a_waiting_member_raises_if_the_pass_is_stopped():
    shared = SharedPass(["a", "b"])
    threading.Timer(0.05, shared.stop).start()
    with pytest.raises(Stopped):
        shared.get("a", 0, lambda: None)


# --- training


class Toy(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.dense = nn.Linear(4, 4)


def toy(folder, names, fail=None, at=5, error=None, **changes):
    """Train toys together towards a target that is computed once a step; one may fail at a step.
    Return their weights, the steps saved last, the steps of each computed target, and the error."""
    made, models = [], {}
    runs = [JobContext(Job("distill", name, {}, (), name * 64), "study", folder, {}) for name in names]

    def batch_at(step):
        return {"input_ids": torch.full((2, 3), step), "x": torch.randn(2, 4, generator=torch.Generator().manual_seed(step))}

    def prepare(run, shared):
        run.state.mkdir(parents=True, exist_ok=True)
        model = models[run.job.name] = Toy(ord(run.job.name))

        def loss(batch, step):
            target = shared.get(run.job.id, step, lambda: made.append(step) or batch["x"].cos())
            if (run.job.name, step) == (fail, at):
                if error:
                    raise error
                target = target * float("nan")
            return {"loss": (model.dense(batch["x"]) - target).square().mean()}

        task = TrainingPlan(STEPS, batch_at, loss, lambda step: 1.0, 0, checkpoint_every=EVERY, **changes)
        return model, optim.make(model, "adamw", 0.01, 0.0), task

    raised = None
    try:
        train_together(runs[0], runs[1:], prepare, "cpu")
    except BaseException as caught:
        raised = caught
    steps = {run.job.name: checkpoint.finished(run.state / "train.safetensors") for run in runs}
    weights = {name: model.dense.weight.detach().clone() for name, model in models.items()}
    return weights, steps, made, raised


def test_students_together_learn_the_same_as_alone_and_are_saved_at_the_last_step(tmp_path):
    weights, steps, made, raised = toy(tmp_path / "together", "abc")
    assert (steps, made, raised) == (dict.fromkeys("abc", STEPS), list(range(STEPS)), None)
    for name in "abc":
        alone = toy(tmp_path / "alone", name)[0][name]
        assert torch.equal(weights[name], alone)


def test_students_together_record_no_graphs_and_one_alone_does(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Capture", Recorder)
    monkeypatch.setattr(Recorder, "log", [])
    weights, steps, made, _ = toy(tmp_path / "together", "ab", graph=True)
    assert (steps, made, Recorder.log) == (dict.fromkeys("ab", STEPS), list(range(STEPS)), [])
    alone, *_ = toy(tmp_path / "alone", "a", graph=True)
    assert Recorder.log.count("record") == 2
    assert (weights["a"] - alone["a"]).norm() < 1e-5 * alone["a"].norm()


@pytest.mark.parametrize("leads", [True, False])
def test_a_student_that_diverges_does_not_stop_the_others(tmp_path, capsys, leads):
    weights, steps, made, raised = toy(tmp_path, "ab", fail="a" if leads else "b")
    assert made == list(range(STEPS))
    assert steps == ({"a": 4, "b": STEPS} if leads else {"a": STEPS, "b": 4})
    if leads:
        assert isinstance(raised, Diverged)
    else:
        assert raised is None
        assert "mobilebert: distill/b: loss nan" in capsys.readouterr().err
    other = "b" if leads else "a"
    assert torch.equal(weights[other], toy(tmp_path / "alone", other)[0][other])
    again = toy(tmp_path, "b")  # without the fault it resumes from its last good state
    assert again[2] == ([] if leads else list(range(4, STEPS)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("disk full")])
def test_an_error_of_the_leader_ends_all_at_their_last_saved_state(tmp_path, error):
    _, steps, made, raised = toy(tmp_path, "ab", fail="a", error=error)
    assert raised is error
    assert made == list(range(6))
    assert steps == {"a": 4, "b": 4}
    assert toy(tmp_path, "ba")[2] == list(range(4, STEPS))


def test_an_error_of_another_student_is_printed_in_one_line(tmp_path, capsys):
    _, steps, _, raised = toy(tmp_path, "ab", fail="b", error=UserError("disk full"))
    assert (raised, steps) == (None, {"a": STEPS, "b": 4})
    assert capsys.readouterr().err.count("mobilebert: distill/b: disk full\n") == 1


# --- who may join


@pytest.fixture
def study():
    found = load_study("smoke")
    run = {**found.run, "mobilebert-seed-1": ()}
    shared = {stage: getattr(found, stage).model_copy(update={"share_teacher": True}) for stage in ("transfer", "distill")}
    changed = found.model_copy(update={**shared, "run": run})
    object.__setattr__(changed, "_name", "smoke")
    return changed


@pytest.fixture
def graph(study, tmp_path):
    """Return a graph in which every input of a distillation is recorded, but for one."""
    graph = build_graph(study)
    for key, job in graph.items():
        if job.stage in ("data", "pretrain", "transfer") and key != "transfer/mobilebert-jkt":
            execute_job(job, "smoke", tmp_path, graph, lambda run: None)
    return graph


def led(study, graph, results, key="distill/mobilebert"):
    with jobs_sharing_teacher(JobContext(graph[key], "smoke", results, graph), study) as found:
        for run in found:
            assert locks.is_live(run.state)
        return {run.job.name for run in found}


OTHERS = {"mobilebert-no-opt", "mobilebert-pd", "mobilebert-pd-fmt", "control-fresh-student"}


def test_students_of_the_same_teacher_and_batches_join(study, graph, tmp_path):
    """Not another seed, AKT with its layers, a student without transfer, a row that is not run."""
    assert led(study, graph, tmp_path) == OTHERS
    assert led(study, graph, tmp_path, "distill/mobilebert-akt") == set()
    assert led(study, graph, tmp_path, "distill/control-shuffled-teacher") == set()
    assert led(study, graph, tmp_path, "distill/mobilebert-pd") == OTHERS - {"mobilebert-pd"} | {"mobilebert"}
    assert not any(locks.is_live(path) for path in (tmp_path / "smoke/.state").iterdir() if path.is_dir())


def test_students_of_the_same_stages_join_whatever_their_losses(study, tmp_path):
    """Not JKT, whose steps teach other layers, a shuffled teacher, another seed, longer stages."""
    graph = build_graph(study)
    for key in ("data", "pretrain/ib-bert-large"):
        execute_job(graph[key], "smoke", tmp_path, graph, lambda run: None)
    alike = {"mobilebert", "mobilebert-no-opt", "mobilebert-pd-fmt"}
    assert {tuple(graph[f"transfer/{name}"].config["losses"]) for name in alike} == {("fmt", "at"), ("fmt",)}
    for name in alike:
        assert led(study, graph, tmp_path, f"transfer/{name}") == alike - {name}
    for name in ("mobilebert-jkt", "control-shuffled-teacher", "mobilebert-seed-1"):
        assert led(study, graph, tmp_path, f"transfer/{name}") == set()
    longer = replace(graph["transfer/mobilebert-pd-fmt"], config={**graph["transfer/mobilebert"].config, "steps": 999})
    graph["transfer/mobilebert-pd-fmt"] = longer
    assert led(study, graph, tmp_path, "transfer/mobilebert") == {"mobilebert-no-opt"}
    only_distill = study.model_copy(update={"transfer": load_study("smoke").transfer})
    assert led(only_distill, graph, tmp_path, "transfer/mobilebert") == set()


def test_a_student_that_is_running_or_recorded_or_trained_does_not_join(study, graph, tmp_path, monkeypatch):
    run = JobContext(graph["distill/mobilebert-pd"], "smoke", tmp_path, graph)
    with locks.lock(locks.lock_of(run.state), "held"):
        assert led(study, graph, tmp_path) == OTHERS - {"mobilebert-pd"}
    with locks.lock(locks.lock_of(run.state), "held", leader="distill/mobilebert-no-opt"):
        assert led(study, graph, tmp_path) == OTHERS - {"mobilebert-pd"}
    execute_job(run.job, "smoke", tmp_path, graph, lambda run: None)
    assert led(study, graph, tmp_path) == OTHERS - {"mobilebert-pd"}
    trained = JobContext(graph["distill/mobilebert-no-opt"], "smoke", tmp_path, graph)
    model = Toy(0)
    checkpoint.save(trained.state / "train.safetensors", model, optim.make(model, "adamw", 0.1, 0.0), 60, "f" * 64)
    assert led(study, graph, tmp_path) == OTHERS - {"mobilebert-pd", "mobilebert-no-opt"}
    assert led(study, graph, tmp_path, "distill/mobilebert-no-opt") == set()
    monkeypatch.setattr(shared_teacher, "world", lambda: World(0, 2))
    assert led(study, graph, tmp_path) == set()


def test_nobody_joins_unless_the_study_says_so(study, graph, tmp_path):
    alone = load_study("smoke").model_copy(update={"run": study.run})
    assert {key: job.fingerprint for key, job in build_graph(alone).items() if key in graph} == {
        key: job.fingerprint for key, job in graph.items()
    }
    assert led(alone, graph, tmp_path) == set()


def test_the_job_of_a_student_waits_for_its_leader_and_says_so(study, graph, tmp_path, capsys):
    run, ready, order = JobContext(graph["distill/mobilebert-pd"], "smoke", tmp_path, graph), threading.Event(), []

    def lead():
        with jobs_sharing_teacher(JobContext(graph["distill/mobilebert"], "smoke", tmp_path, graph), study):
            ready.set()
            time.sleep(1)
            order.append("leader")

    thread = threading.Thread(target=lead, daemon=True)
    thread.start()
    ready.wait(20)
    record = execute_job(run.job, "smoke", tmp_path, graph, lambda run: order.append("own"))
    thread.join()
    assert (order, record.status) == (["leader", "own"], "ok")
    assert capsys.readouterr().err.count("mobilebert: waiting for distill/mobilebert, which trains this student") == 1
    with (
        locks.lock(locks.lock_of(run.state), "held"),  # no leader holds the lock any more
        pytest.raises(UserError, match="another process is making this result"),
    ):
        execute_job(run.job, "smoke", tmp_path, graph, lambda run: None)
