"""Run a model in PyTorch: eager, with folded norms, or compiled."""

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
    """A model of transformers or of this package, in evaluation mode."""

    bytes = None

    def __init__(self, engine: Engine, model: PreTrainedModel, threads: int):
        torch.set_num_threads(threads)
        self._model: Any = model.eval()
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
        }

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Raises UserError if the model cannot be compiled."""
        try:
            with torch.inference_mode():
                out = self._forward(**self._given(batch))
            return {name: out[name].numpy() for group in OUTPUTS for name in group if out.get(name) is not None}
        except Exception as error:
            if not self._is_compiled:
                raise
            raise UserError(f"pytorch-compiled: the model cannot be compiled here ({one_line(error)})") from None

    def _given(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in batch.items() if name in self._named}

    def kernels(self, batch: Mapping[str, np.ndarray]) -> list[Kernel] | None:
        """Return the operations of one forward pass; None if compiled.

        PyTorch calls back for each operation, so small ones take longer than in a timed pass.
        """
        if self._is_compiled:
            return None
        with torch.no_grad(), _Record() as record:
            self._model(**self._given(batch))
        return record.kernels


class _Record(TorchDispatchMode):
    """Note every operation that computes, with its time."""

    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if not func.is_view and str(func) not in _COPIES:
            self.kernels.append(Kernel(func.overloadpacket.__name__, False, 0, (time.perf_counter() - start) * 1e6))
        return out


def load(engine: Engine, source: PreTrainedModel, threads: int) -> PyTorchModel:
    """Return the model in PyTorch."""
    return PyTorchModel(engine, source, threads)
