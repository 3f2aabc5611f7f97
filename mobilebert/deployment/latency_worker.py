"""Run in the processes of `latency`: prepare files and the reference output, or time one model."""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  (here so that the processes share one import)
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertModel

CLASSES = {"mobilebert": (MobileBertConfig, MobileBertModel), "bert": (BertConfig, BertModel)}


def build(config: dict, seed: int) -> PreTrainedModel:
    """Return the encoder of `config` with random weights, the same in every process for a seed."""
    fields = dict(config)
    config_class, model_class = CLASSES[fields.pop("model_type")]
    torch.manual_seed(seed)
    return model_class(config_class(**fields), add_pooling_layer=False).eval()


def prepare(connection: Connection, config: dict, engines: list[str], folder: Path, length: int, batch: int, seed: int) -> None:
    """Send the inputs, the reference output and the ONNX files for one configuration.

    The message is {"inputs": by name, "reference": last_hidden_state (batch, length, hidden_size),
    "files": by engine}. The files are written to `folder`.
    """
    model = build(config, seed)
    draw = np.random.default_rng(seed)
    inputs = {
        "input_ids": draw.integers(model.config.vocab_size, size=(batch, length)),
        "attention_mask": np.ones((batch, length), dtype=np.int64),
        "token_type_ids": np.zeros((batch, length), dtype=np.int64),
    }
    files = {}
    if any(engine != "pytorch" for engine in engines):
        files["onnxruntime"] = folder / "model.onnx"
        export_onnx(model, files["onnxruntime"], length=length)
    if "onnxruntime-int8" in engines:
        files["onnxruntime-int8"] = folder / "model-int8.onnx"
        quantize_int8(files["onnxruntime"], files["onnxruntime-int8"])
    connection.send(("prepared", {"inputs": inputs, "reference": _forward(model, inputs)().numpy(), "files": files}))


def serve(
    connection: Connection, config: dict, file: Path | None, inputs: dict[str, np.ndarray], threads: int, seed: int
) -> None:
    """Load the ONNX `file`, or a PyTorch model if it is None; then answer until the pipe closes.

    The first message is "ready". Questions: "forward" (runs once, answers milliseconds), "cpu"
    (seconds of this process) and "output" (the last forward's array).
    """
    torch.set_num_threads(threads)
    forward: Callable[[], Any]
    if file is None:
        forward = _forward(build(config, seed), inputs)
    else:
        model = OnnxModel(file, threads)

        def from_onnx() -> np.ndarray:
            return model(inputs)["last_hidden_state"]

        forward = from_onnx

    connection.send(("ready", None))
    while True:
        question = connection.recv()
        if question == "forward":
            start = time.perf_counter()
            output = forward()
            connection.send(("ms", (time.perf_counter() - start) * 1e3))
        elif question == "cpu":
            connection.send(("seconds", time.process_time()))
        elif question == "output":
            connection.send(("array", np.asarray(output)))


def _forward(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> Callable[[], torch.Tensor]:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(**tensors).last_hidden_state

    return forward
