"""How graphs are captured, and graphs on a GPU."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from graph_workloads import LAYERS, STEPS, agree, stopped, trained

from mobilebert.training.accelerated import cuda_graphs

torch.set_num_threads(1)


def test_capture_calls_torch_as_its_notes_prescribe(monkeypatch):
    """Warm-up on a side stream between two waits; recording on that stream, from one pool, strict
    only with its own thread."""
    said = []

    class Stream:
        def wait_stream(self, other):
            said.append((names[self], "waits for", names[other]))

    side, current = Stream(), Stream()
    names = {side: "side", current: "current"}

    @contextlib.contextmanager
    def within(name, *given, **options):
        said.append((name, *given, options))
        yield
        said.append(("end", name))

    class Graph:
        def replay(self):
            said.append("replay")

    for name, value in {
        "synchronize": lambda: said.append("synchronize"),
        "Stream": lambda: side,
        "current_stream": lambda: current,
        "graph_pool_handle": lambda: "pool",
        "stream": lambda stream: within(names[stream]),
        "CUDAGraph": Graph,
        "graph": lambda graph, **options: within(type(graph).__name__, **options),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    capture = cuda_graphs.Capture()
    assert capture.warm(lambda: said.append("work") or 1) == 1
    replay = capture.record(lambda: said.append("work") or [2])
    assert replay() is replay()
    warm = [("side", "waits for", "current"), ("side", {}), "work", ("end", "side"), ("current", "waits for", "side")]
    options = {"pool": "pool", "stream": side, "capture_error_mode": "thread_local"}
    assert said == ["synchronize", *warm, ("Graph", options), "work", ("end", "Graph"), "replay", "replay"]


def test_the_stages_share_one_side_stream(tmp_path, monkeypatch):
    """cuBLAS keeps a workspace for every stream; the pool of a finished stage is dropped."""
    made = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "synchronize": lambda: None,
        "Stream": lambda: made.append("stream") or stream,
        "current_stream": lambda: stream,
        "graph_pool_handle": lambda: made.append("pool"),
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda_graphs, "WARM_UP", STEPS)
    trained(tmp_path, "pkt", graph=True)
    assert made.count("stream") == 1
    assert made.count("pool") >= LAYERS


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@GPU
@pytest.mark.parametrize("kind", ["pretrain", "dropout", "bert", "pkt", "akt"])
def test_on_a_gpu_graphs_learn_the_same_as_eager_steps(tmp_path, kind):
    """Also after a stop in the middle. Only the order of sums differs; losses are float32."""
    wide = {"optimizer": "lamb", "dtype": torch.float64, "device": "cuda"}
    expected = trained(tmp_path / "steps", kind, **wide)
    agree(trained(tmp_path / "graphs", kind, graph=True, **wide), expected, 1e-5)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", kind, graph=True, batch=stopped([14]), **wide)
    agree(trained(tmp_path / "broken", kind, graph=True, **wide), expected, 1e-5)


@GPU
def test_on_a_gpu_compiled_blocks_are_recorded(tmp_path):
    """In bfloat16 the losses agree to its rounding."""
    options = {"device": "cuda", "precision": "bf16", "compile": True, "accumulate": 2, "steps": 10}
    runs = [trained(tmp_path / str(graph), "pretrain", graph=graph, **options)[0] for graph in (False, True)]
    first, second = ([value for _, value in run.curves["train_loss"]] for run in runs)
    assert second == pytest.approx(first, rel=0.02)
