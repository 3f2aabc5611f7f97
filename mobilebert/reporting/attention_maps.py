"""Draw the attention maps that a record keeps, and measure how far they are from the teacher's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import permutations

from mobilebert.jobs.record import Attention, AttentionMaps
from mobilebert.reporting.chart import MapRow, maps

Head = Sequence[Sequence[float]]  # looking token -> share of each token
MOST_HEADS, MOST_TOKENS = 4, 32  # that are drawn
WEIGHTS = {
    "initial": "before its first step",
    "transfer": "after transfer",
    "distill": "distilled",
}  # in words, of a student


def panels(found: Attention) -> Iterator[tuple[str, str]]:
    """Yield title and drawing of every layer of the first model, the teacher; none if the record
    holds no maps of one size."""
    first = found.maps[0] if found.maps else None
    size = min(len(found.tokens), MOST_TOKENS)
    for layer in sorted(first.layers) if first else ():
        rows, teacher = [], _heads(found.maps[0], layer, size)
        for model in found.maps if teacher else ():
            if heads := _heads(model, layer, size):
                name = f"{model.model}, {'the teacher' if model is first else WEIGHTS.get(model.weights, model.weights)}"
                rows.append(MapRow(name, "" if model is first else _distance(heads, teacher), heads))
        if rows:
            title = f"{found.maps[-1].model} and its teacher: layer {layer}, heads 1 to {len(teacher)}"
            words = "; ".join(f"{row.name} {row.text}".strip() for row in rows)
            yield title, maps(f"Attention maps. {title}. Difference from the teacher's: {words}", rows)


def _heads(model: AttentionMaps, layer: int, size: int) -> list[Head]:
    """Return the heads of a layer; none if a map has no row and column for each of `size` tokens.

    A share outside 0 to 1 is none either.
    """
    heads = model.layers.get(layer, ())[:MOST_HEADS]
    fits = all(len(head) == size and all(_is_row(row, size) for row in head) for head in heads)
    return list(heads) if fits and size else []


def _is_row(row: Sequence[float], size: int) -> bool:
    return len(row) == size and all(0 <= share <= 1 for share in row)


def _distance(heads: Sequence[Head], teacher: Sequence[Head]) -> str:
    """Return the difference from the teacher's heads in words; "" for another number of heads.

    It is the share of attention that a token gives to other tokens than the teacher's does, 0 to 1,
    averaged over tokens and heads. Heads in another order are the same attention, so the difference
    in the best order follows if it is smaller.
    """
    if len(heads) != len(teacher):
        return ""
    table = [[_moved(mine, theirs) for theirs in teacher] for mine in heads]
    orders = permutations(range(len(teacher)))
    means = [math.fsum(table[mine][theirs] for mine, theirs in enumerate(order)) / len(heads) for order in orders]
    own, best = f"{means[0]:.2f}", f"{min(means):.2f}"
    return f"{own} off" if own == best else f"{own} off, re-ordered {best}"


def _moved(head: Head, other: Head) -> float:
    rows = zip(head, other, strict=True)
    return math.fsum(abs(mine - theirs) for one, two in rows for mine, theirs in zip(one, two, strict=True)) / 2 / len(head)
