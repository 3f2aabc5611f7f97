"""Run a model in PyTorch: eager, with folded norms, compiled, or on a GPU."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from mobilebert.deployment.engines.table import Engine, Kernel
from mobilebert.deployment.export import OUTPUTS
from mobilebert.modeling.folding import fold, foldable
from mobilebert.util.errors import UserError, one_line

_COPIES = ("aten._unsafe_view.default", "aten.empty.memory_format")  # they compute nothing


class PyTorchModel:
    """A model of transformers or of this package, in evaluation mode.

    Inputs and outputs are in the CPU's memory, also if the model runs on a GPU.
    """

    bytes = None

    def __init__(self, engine: Engine, model: PreTrainedModel, threads: int):
        """Raise UserError for `pytorch-cuda` without a CUDA device."""
        torch.set_num_threads(threads)
        self._device = "cuda" if engine.name == "pytorch-cuda" else "cpu"
        if self._device == "cuda" and not torch.cuda.is_available():
            raise UserError("pytorch-cuda: PyTorch sees no CUDA device; install its CUDA build on a machine with an NVIDIA GPU")
        self._model: Any = torch.nn.Module.to(model.eval(), self._device)
        if engine.name != "pytorch" and foldable(model):
            self._model = fold(model)
        self._named = inspect.signature(model.forward).parameters  # DistilBERT, for one, takes no token_type_ids
        self._is_compiled = engine.name == "pytorch-compiled"
        self._forward = torch.compile(self._model, dynamic=False) if self._is_compiled else self._model
        self.ran_with = {
            "program": f"torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "precision": "float32",
            "folded": self._model is not model,
            "device": self._device if self._device == "cpu" else torch.cuda.get_device_name(),
        }

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Raises UserError if the model cannot be compiled."""
        try:
            with torch.inference_mode():
                out = self._forward(**self._given(batch))
            return {name: out[name].cpu().numpy() for group in OUTPUTS for name in group if out.get(name) is not None}
        except Exception as error:
            if not self._is_compiled:
                raise
            raise UserError(f"pytorch-compiled: the model cannot be compiled here ({one_line(error)})") from None

    def _given(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array).to(self._device) for name, array in batch.items() if name in self._named}

    def kernels(self, batch: Mapping[str, np.ndarray]) -> list[Kernel] | None:
        """Return the operations of one forward pass; None if compiled.

        PyTorch calls back for each operation, so small ones take longer than in a timed pass. On a
        GPU they have no times, because PyTorch does not wait for them.
        """
        if self._is_compiled:
            return None
        with torch.no_grad(), _Record(self._device == "cpu") as record:
            self._model(**self._given(batch))
        return record.kernels


class _Record(TorchDispatchMode):
    """Note every operation that computes, with its time if it is waited for."""

    def __init__(self, waits: bool):
        super().__init__()
        self.waits = waits
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if not func.is_view and str(func) not in _COPIES:
            us = (time.perf_counter() - start) * 1e6 if self.waits else None
            self.kernels.append(Kernel(func.overloadpacket.__name__, False, 0, us))
        return out


def load(engine: Engine, source: PreTrainedModel, threads: int) -> PyTorchModel:
    """Return the model in PyTorch."""
    return PyTorchModel(engine, source, threads)
