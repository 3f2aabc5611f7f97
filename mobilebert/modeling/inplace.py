"""Run linear layers and the operations behind them in place, if no other code can notice.

Hooks, adapters, quantizers and tracers must not notice code that replaces a module's call or
overwrites a module's output. `plain` and `writable` say when such code is safe.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook


class NoNorm(nn.Module):
    """Element-wise `weight * x + bias`, which replaces LayerNorm in the paper (equation 2)."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `weight * x + bias`, of x's shape."""
        return torch.addcmul(self.bias, x, self.weight)  # one kernel; x * weight + bias is two


READERS = (nn.ReLU, nn.Identity, nn.Dropout, nn.LayerNorm, NoNorm)  # in inference they keep no reference to their input


def untouched(module: nn.Module, *kinds: type) -> bool:
    """Return whether `module` is exactly one of `kinds`: no subclass, no hooks, no other `forward`.

    A subclass (an adapter, for one) or a hook may do more. accelerate's hooks replace the `forward`
    of a single module.
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
    """Return whether other code may replace a call of `module`: untouched, no global hooks."""
    return untouched(module, *kinds) and not _has_any_global_hook()


def writable(x: torch.Tensor, maker: nn.Module, *readers: nn.Module, made_by: type = nn.Linear) -> bool:
    """Return whether an operation may overwrite the output of `maker`, which `readers` read next.

    All in-place code asks this function. No hook, adapter or tracer may hold such a tensor, and it
    must be writable: a tensor subclass, a vmap or a dual number may not be.
    x: the output, or the input of `maker`.
    A forward pass calls this 400 times, hence no generator and no access to `nn.Module` attributes.
    """
    # A compiler chooses in-place operations itself.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
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
    """Return whether inference may overwrite `linear`'s output: eager, without autocast, on a CPU.

    A forward pass of one sequence then takes 0.93 of the time (one core, 128 tokens). A product
    that gets its bias first copies it to every row, and the memory of each new tensor is no longer
    in the cache, because the weights have passed through it.
    """
    if torch.is_grad_enabled() or not x.is_cpu or not writable(x, linear, *readers) or torch.is_autocast_enabled("cpu"):
        return False
    own = linear._parameters  # reading linear.weight takes longer than all checks above
    # A quantizer may keep the layer and replace its weight by a tensor of another type.
    return type(own.get("weight")) in (nn.Parameter, torch.Tensor) and own.get("bias") is not None


def project(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return linear(x)."""
    return F.linear(x, linear.weight).add_(linear.bias) if in_place(linear, x) else linear(x)


def activate(activation: nn.Module, x: torch.Tensor, maker: nn.Module, made_by: type = nn.Linear) -> torch.Tensor:
    """Return activation(x), where x is the output of `maker`.

    A ReLU works in place, in training too: no backward pass reads its input.
    """
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
