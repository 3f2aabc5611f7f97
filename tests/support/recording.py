"""Imitate CUDA graphs on the CPU: record a step's tensor operations and replay them in place."""

from typing import ClassVar
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {  # these need a value, or a shape that depends on values, on the host
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.repeat_interleave,
}


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def memory(tensor):
    return tensor.untyped_storage()._cdata


class Tape(TorchDispatchMode):
    """The operations of a with block, below autograd: those of forward, backward and update."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in WAITS:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        given = tensors_of((args, kwargs))
        if func._schema.is_mutable:
            for tensor in given:
                if memory(tensor) not in self.before:
                    self.before[memory(tensor)] = (tensor.untyped_storage(), tensor.untyped_storage().clone())
        out = func(*args, **kwargs)
        known = {memory(tensor) for tensor in given}
        fresh = [(index, tensor) for index, tensor in enumerate(tensors_of(out)) if memory(tensor) not in known]
        self.made += [tensor for _, tensor in fresh]
        if fresh or func._schema.is_mutable:  # a view is the same view at every replay
            self.calls.append((func, args, kwargs, fresh))
        return out

    def undo(self):
        """Restore inputs and spoil outputs: a recording computes nothing that may be read."""
        for storage, copy in self.before.values():
            storage.copy_(copy)
        with torch.no_grad():
            for tensor in self.made:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, fresh in self.calls:
            again = tensors_of(func(*args, **kwargs))
            for index, tensor in fresh:
                tensor.copy_(again[index])


class Recorder:
    """A stand-in for `graphs.Capture`; `log` lists the calls of all recorders."""

    log: ClassVar[list] = []

    def renew(self):
        pass

    def warm(self, work):
        self.log.append("warm")
        return work()

    def record(self, work):
        self.log.append("record")
        tape, state = Tape(), torch.get_rng_state()
        # transformers asks whether a graph is being recorded before it checks whether a mask masks
        # anything.
        with tape, patch("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True):
            found = work()
        tape.undo()
        torch.set_rng_state(state)

        def replay():
            self.log.append("replay")
            tape.replay()
            return found

        return replay
