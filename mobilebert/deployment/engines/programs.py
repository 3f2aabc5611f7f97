"""Write an engine's file and load it, whatever the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mobilebert.deployment.engines import lite_rt, onnx_runtime, open_vino, pytorch
from mobilebert.deployment.engines.table import Engine, Loaded

PROGRAMS: dict[str, Any] = {"pytorch": pytorch, "onnx_runtime": onnx_runtime, "open_vino": open_vino, "lite_rt": lite_rt}


def load(engine: Engine, source: PreTrainedModel | Path, threads: int) -> Loaded:
    """Return the model in memory, ready to run.

    source: the engine's file; the model itself for an engine without files. Raises UserError if the
    engine is not installed, or cannot run the model.
    """
    engine.check_installed()
    return PROGRAMS[engine.program].load(engine, source, threads)


def write(engine: Engine, source: PreTrainedModel | Path, path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the engine's file to `path`.

    source: the model; the file of `engine.made_from` if that is set. rows: inputs of the model,
    from which an engine with fixed ranges takes them. Raises UserError as `load`.
    """
    engine.check_installed()
    PROGRAMS[engine.program].write(engine, source, path, rows)
