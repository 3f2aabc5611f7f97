"""Compute the multiplier of the peak learning rate at each step, and the stages of transfer."""

from __future__ import annotations

import math


def linear(step: int, steps: int, warmup: int, end: float = 0.0) -> float:
    """Return a multiplier: linear to 1 over `warmup` steps, then linear to `end` at step `steps`.

    Step 0 is the first update.
    """
    if step < warmup:
        return (step + 1) / warmup
    return end + (1 - end) * (steps - step) / max(1, steps - warmup)


def stage(step: int, steps: int, layers: int) -> tuple[int, int, int]:
    """Return the layer (from 0) that a step of progressive transfer teaches, the step within its
    stage and the stage's number of steps.

    Paper section 3.5: 240k steps over 24 layers, 10k each. The last layer gets the remainder.
    """
    each = max(1, steps // layers)
    layer = min(step // each, layers - 1)
    length = each if layer < layers - 1 else max(1, steps - each * (layers - 1))
    return layer, step - layer * each, length


def stage_curve(step: int, steps: int) -> float:
    """Return the released code's multiplier at a step of one stage: up to 1 over the first tenth,
    then down to 0.9 with the square root of the step."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 - 0.1 * math.sqrt((step - warmup) / max(1, steps - warmup))
