"""Linear layers and what follows them, in place if nobody can notice.

Code that stands in for the call of a module, or writes into what a module gave, must not be seen by hooks, adapters, quantizers
and tracers. `plain` and `writable` say whether it may.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook


class NoNorm(nn.Module):
    """Element-wise `weight * x + bias`: what the paper puts in LayerNorm's place (equation 2)."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, x, self.weight)  # one kernel; x * weight + bias is two


READERS = (nn.ReLU, nn.Identity, nn.Dropout, nn.LayerNorm, NoNorm)  # they keep nothing that inference could miss


def untouched(module: nn.Module, *kinds: type) -> bool:
    """Return whether `module` does what one of `kinds` does, and no more.

    A subclass, as an adapter is, may do more, and so may hooks; accelerate's replace the `forward` of the one module.
    """
    own = vars(module)
    return type(module) in kinds and not (
        "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def plain(module: nn.Module, *kinds: type) -> bool:
    """Return whether other code may stand in for a call of `module`: it is `untouched`, and no hook listens to every module."""
    return untouched(module, *kinds) and not _has_any_global_hook()


def writable(x: torch.Tensor, maker: nn.Module, *readers: nn.Module, made_by: type = nn.Linear) -> bool:
    """Return whether an operation may overwrite the tensor that `maker` gives, before `readers` have read it.

    This is the one guard of everything that works in place. Such a tensor must be in nobody else's hands: not in a hook's, an
    adapter's or a tracer's. And it must be one that can be written: a tensor subclass, a vmap or a dual number may refuse.
    x: the tensor itself, or the one that `maker` reads. A forward asks 400 times, so no generator, no `nn.Module` attribute.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]  # a compiler works in place where it can
        return False
    for reader in readers:
        if not untouched(reader, *READERS):
            return False
    return (
        type(x) is torch.Tensor
        and untouched(maker, made_by)
        and not _has_any_global_hook()
        and peek_interpreter_stack() is None  # of torch.func's transforms
        and forward_ad._current_level < 0
    )


def in_place(linear: nn.Linear, x: torch.Tensor, *readers: nn.Module) -> bool:
    """Return whether inference may work in `linear`'s output: eager, without autocast, on a CPU.

    There a forward of one sequence takes 0.93 of the time (one core, 128 tokens): a product that is handed its bias first
    copies it to every row, and every new tensor is memory that the weights streaming by have pushed out of the cache.
    """
    if torch.is_grad_enabled() or not x.is_cpu or not writable(x, linear, *readers) or torch.is_autocast_enabled("cpu"):
        return False
    own = linear._parameters  # of a plain layer; asking for linear.weight takes longer than all of the above
    # A quantizer may leave the layer and replace its weight by a tensor of another type.
    return type(own.get("weight")) in (nn.Parameter, torch.Tensor) and own.get("bias") is not None


def project(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return linear(x)."""
    return F.linear(x, linear.weight).add_(linear.bias) if in_place(linear, x) else linear(x)


def activate(activation: nn.Module, x: torch.Tensor, maker: nn.Module, made_by: type = nn.Linear) -> torch.Tensor:
    """Return activation(x), of an x that `maker` gave. A ReLU works in place, in training too: no backward reads its input."""
    if type(activation) is nn.ReLU and writable(x, maker, activation, made_by=made_by):
        return x.relu_()
    return activation(x)


def project_and_norm(
    linear: nn.Linear,
    norm: nn.Module,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    dropout: nn.Module | None = None,
) -> torch.Tensor:
    """Return norm(dropout(linear(x)) + residual)."""
    if in_place(linear, x, norm, *([] if dropout is None else [dropout])):
        x = F.linear(x, linear.weight).add_(linear.bias)
        if dropout is not None and dropout.training:
            x = dropout(x)
        if residual is not None:
            x = x.add_(residual)
        return torch.addcmul(norm.bias, x, norm.weight, out=x) if type(norm) is NoNorm else norm(x)
    x = linear(x)
    if dropout is not None:
        x = dropout(x)
    if residual is not None:
        x = x + residual
    return norm(x)
