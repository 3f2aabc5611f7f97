import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from mobilebert.deployment import latency, latency_worker
from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.table import ENGINES
from mobilebert.deployment.worker_process import Worker
from mobilebert.modeling import MobileBertConfig
from mobilebert.modeling.cost import cost
from mobilebert.stages.latency import RAN
from mobilebert.util.errors import UserError

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MOBILEBERT = {"model_type": "mobilebert", "embedding_size": 16, "intra_bottleneck_size": 16, **SIZES}
BERT = {"model_type": "bert", **SIZES}
WHOLE = {"mobilebert": MobileBertConfig, "bert": BertConfig}  # with the fields that a configuration does not name
DEFAULT = ("pytorch", "pytorch-folded", "onnxruntime", "onnxruntime-int8", "onnxruntime-static")  # of a plain installation
SETTINGS = {"length": 8, "batch": 2, "threads": 1, "rounds": 7, "warmup": 1, "seed": 3}


def spec(name="student", config=MOBILEBERT, engine="onnxruntime"):
    return {"name": name, "config": config, "engine": engine}


def whole(name):
    """Return all fields of a model's configuration."""
    fields = {**(BERT if name == "bert" else MOBILEBERT)}
    return WHOLE[fields.pop("model_type")](**fields).to_dict()


def reasons(result):
    """Return the reasons why a measurement is void, but for other users of the machine."""
    validity = result["validity"]
    if validity == "ok":
        return []
    assert validity.startswith("void: ")
    return [part for part in validity.removeprefix("void: ").split("; ") if not part.startswith("other processes used")]


@given(st.lists(st.floats(0.01, 1e4), min_size=2, max_size=60))
def test_percentiles_are_linear_between_samples(samples):
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    expected = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "min": min(samples)}
    assert latency.summary(samples) == pytest.approx(expected)


def test_one_sample_is_all_percentiles():
    assert latency.summary([4.0]) == {"p50": 4.0, "p90": 4.0, "p99": 4.0, "min": 4.0}


def test_busy_time_counts_all_but_idle_and_iowait_and_guests_once():
    #        user nice system idle  iowait irq softirq steal guest guest_nice
    text = "cpu  1000 200  300    90000 5000   40  50      60    700   80\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n"
    assert latency.busy_seconds(text, ticks_per_second=100) == pytest.approx(16.5)


def test_busy_time_of_this_machine_grows_with_work():
    before = latency._busy_now()
    while latency._busy_now() - before < 0.05:  # would not end if this process did not count
        sum(range(10_000))
    assert latency._busy_now() - before < 60


@pytest.mark.parametrize(
    ("busy", "own", "wall", "cores", "shared"),
    [
        (10.0, 10.0, 10.0, 2, False),
        (11.0, 10.0, 10.0, 2, False),  # 0.10 of a core: the limit itself
        (11.1, 10.0, 10.0, 2, True),
        (20.0, 10.0, 10.0, 2, True),  # one spinning process
        (0.02, 0.0, 0.0, 2, False),  # no time passed: only the clock's coarseness
        (0.11, 0.0, 0.1, 8, True),  # 0.01 s of use and 8 ticks allowed
        (0.08, 0.0, 0.1, 8, False),
        (9.9, 10.0, 10.0, 2, False),  # the kernel's ticks may miss some of our own time
    ],
)
def test_the_sharing_rule(busy, own, wall, cores, shared):
    machine = {"busy_s": busy, "own_s": own, "wall_s": wall, "cores": cores, "tick_s": 0.01}
    reason = latency.sharing(machine)
    assert (reason is not None) == shared
    if shared:
        assert f"{(busy - own) / wall:.2f} of a core" in reason


def test_a_machine_without_proc_stat_is_not_trusted():
    assert "/proc/stat" in latency.sharing({"busy_s": None, "own_s": 1.0, "wall_s": 1.0, "cores": 2, "tick_s": 0.01})


def test_errors_are_relative_and_never_pass_by_accident():
    reference = np.array([[3e7, 4e7]], dtype=np.float32)
    assert latency.relative_error(reference * 1.01, reference) == pytest.approx(0.01, rel=1e-3)
    assert latency.relative_error(reference[:, :1], reference) == float("inf")
    assert not latency.relative_error(reference * np.float32("nan"), reference) <= 0.1


def test_the_peak_is_that_of_the_faster_library(monkeypatch):
    left, right = np.random.default_rng(0).random((2, 48, 48), dtype=np.float32)
    (product,) = latency_worker._onnx_product(left, right, 1)
    np.testing.assert_allclose(product()[0], left @ right, rtol=1e-5)
    asked, sent = iter(("peaks", "end")), []
    times = iter((0.5, 0.25, 0.1))  # PyTorch's product, ONNX Runtime's, a read
    monkeypatch.setattr(latency_worker, "_best_seconds", lambda action: next(times))
    connection = SimpleNamespace(send=sent.append, recv=lambda: {"peaks": "peaks"}[next(asked)])
    with pytest.raises(KeyError):
        latency_worker.measure_peaks(connection, 1)
    assert sent[-1] == ("peaks", {"gflops": 2 * 1024**3 / 0.25 / 1e9, "gb_per_s": 2**28 / 0.1 / 1e9})


def test_a_run_records_every_sample_of_every_model():
    specs = [spec(engine, MOBILEBERT, engine) for engine in DEFAULT] + [spec("bert", BERT, "pytorch")]
    result = json.loads(json.dumps(latency.measure(specs, **SETTINGS)))
    assert reasons(result) == []
    assert {name: result[name] for name in SETTINGS} == SETTINGS
    assert set(result["models"]) == {*DEFAULT, "bert"}
    for name, model in result["models"].items():
        assert len(model["samples_ms"]) == SETTINGS["rounds"]
        assert all(0 < sample < 60_000 for sample in model["samples_ms"])
        assert model["p50"] == pytest.approx(statistics.median(model["samples_ms"]))
        assert model["min"] == min(model["samples_ms"]) <= model["p50"] <= model["p90"] <= model["p99"]
        assert (model["bytes"] is None) == model["engine"].startswith("pytorch"), name
        assert {*RAN} <= set(model)  # what the stage writes into its record
        assert model["memory_mib"] > 0 < model["cold_start_ms"]
        assert model["flops"] == 2 * cost(whole(name), SETTINGS["length"]).encoder_flops  # a batch of two
    assert min(result["peaks"].values()) > 0
    models, machine = result["models"], result["machine"]
    # Same weights, three engines: float32 agrees to rounding, int8 is near but not the same.
    assert models["pytorch"]["error"] < 1e-5
    assert models["onnxruntime"]["error"] < 1e-5
    assert 1e-5 < models["onnxruntime-int8"]["error"] < 0.1
    assert models["onnxruntime-int8"]["bytes"] < models["onnxruntime"]["bytes"]
    timed_s = sum(sum(model["samples_ms"]) for model in models.values()) / 1e3
    assert timed_s <= machine["wall_s"]
    assert len(machine["load_before"]) == len(machine["load_after"]) == 3


def test_a_wrong_model_voids_the_run_by_name(monkeypatch):
    prepare = latency._prepare

    def prepare_another(processes, config, engines, folder, length, batch, seed):
        right = prepare(processes, config, engines, folder, length, batch, seed)
        wrong = prepare(processes, config, engines, folder.with_name("wrong"), length, batch, seed + 1)
        return right | {"files": wrong["files"]}

    monkeypatch.setattr(latency, "_prepare", prepare_another)
    result = latency.measure([spec("impostor"), spec("honest", engine="pytorch")], **SETTINGS)
    (reason,) = reasons(result)
    assert reason.startswith("impostor: its output is ")
    assert result["models"]["impostor"]["error"] > ENGINES["onnxruntime-int8"].tolerance


@pytest.mark.parametrize(
    ("engine", "precision", "limit"),
    [
        ("litert", "float32, int32", 0.001),
        ("litert", "float32, uint8", 0.001),  # no int8
        ("litert", "float32, int32, int8", 0.2),  # a user's file of any kind
        ("litert-dynamic", "float32, int32, int8", 0.1),
        ("litert-int8", "int32, int8", 0.8),
        ("onnxruntime-int8", "int8", 0.1),
    ],
)
def test_an_output_may_differ_as_far_as_its_engine_and_file_allow(engine, precision, limit):
    reference = np.array([3e7, 4e7], np.float32)
    for share, is_void in ((0.98, False), (1.02, True)):
        output = reference * np.float32(1 + share * limit)
        workers = {"mine": SimpleNamespace(ask=lambda _, output=output: output)}
        reason = latency._difference(spec("mine", engine=engine), workers, {"reference": reference}, {"precision": precision})
        assert (reason is not None) == is_void
        assert reason is None or reason.endswith(f"allowed is {limit:g}")


def test_a_loaded_machine_voids_the_run():
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        result = latency.measure([spec()], **SETTINGS | {"rounds": 3000})  # a second or more: many ticks of /proc/stat
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert "other processes used" in result["validity"]
    machine = result["machine"]
    # The measured processes do not count as others, which are the rest of the busy time.
    assert 0 < machine["own_s"] < machine["busy_s"]


def test_more_threads_than_cores_void_the_run(monkeypatch):
    """Cores are those that the process may use, which a scheduler or a container may have cut."""
    cores = 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    result = latency.measure([spec()], **SETTINGS | {"threads": cores + 1, "rounds": 1, "warmup": 0})
    assert reasons(result) == [f"{cores + 1} threads on {cores} cores"]


def test_orders_differ_between_rounds_and_repeat_with_the_seed():
    class Recorder:
        def __init__(self, name):
            self.name, self.seconds = name, 0.0

        def ask(self, question):
            if question == "forward":
                asked.append(self.name)
                self.seconds += 10.0
            return self.seconds

    workers = {name: Recorder(name) for name in "abcd"}
    runs = []
    for seed in (0, 0, 1):
        asked = []
        samples, machine = latency._rounds(workers, rounds=6, warmup=2, threads=1, seed=seed)
        assert {name: len(taken) for name, taken in samples.items()} == dict.fromkeys("abcd", 6)
        assert machine["own_s"] == pytest.approx(4 * 6 * 10.0, abs=5.0)  # without the warm-up
        turns = [tuple(asked[start : start + 4]) for start in range(0, len(asked), 4)]
        assert len(turns) == 8
        assert all(sorted(turn) == list("abcd") for turn in turns)
        assert len(set(turns)) > 1
        runs.append(turns)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("specs", "changes", "message"),
    [
        ([spec(engine="tflite")], {}, "engine of student: 'tflite'.*onnxruntime-int8"),
        ([spec(config={"model_type": "t5"})], {}, "model_type of student: 't5'"),
        ([spec(), spec(engine="pytorch")], {}, "name: 'student'"),
        ([spec()], {"rounds": 0}, "rounds: 0"),
        ([spec()], {"threads": 0}, "threads: 0"),
        ([spec()], {"warmup": -1}, "warmup: -1"),
        ([spec()], {"length": 1}, "length: 1"),
        ([spec(config=MOBILEBERT | {"num_attention_heads": 3})], {}, "num_attention_heads: 3"),
        ([spec(engine="onnxruntime")], {"length": 513}, "length: 513"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(specs, changes, message):
    with pytest.raises(UserError, match=message):
        latency.measure(specs, **SETTINGS | changes)


def test_a_failing_process_is_an_error_not_a_number():
    with pytest.raises(UserError, match=r"reference of student: AttributeError: .+"):
        latency.measure([spec(config=MOBILEBERT | {"id2label": 5})], **SETTINGS)


class Processes:
    """A context whose processes run at once in this one, or die without an answer."""

    Pipe = staticmethod(multiprocessing.Pipe)

    def __init__(self, dies=False):
        self.dies = dies

    def Process(self, target, args, daemon):
        start = (lambda: None) if self.dies else (lambda: target(*args))
        return SimpleNamespace(start=start, join=lambda *_: None, is_alive=lambda: False)


def test_a_dead_process_is_one_line():
    with Worker(Processes(dies=True), "mine", "serve", ()) as worker:
        for ask in (worker.answer, lambda: worker.ask("forward")):
            with pytest.raises(UserError, match=r"^mine: its process ended without an answer"):
                ask()


def test_a_model_without_the_timed_output_is_refused_with_the_names_of_its_outputs(monkeypatch):
    monkeypatch.setattr(latency_worker.programs, "load", lambda *_: lambda inputs: {"logits": 1, "scores": 2})
    arguments = ("litert", {"file": "a.tflite"}, "a.tflite", {}, 1, 0)
    problem = r"^mine: no output last_hidden_state; its outputs: logits, scores$"
    with Worker(Processes(), "mine", "serve", arguments) as worker, pytest.raises(UserError, match=problem):
        worker.answer()


@pytest.mark.parametrize("config", [MOBILEBERT, BERT], ids=["mobilebert", "bert"])
def test_a_fixed_shape_computes_the_same_with_fewer_operators(config, tmp_path):
    model = latency_worker.build({"config": config}, 0)
    draw = np.random.default_rng(0)
    ones = np.ones((1, 8), np.int64)
    rows = [{"input_ids": draw.integers(99, size=(1, 8)), "attention_mask": ones, "token_type_ids": 0 * ones}]
    longer = {name: np.repeat(array, 2, axis=1) for name, array in rows[0].items()}
    for name in ("onnxruntime", "onnxruntime-int8"):
        free, fixed = ENGINES[name], ENGINES[f"{name}-fixed"]
        assert free.file == fixed.file
        programs.write(fixed, tmp_path / ENGINES["onnxruntime"].file if free.made_from else model, tmp_path / fixed.file, rows)
        slow, fast = (programs.load(engine, tmp_path / engine.file, 1) for engine in (free, fixed))
        for batch in (rows[0], longer):  # a fixed shape is that of the input
            wanted = slow(batch)["last_hidden_state"]
            # In int8 a rounding error of float32 can move a value to the next of 256 steps.
            most = 1e-3 if free.made_from else 1e-5
            assert latency.relative_error(fast(batch)["last_hidden_state"], wanted) < most
        before, after = (one.kernels(rows[0]) for one in (slow, fast))
        assert len(after) < 0.8 * len(before)
        assert not any(kernel.op == "Shape" for kernel in after)
        assert sum(kernel.flops for kernel in after) == sum(kernel.flops for kernel in before)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "litert"])
def test_a_missing_engine_is_named_with_the_install_command(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, ENGINES[engine].packages[0], None)
    with pytest.raises(UserError) as caught:
        latency.measure([spec(engine=engine)], **SETTINGS)
    assert str(caught.value).startswith(f"{engine}: {ENGINES[engine].packages[0].replace('_', '-')} is not installed; ")
    assert str(caught.value).endswith(f"pip install '.[{ENGINES[engine].extra}]'")


def test_importing_costs_neither_torch_nor_transformers():
    code = "import sys, mobilebert.deployment.latency; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_gpu_engine_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch sees no CUDA device; install its CUDA build"):
        programs.load(ENGINES["pytorch-cuda"], latency_worker.build({"config": MOBILEBERT}, 0), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_cpus_output():
    ids = np.random.default_rng(0).integers(99, size=(2, 8))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    here, there = (
        programs.load(ENGINES[name], latency_worker.build({"config": MOBILEBERT}, 0), 1) for name in ("pytorch", "pytorch-cuda")
    )
    assert latency.relative_error(there(batch)["last_hidden_state"], here(batch)["last_hidden_state"]) < 1e-4
    assert all(kernel.us is None for kernel in there.kernels(batch))


@pytest.mark.parametrize("length", [2, 3, 8])
def test_calibration_has_padding_at_every_length_and_the_timed_input_has_none(length, monkeypatch, tmp_path):
    rows, sent = [], []
    monkeypatch.setattr(programs, "write", lambda engine, source, path, given: (path.touch(), rows.extend(given)))
    connection = SimpleNamespace(send=sent.append)
    latency_worker.prepare(connection, {"config": MOBILEBERT}, ["onnxruntime"], tmp_path, length, 1, 0)  # pyrefly: ignore[bad-argument-type]
    masked = [int((row["attention_mask"] == 0).sum()) for row in rows]
    assert masked == [0] + [max(1, length // 4)] * (latency_worker.CALIBRATION - 1)
    assert (sent[0][1]["inputs"]["attention_mask"] == 1).all()
