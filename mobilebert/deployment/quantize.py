"""Quantize an ONNX file to 8 bits after training, and run ONNX files on the CPU."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.util.errors import UserError
from mobilebert.util.files import settle


def quantize_int8(source: Path, target: Path) -> dict[str, int]:
    """Write the model in `source` to `target` with int8 weights.

    Return {"bytes_before": ..., "bytes_after": ...}. This is the paper's "standard 8-bit
    post-training quantization" (Table 6), as ONNX Runtime does it. The weights of matrix products
    are int8, with one scale a column. Tables that are looked up are uint8, with one scale a table;
    MobileBERT's positions, which are sliced, stay float32, and so do biases and norms. The
    activations that are multiplied by such weights (uint8) are quantized at run time, each tensor
    by its range, so there is nothing to calibrate. Products of two activations (the attention
    scores) stay float32.

    The weights are integers from -64 to 64, not from -127 to 127. On x86 without VNNI (AVX2,
    AVX-512 before Cascade Lake) the kernels add two neighbouring products in 16 bits, at most
    32,767. 255 x 127 x 2 = 64,770 does not fit, 255 x 64 x 2 = 32,640 does. So the sums are exact
    on every processor, and the scores do not depend on it.

    The file appears under its name only when it is complete. Raises UserError if `source` is not an
    ONNX model, and if the disk of `target`, or of temporary files, is full.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target.parent.mkdir(parents=True, exist_ok=True)
    with prepared(source, target) as folder:
        try:
            # reduce_range: weights within [-64, 64], see above. Measured on MobileBERT (random
            # weights, 128 tokens, one core of an AMD EPYC with AVX2): the relative error is 0.014,
            # and 0.022 with the whole range, whose sums overflow there. Unsigned weights never
            # overflow; their error is 0.010 with the whole range, but they take 57 ms and signed
            # ones 50 (58 and 25 on a Xeon with AMX).
            # per_channel: columns of a folded model differ in scale, for example query and value.
            result = folder / "int8.onnx"
            quantize_dynamic(folder / "prepared.onnx", result, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
            settle(result, target)
        except Exception as error:  # a full disk raises OSError, or an exception of protobuf or ONNX Runtime
            raise _not_written(target, error) from error
    return {"bytes_before": source.stat().st_size, "bytes_after": target.stat().st_size}


@contextlib.contextmanager
def prepared(source: Path, target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that holds "prepared.onnx", made from `source`.

    Operations between a weight and its product are folded into the weight. Raises UserError if
    `source` is not an ONNX model, and for a full disk.
    """
    import onnxruntime
    from onnxruntime.quantization.shape_inference import quant_pre_process

    OnnxModel(source)  # raises UserError for a bad file; the quantizer raises many kinds of exceptions
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
            folder = Path(name)
            # The session folds. quant_pre_process could do it too, but only logs a failure; the
            # file would then be quantized unfolded. Its shape inference is skipped: the quantizers
            # do not need the result, and it fails on some exported graphs. It only marks the file
            # as prepared.
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(folder / "optimized.onnx")
            options.log_severity_level = 4
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            quant_pre_process(
                folder / "optimized.onnx",
                folder / "prepared.onnx",
                skip_optimization=True,
                skip_onnx_shape=True,
                skip_symbolic_shape=True,
            )
            yield folder
    except UserError:
        raise
    except Exception as error:
        raise _not_written(target, error) from error


def _not_written(target: Path, error: Exception) -> UserError:
    return UserError(f"{target}: cannot be written ({' '.join(str(error).split())[:200]})")


class OnnxModel:
    """An ONNX file, loaded to run on the CPU."""

    # Rows a batch. An int8 model has one range for all activations of a batch, so the rows of a
    # larger batch would change each other's answers. This costs no time: 109 sentences of SST-2
    # take 7.4 s one by one and 8.9 s in padded batches (one core, MobileBERT in int8).
    ROWS = 1

    def __init__(self, path: Path, threads: int = 1, profile: Path | None = None, shape: tuple[int, int] | None = None):
        """Load the model. Raises UserError if `path` is missing or not an ONNX model.

        profile: start of the name of the file to which `end_profile` writes the times of all nodes.
        shape: (batch, tokens) of every input from then on. ONNX Runtime then computes no shapes as
            it runs, and joins more operations.
        """
        import onnxruntime

        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such file; an ONNX model is expected")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # fatal alone: a new int8 graph logs harmless warnings, and errors are raised anyway
        for name, size in zip(("batch", "sequence"), shape or ()):
            options.add_free_dimension_override_by_name(name, size)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no other common base
            raise UserError(f"{path}: not a readable ONNX model ({str(error).splitlines()[0]})") from error
        self.inputs = [given.name for given in self._session.get_inputs()]
        self.outputs = [given.name for given in self._session.get_outputs()]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the output arrays by name.

        `batch` may hold more than the model's inputs, for example labels; inputs are read as int64.
        Raises UserError if the model does not take them: other inputs, types or shapes, or rows
        longer than its positions.
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

    def end_profile(self) -> str:
        """Return the name of the file with the profile, which is complete now."""
        return self._session.end_profiling()
