"""Run in the processes of `latency`: prepare files and the reference output, or time one model."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel

from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.table import ENGINES, int8_flops, owners
from mobilebert.modeling import register_auto_classes
from mobilebert.modeling.checkpoint_files import checked
from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertModel
from mobilebert.modeling.loading import load as load_weights
from mobilebert.util.errors import UserError, one_line

with contextlib.suppress(ModuleNotFoundError):
    import onnxruntime  # noqa: F401  (here so that the processes share one import)

CLASSES: dict[str, tuple[type, type]] = {"mobilebert": (MobileBertConfig, MobileBertModel), "bert": (BertConfig, BertModel)}
OUTPUT = "last_hidden_state"
CALIBRATION = 8  # batches from which an int8 engine takes the ranges of activations
IDS_OF_FILE = 100  # ids drawn for a .tflite file, whose vocabulary is not known
TRIES = 10  # of each peak; the best one counts
PEAK_SIZE = 1024
OWNERS = 12  # operations that are reported, the slowest first


def build(source: dict, seed: int) -> PreTrainedModel:
    """Return the encoder of a spec's source.

    With a "config" the weights are random, the same in every process for a seed.
    """
    if "checkpoint" in source:
        return _checkpoint(source["checkpoint"])
    fields = dict(source["config"])
    config_class, model_class = CLASSES[fields.pop("model_type")]
    torch.manual_seed(seed)
    model = model_class(config_class(**fields), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # TensorFlow's converter would remove a norm's scale of 1 and shift of 0
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _checkpoint(name: str) -> PreTrainedModel:
    register_auto_classes()
    logging.getLogger("mobilebert").setLevel(logging.ERROR)  # every process would repeat the notes
    with checked(name) as files:
        model: Any = load_weights(AutoModel, files)[0]
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # no exported file has one
    return model.eval()


def prepare(connection: Connection, source: dict, engines: list[str], folder: Path, length: int, batch: int, seed: int) -> None:
    """Send the inputs, the reference output and the files for one model.

    The message is {"inputs": by name, "reference": last_hidden_state (batch, length, hidden_size),
    "files": by engine, "flops": of the batch, "parameters"}. The files are written to `folder`. A
    .tflite file has no reference and no counts.
    """
    draw = np.random.default_rng(seed)

    def inputs(vocabulary: int) -> dict[str, np.ndarray]:
        return {
            "input_ids": draw.integers(vocabulary, size=(batch, length)),
            "attention_mask": np.ones((batch, length), dtype=np.int64),
            "token_type_ids": np.zeros((batch, length), dtype=np.int64),
        }

    if "file" in source:
        files = dict.fromkeys(engines, Path(source["file"]))
        found = {"inputs": inputs(IDS_OF_FILE), "reference": None, "files": files, "flops": None, "parameters": None}
        connection.send(("prepared", found))
        return
    model = build(source, seed)
    longest = getattr(model.config, "max_position_embeddings", length)
    if length > longest:
        raise UserError(f"length: {length} is not from 2 to {longest}, the model's max_position_embeddings")
    rows = [inputs(model.config.vocab_size) for _ in range(CALIBRATION)]
    for row in rows[1:]:  # the first is timed
        row["attention_mask"][:, -max(1, length // 4) :] = 0  # or the mask's own range would be empty
    with _refusing(source, "pytorch"):
        reference = programs.load(ENGINES["pytorch"], model, 1)(rows[0])[OUTPUT]
        flops = _flops(model, rows[0])
    found = {"inputs": rows[0], "reference": reference, "files": _files(source, model, engines, folder, rows)}
    connection.send(("prepared", found | {"flops": flops, "parameters": model.num_parameters()}))


def _files(source: dict, model: PreTrainedModel, engines: list[str], folder: Path, rows: list[dict]) -> dict[str, Path]:
    """Write the files of the engines, each file once, and return them by engine."""
    files = {}

    def file_of(name: str) -> Path:
        engine = ENGINES[name]
        path = folder / engine.file
        given = Path(source.get("checkpoint", ""), engine.file)
        if engine.program == "lite_rt" and "checkpoint" in source and given.is_file():
            return given
        if not path.exists():
            made_from = file_of(engine.made_from) if engine.made_from else model
            with _refusing(source, name):
                programs.write(engine, made_from, path, rows)
        return path

    for name in engines:
        if ENGINES[name].file:
            files[name] = file_of(name)
    return files


def _flops(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> int:
    """Return 2 x multiply-accumulates of the matrix products, attention's own among them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        programs.load(ENGINES["pytorch"], model, 1)(inputs)
    return counter.get_total_flops()


@contextlib.contextmanager
def _refusing(source: dict, engine: str):
    """Turn any error on a user's model into a UserError: engines raise all kinds of exceptions."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "config" in source:
            raise
        raise UserError(f"{next(iter(source.values()))}: {engine} cannot run this model ({one_line(error)})") from None


def serve(
    connection: Connection,
    engine: str,
    source: dict,
    file: Path | None,
    inputs: dict[str, np.ndarray],
    threads: int,
    seed: int,
) -> None:
    """Load the engine's `file`, or the model if it is None; then answer until the pipe closes.

    The first message tells what was loaded. Questions: "forward" (runs once, answers milliseconds),
    "cpu" (seconds of this process), "output" (the last forward's array) and "kernels" (what ran).
    """
    before = _resident_mib()
    torch.set_num_threads(threads)
    model = build(source, seed) if file is None else file
    start = time.perf_counter()
    with _refusing(source, engine):
        loaded = programs.load(ENGINES[engine], model, threads)
        output = loaded(inputs)
    if OUTPUT not in output:
        raise UserError(f"no output {OUTPUT}; its outputs: {', '.join(map(str, output)) or 'none'}")
    facts = {"cold_start_ms": (time.perf_counter() - start) * 1e3, "bytes": loaded.bytes, "ran_with": loaded.ran_with}
    facts["memory_mib"] = None if before is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    connection.send(("ready", facts))
    while True:
        question = connection.recv()
        if question == "forward":
            start = time.perf_counter()
            output = loaded(inputs)
            connection.send(("ms", (time.perf_counter() - start) * 1e3))
        elif question == "cpu":
            connection.send(("seconds", time.process_time()))
        elif question == "output":
            connection.send(("array", np.asarray(output[OUTPUT])))
        elif question == "kernels":
            connection.send(("kernels", _kernels(loaded, inputs)))


def _kernels(loaded: Any, inputs: dict[str, np.ndarray]) -> dict:
    """Return the count of operators, the share of int8 FLOPs, and the owners of the time."""
    found = loaded.kernels(inputs)
    if found is None:
        return {"operators": None, "int8_flops": None, "owners": None}
    return {"operators": len(found), "int8_flops": int8_flops(found), "owners": owners(found)[:OWNERS]}


def _resident_mib() -> float | None:
    """Return the memory of this process, or None if the system does not tell."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return None


def measure_peaks(connection: Connection, threads: int) -> None:
    """Answer "peaks" with the best of TRIES, of products and of memory reads; "cpu" as `serve`.

    A product has PEAK_SIZE rows and columns. PyTorch computes it, and ONNX Runtime if it is
    installed: on some processors one of them does not use the widest instructions. A read sums
    256 MiB, more than caches hold.
    """
    torch.set_num_threads(threads)
    left, right = torch.rand(2, PEAK_SIZE, PEAK_SIZE).unbind(0)
    products = [lambda: left @ right, *_onnx_product(left.numpy(), right.numpy(), threads)]
    long = torch.rand(2**26)
    connection.send(("ready", None))
    while True:
        question = connection.recv()
        if question == "cpu":
            connection.send(("seconds", time.process_time()))
        elif question == "peaks":
            product, read = min(map(_best_seconds, products)), _best_seconds(long.sum)
            connection.send(("peaks", {"gflops": 2 * PEAK_SIZE**3 / product / 1e9, "gb_per_s": long.nbytes / read / 1e9}))


def _onnx_product(left: np.ndarray, right: np.ndarray, threads: int) -> list[Callable[[], Any]]:
    """Return ONNX Runtime's product by a constant matrix; nothing if ONNX Runtime is missing."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        return []
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, left.shape) for name in ("left", "product")]
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "peak", ends[:1], ends[1:], [numpy_helper.from_array(right, "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [lambda: session.run(None, {"left": left})]


def _best_seconds(action: Callable[[], Any]) -> float:
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return min(found)
