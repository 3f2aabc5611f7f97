"""Optimise with LAMB or AdamW as in the released code.

That is: no bias correction, epsilon outside the root, decoupled weight decay. Both apply no decay
to normalisation parameters and biases; LAMB applies no trust ratio to them either (released code:
`optimization.py`, exclusion list "LayerNorm, layer_norm, FakeLayerNorm, bias"). The foreach
functions start a few kernels a step, not a few a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import nn


def is_excluded(name: str) -> bool:
    """Return whether a parameter takes no weight decay and no trust ratio."""
    return name.endswith("bias") or "LayerNorm" in name or ".layer_norm" in name.lower()


class _WithoutBiasCorrection(torch.optim.Optimizer):
    """An optimizer with two moments a parameter and the update m / (sqrt(v) + eps) + decay * w.

    A group's "lr" is a number, or a tensor () of the parameters' dtype on their device. With a
    tensor, a step can be recorded in a CUDA graph once all moments exist.
    """

    def __init__(self, groups, learning_rate: float | torch.Tensor, betas=(0.9, 0.999), eps: float = 1e-6):
        super().__init__(
            groups, {"lr": learning_rate, "betas": betas, "eps": eps, "weight_decay": 0.0, "rate": 1.0, "excluded": False}
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters or group["rate"] == 0:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
            gradients = [p.grad for p in parameters]
            first = [self.state[p]["m"] for p in parameters]
            second = [self.state[p]["v"] for p in parameters]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(first, gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            update = torch._foreach_sqrt(second)
            torch._foreach_add_(update, group["eps"])
            torch._foreach_reciprocal_(update)
            torch._foreach_mul_(update, first)
            if group["weight_decay"]:
                torch._foreach_add_(update, parameters, alpha=group["weight_decay"])
            self._apply(parameters, update, group["lr"] * group["rate"], group)

    def _apply(self, parameters, update, rate, group):
        raise NotImplementedError


def _descend(parameters, update, rate: float | torch.Tensor) -> None:
    """Subtract rate * update from the parameters, in place.

    If the rate is a tensor, only the device reads it, and `update` is overwritten.
    """
    if isinstance(rate, torch.Tensor):
        torch._foreach_mul_(update, rate)
        torch._foreach_sub_(parameters, update)
    else:
        torch._foreach_add_(parameters, update, alpha=-rate)


class AdamW(_WithoutBiasCorrection):
    """AdamW without bias correction."""

    def _apply(self, parameters, update, rate, group):
        _descend(parameters, update, rate)


class Lamb(_WithoutBiasCorrection):
    """LAMB (You et al. 2020) as released.

    The trust ratio is ||w|| / ||update||, with the decay inside the update; 1 if either is zero.
    """

    def _apply(self, parameters, update, rate, group):
        if group["excluded"]:
            _descend(parameters, update, rate)
            return
        weights = torch.stack(torch._foreach_norm(parameters))
        updates = torch.stack(torch._foreach_norm(update))
        ratio = torch.where((weights > 0) & (updates > 0), weights / updates, torch.ones_like(weights))
        torch._foreach_mul_(update, list(ratio.unbind()))
        _descend(parameters, update, rate)


def make(
    model: nn.Module,
    kind: str,
    learning_rate: float,
    weight_decay: float,
    beta2: float = 0.999,
    group: Callable[[str], Hashable] = lambda name: None,
) -> torch.optim.Optimizer:
    """Return the optimizer `kind` ("adamw" or "lamb") of a model.

    It has a group for each (group(name), excluded) pair. A group's "rate" multiplies its learning
    rate; at 0 the group is skipped.
    """
    groups: dict = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((group(name), is_excluded(name)), []).append(parameter)
    settings = [
        {"params": parameters, "excluded": excluded, "weight_decay": 0.0 if excluded else weight_decay}
        for (_, excluded), parameters in groups.items()
    ]
    return {"adamw": AdamW, "lamb": Lamb}[kind](settings, learning_rate, betas=(0.9, beta2))
