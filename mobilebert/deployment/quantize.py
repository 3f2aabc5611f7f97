"""8-bit post-training quantization of an ONNX file, and running such files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.util.errors import UserError
from mobilebert.util.files import settle


def quantize_int8(source: Path, target: Path) -> dict[str, int]:
    """Write the model in `source` to `target` with int8 weights. Return {"bytes_before": ..., "bytes_after": ...}.

    This is the paper's "standard 8-bit post-training quantization" (Table 6), as ONNX Runtime does it. The weights of
    matrix products are int8, with one scale a column. The embedding tables are uint8, with one scale a table. The
    activations that meet such weights (uint8) are quantized at run time, each by its own range, so there is nothing to
    calibrate. Products of two activations (the attention scores) stay float32.

    The weights take the integers from -64 to 64, not from -127 to 127. On x86 without VNNI (AVX2, AVX-512 before Cascade
    Lake) the kernels add two neighbouring products in 16 bits, which stop at 32,767. 255 x 127 x 2 = 64,770 does not fit,
    255 x 64 x 2 = 32,640 does: the sums are exact on every processor, and the scores do not depend on it.

    The file appears under its name only when it is complete. Raises UserError where `source` is not an ONNX model, and where the
    disk of `target`, or of temporary files, is full.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    OnnxModel(source)  # refuses a bad file; the quantizer has an exception of its own for every way of being bad
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            optimized, prepared, result = (Path(folder, f"{name}.onnx") for name in ("optimized", "prepared", "int8"))
            # Folds away what stands between a weight and its product. Not by quant_pre_process, which only logs where it fails,
            # so that the file as it was would be quantized, and its shape inference is left out: it adds nothing that dynamic
            # quantization reads, and fails on some exported graphs. What is left of it marks the file as prepared.
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(optimized)
            options.log_severity_level = 4
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            quant_pre_process(optimized, prepared, skip_optimization=True, skip_onnx_shape=True, skip_symbolic_shape=True)
            # reduce_range: weights within [-64, 64], see above. Measured on MobileBERT (random weights, 128 tokens, one core
            # of an AMD EPYC with AVX2): the relative error is 0.014, and 0.022 with the whole range, whose sums overflow
            # there. Unsigned weights never overflow; their error is 0.010 with the whole range, and they take 57 ms where
            # signed ones take 50 (on a Xeon with AMX 58 and 25).
            # per_channel: a folded model's columns differ in scale, query from value for one.
            quantize_dynamic(prepared, result, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
            settle(result, target)
    except Exception as error:  # a full disk is an error of the system, of protobuf or of ONNX Runtime, by who was writing
        raise UserError(f"{target}: cannot be written ({' '.join(str(error).split())[:200]})") from error
    return {"bytes_before": source.stat().st_size, "bytes_after": target.stat().st_size}


class OnnxModel:
    """An ONNX file, loaded to run on the CPU."""

    # Rows of a batch whose answers must not depend on each other: an int8 model has one range for all of its activations.
    # It costs no time: 109 sentences of SST-2, one core, MobileBERT in int8, take 7.4 s one by one and 8.9 s in padded batches.
    ROWS = 1

    def __init__(self, path: Path, threads: int = 1):
        """Raises UserError where `path` is missing or not an ONNX model."""
        import onnxruntime

        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such file; an ONNX model is expected")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # fatal: a fresh int8 graph warns of what the optimizer then does, and errors are raised
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes share no base but this
            raise UserError(f"{path}: not a readable ONNX model ({str(error).splitlines()[0]})") from error
        self.inputs = [given.name for given in self._session.get_inputs()]
        self.outputs = [given.name for given in self._session.get_outputs()]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Output arrays by name. Of `batch` only the model's inputs are read, as int64; labels may stay in it.

        Raises UserError where the model does not take them: other inputs, types or shapes, rows longer than its positions.
        """
        if unknown := [name for name in self.inputs if name not in batch]:
            raise UserError(f"{self.path}: needs the input {unknown[0]}; given are {', '.join(batch)}")
        feed = {name: np.asarray(batch[name], dtype=np.int64) for name in self.inputs}
        try:
            found: Any = self._session.run(self.outputs, feed)
            return dict(zip(self.outputs, found))
        except Exception as error:  # as above
            shape = " x ".join(map(str, next(iter(feed.values())).shape))
            raise UserError(f"{self.path}: does not run on {shape} tokens ({str(error).splitlines()[0][:200]})") from error
