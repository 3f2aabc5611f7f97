"""LAMB and AdamW as the released code has them: no bias correction, epsilon outside the root, decoupled weight decay.

Both leave normalisation parameters and biases out of decay; LAMB leaves them out of the trust ratio too (released code:
`optimization.py`, exclusion list "LayerNorm, layer_norm, FakeLayerNorm, bias"). The foreach forms cost a few kernels a step,
not a few a parameter.
"""

# torch lists no _foreach function in __all__.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import nn


def is_excluded(name: str) -> bool:
    """Whether a parameter takes no weight decay and no trust ratio."""
    return name.endswith("bias") or "LayerNorm" in name or ".layer_norm" in name.lower()


class _WithoutBiasCorrection(torch.optim.Optimizer):
    """First and second moments of every parameter, and the update m / (sqrt(v) + eps) + decay * w.

    A group's "lr" is a number, or a tensor () of the parameters' dtype on their device: then a step, once all moments are there,
    can be part of a CUDA graph.
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
    """parameters -= rate * update. A rate that is a tensor is read by the device alone; `update` is then used up."""
    if isinstance(rate, torch.Tensor):
        torch._foreach_mul_(update, rate)
        torch._foreach_sub_(parameters, update)
    else:
        torch._foreach_add_(parameters, update, alpha=-rate)


class AdamW(_WithoutBiasCorrection):
    def _apply(self, parameters, update, rate, group):
        _descend(parameters, update, rate)


class Lamb(_WithoutBiasCorrection):
    """You et al. 2020, as released: trust ratio ||w|| / ||update|| with the decay inside the update, 1 if either is zero."""

    def _apply(self, parameters, update, rate, group):
        if group["excluded"]:  # the excluded parameters: no decay, no trust ratio
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
    """An optimizer with a group for each (group(name), excluded) pair; a group's "rate" multiplies its learning rate."""
    groups: dict = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((group(name), is_excluded(name)), []).append(parameter)
    settings = [
        {"params": parameters, "excluded": excluded, "weight_decay": 0.0 if excluded else weight_decay}
        for (_, excluded), parameters in groups.items()
    ]
    return {"adamw": AdamW, "lamb": Lamb}[kind](settings, learning_rate, betas=(0.9, beta2))
