"""Jobs that run, or were killed, in the MLflow store."""

import fcntl
import json
import shutil
import threading
import time

import pytest
from mlflow_runs import LATENCY, PRETRAIN, STUDY, client_of, graph_of, job, runs_of, write_record

from mobilebert.reporting import tracking


def write_state(results, item, points):
    state = results / "study" / ".state" / f"{item.id.replace('/', '-')}-{item.fingerprint[:16]}"
    state.mkdir(parents=True, exist_ok=True)
    (state / "run.json").write_text(json.dumps({"job": item.id, "fingerprint": item.fingerprint, "pid": 1}))
    (state / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return state


def test_a_followed_job_that_is_gone_does_not_stay_running(results):
    """Its study was edited meanwhile: neither a state nor a record of it is left."""
    state = write_state(results, PRETRAIN, [{"step": 1, "loss": 3.0}])
    stop = threading.Event()
    stop.set()
    with state.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tracking.follow(results, STUDY, graph_of(PRETRAIN), stop)
        tracking.ingest(results, STUDY, graph_of(LATENCY), {})
        assert runs_of(results)[1][PRETRAIN.id][0].info.status == "RUNNING"
    shutil.rmtree(state)
    tracking.ingest(results, STUDY, graph_of(LATENCY), {})
    (run,) = runs_of(results)[1][PRETRAIN.id]
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "killed")


@pytest.mark.parametrize(("end", "status"), [("record", "FINISHED"), ("kill", "KILLED")])
def test_a_followed_run_ends_in_the_store_when_its_stage_ends(results, end, status):
    state, said, stop = write_state(results, PRETRAIN, [{"step": 1, "loss": 3.0}]), [], threading.Event()
    thread = threading.Thread(
        target=tracking.follow, args=(results, STUDY, graph_of(PRETRAIN), stop), kwargs={"interval": 0.05, "say": said.append}
    )
    with state.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        wait_for(lambda: live_steps(results) == [1])
        if end == "record":
            write_record(results, PRETRAIN, metrics={"loss": 2.0}, curves={"loss": [[1, 3.0], [2, 2.0]]})
            shutil.rmtree(state)
    wait_for(lambda: len(said) == 2)
    stop.set()
    thread.join(10)
    (parent,), children = runs_of(results)
    (run,) = children[PRETRAIN.id]
    assert (run.info.status, parent.info.status) == (status, status)
    assert said[0] == f"{PRETRAIN.id}: under way"
    assert said[1] == f"{PRETRAIN.id}: {'ok' if end == 'record' else 'killed'}, 1 points streamed"
    assert live_steps(results) == ([1, 2] if end == "record" else [1])


def test_points_of_a_followed_job_are_printed_now_and_then(results, monkeypatch):
    monkeypatch.setattr(tracking, "PROGRESS_S", 0)
    state, said, stop = (
        write_state(results, PRETRAIN, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]),
        [],
        threading.Event(),
    )
    stop.set()
    with state.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tracking.follow(results, STUDY, graph_of(PRETRAIN), stop, say=said.append)
    assert said == [f"{PRETRAIN.id}: under way", f"{PRETRAIN.id}: step 2, loss 2.5; 2 points"]


def test_a_killed_job_is_shown_and_completed_after_it_resumes(results):
    graph = graph_of(PRETRAIN)
    state = write_state(results, PRETRAIN, [{"step": 1, "loss": 3.0}])
    assert tracking.ingest(results, STUDY, graph, {})["added"] == 1
    assert tracking.ingest(results, STUDY, graph, {}) == {"added": 0, "completed": 0, "there": 1}
    run = runs_of(results)[1][PRETRAIN.id][0]
    assert (run.info.status, run.data.tags["status"], run.data.metrics) == ("KILLED", "killed", {"curves/loss": 3.0})

    for path in state.iterdir():
        path.unlink()
    state.rmdir()
    record = write_record(results, PRETRAIN, curves={"loss": [[1, 3.0], [2, 2.0]]})
    assert tracking.ingest(results, STUDY, graph, {PRETRAIN.id: record})["completed"] == 1
    (run,) = runs_of(results)[1][PRETRAIN.id]
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "ok")
    history = client_of(results).get_metric_history(run.info.run_id, "curves/loss")
    assert [point.step for point in history] == [1, 2]


def test_a_running_job_or_one_of_another_configuration_is_not_marked_killed(results):
    state = write_state(results, PRETRAIN, [])
    write_state(results, job("pretrain", "other", "eeeeeeee"), [])
    with state.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        counts = tracking.ingest(results, STUDY, graph_of(PRETRAIN), {})
    assert counts == {"added": 0, "completed": 0, "there": 0}


def test_follow_streams_each_point_once_and_ingest_completes_the_run(results):
    graph = graph_of(PRETRAIN)
    points = [{"step": step, "loss": 1.0 / step} for step in range(1, 4)]
    state = write_state(results, PRETRAIN, points[:2])
    stop, streamed = threading.Event(), []

    def work():
        streamed.append(tracking.follow(results, STUDY, graph, stop, interval=0.05, patience=60))

    with state.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: len(live_steps(results)) == 2)
        with (state / "curves.jsonl").open("a") as stream:
            stream.write(json.dumps(points[1]) + "\n" + json.dumps(points[2]) + '\n{"step": 4, "lo')  # repeated, half
        wait_for(lambda: len(live_steps(results)) == 3)
        (run,) = runs_of(results)[1][PRETRAIN.id]
        assert run.info.status == "RUNNING"
        stop.set()
        thread.join(10)
    assert streamed == [3]
    record = write_record(results, PRETRAIN, curves={"loss": [[step, 1.0 / step] for step in range(1, 5)]})
    assert tracking.ingest(results, STUDY, graph, {PRETRAIN.id: record})["completed"] == 1
    assert live_steps(results) == [1, 2, 3, 4]
    assert len(runs_of(results)[1][PRETRAIN.id]) == 1


def test_follow_ends_when_nobody_holds_a_lock(results):
    write_state(results, PRETRAIN, [{"step": 1, "loss": 1.0}])
    assert tracking.follow(results, STUDY, graph_of(PRETRAIN), interval=0.01, patience=0) == 0


def live_steps(results):
    try:
        (run,) = runs_of(results)[1][PRETRAIN.id]
    except (KeyError, AttributeError):  # not created yet
        return []
    return [point.step for point in client_of(results).get_metric_history(run.info.run_id, "curves/loss")]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
