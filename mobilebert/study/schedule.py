"""Learning-rate multipliers: what a step's peak rate is multiplied by."""

from __future__ import annotations

import math


def linear(step: int, steps: int, warmup: int, end: float = 0.0) -> float:
    """Linear warm-up over `warmup` steps, then linear decay from 1 to `end` at `steps`. Step 0 is the first update."""
    if step < warmup:
        return (step + 1) / warmup
    return end + (1 - end) * (steps - step) / max(1, steps - warmup)


def stage(step: int, steps: int, layers: int) -> tuple[int, int, int]:
    """Layer (from 0) that step `step` of progressive transfer teaches, the step within it, and its number of steps.

    Paper section 3.5: 240k steps over 24 layers, 10k each; a remainder goes to the last layer.
    """
    each = max(1, steps // layers)
    layer = min(step // each, layers - 1)
    length = each if layer < layers - 1 else max(1, steps - each * (layers - 1))
    return layer, step - layer * each, length


def stage_curve(step: int, steps: int) -> float:
    """Released code's curve within one stage: 0 to 1 over the first tenth, then a fall shaped as a square root to 0.9."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 - 0.1 * math.sqrt((step - warmup) / max(1, steps - warmup))
