"""Draw small charts as SVG: curves, points, intervals and maps. The style sheet colours them.

The same values give the same bytes. A chart is 380 wide, so that its text is legible on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 40
ROW = 34  # height of a row of intervals
LETTER = 6  # about the width of a letter
MAPS, GAP = 4, 8  # maps side by side, and the room between two
LEVELS = 20  # strengths of colour of a map
LARGEST = 1e140  # drawn values are below
LEAST_RANGE = 1e-300  # a smaller range counts as none


@dataclass(frozen=True)
class Curve:
    """A line. style: number of its colour and dashes."""

    style: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """A named point; a hollow one has not learnt."""

    name: str
    style: int
    x: float
    y: float
    hollow: bool = False


@dataclass(frozen=True)
class Interval:
    """A named row: its values, the interval from `low` to `high` and a mark, if there are any."""

    name: str
    text: str
    values: Sequence[float]
    low: float | None = None
    high: float | None = None
    mark: float | None = None


@dataclass(frozen=True)
class MapRow:
    """A named row of square maps. A map is row -> value of each cell, 0 or more."""

    name: str
    text: str
    maps: Sequence[Sequence[Sequence[float]]]


def can_be_drawn(*values: float | None) -> bool:
    """Return whether all values are finite and of a size that can be drawn."""
    return all(value is not None and abs(value) < LARGEST for value in values)


class _Axis:
    """An axis from `start` to `end` in the picture, which holds all the values."""

    def __init__(self, values: Iterable[float], start: float, end: float, margin: float = 0.0):
        known = list(values)
        low, high = min(known), max(known)
        around = abs(low) * 0.1 if abs(low) > LEAST_RANGE else 1.0
        reach = (high - low) * margin if high - low > LEAST_RANGE else around
        self.low, self.high = low - reach, high + reach
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round numbers on the axis, at most `most`."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)][: most + 1]


def curves(label: str, lines: Sequence[Curve], name: str, references: Mapping[str, float] | None = None) -> str:
    """Return lines over two axes. name: of the horizontal axis. references: name -> height of a
    dashed line across the chart."""
    marked = references or {}
    x = _Axis((0.0, *(point[0] for line in lines for point in line.points)), LEFT, WIDTH - RIGHT)
    y = _Axis((*(point[1] for line in lines for point in line.points), *marked.values()), HEIGHT - BOTTOM, TOP, 0.04)
    parts = [*_grid(x, y, name)]
    for mark, value in marked.items():
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(_text(WIDTH - RIGHT, y(value) - 3, mark, "end"))
    for line in lines:
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line.points)
        parts.append(f'<polyline class="{_style(line.style)}" points="{points}"/>')
    return _svg(label, HEIGHT, parts)


def dots(label: str, points: Sequence[Dot], name: str) -> str:
    """Return named points over two axes. The horizontal one begins at 0."""
    x = _Axis((0.0, *(point.x * 1.08 for point in points)), LEFT, WIDTH - RIGHT)
    y = _Axis((point.y for point in points), HEIGHT - BOTTOM, TOP, 0.12)
    parts, taken = [*_grid(x, y, name)], []
    for point in sorted(points, key=lambda point: point.y):
        left, top = x(point.x), y(point.y)
        shape = " hollow" if point.hollow else ""
        parts.append(f'<circle class="dot {_style(point.style)}{shape}" cx="{left:.1f}" cy="{top:.1f}" r="4.5"/>')
        height = min([top + 4, *(other - 13 for other in taken[-1:])])  # names must not cover one another
        taken.append(height)
        is_right = left + 8 + LETTER * len(point.name) < WIDTH
        parts.append(_text(left + 8 if is_right else left - 8, height, point.name, "start" if is_right else "end"))
    return _svg(label, HEIGHT, parts)


def intervals(label: str, rows: Sequence[Interval], name: str, references: Mapping[str, float] | None = None) -> str:
    """Return a row for each interval: its name and text above its values on a common axis."""
    marked = references or {}
    ends = [end for row in rows for end in (row.low, row.high, row.mark) if end is not None]
    x = _Axis((*ends, *(value for row in rows for value in row.values), *marked.values()), 14, WIDTH - 14, 0.05)
    bottom = TOP + ROW * len(rows) + 4
    parts = [_text(x(tick), bottom + 14, _number(tick), "middle") for tick in x.ticks()]
    parts.append(f'<line class="axis" x1="14" x2="{WIDTH - 14}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text(WIDTH / 2, bottom + 30, name, "middle"))
    for mark, value in marked.items():
        parts.append(f'<line class="reference" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{bottom}"/>')
        side = "end" if x(value) > WIDTH / 2 else "start"
        parts.append(_text(x(value), TOP - 4, mark, side))
    for number, row in enumerate(rows):
        top = TOP + ROW * number
        parts += [_text(14, top + 12, row.name, "start", "name"), _text(WIDTH - 14, top + 12, row.text, "end", "name")]
        line = top + 23
        if row.mark is not None:
            parts.append(f'<line class="mark" x1="{x(row.mark):.1f}" x2="{x(row.mark):.1f}" y1="{line - 7}" y2="{line + 7}"/>')
        if row.low is not None and row.high is not None:
            parts.append(f'<line class="interval" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{line}" y2="{line}"/>')
        parts += [f'<circle class="dot s0" cx="{x(value):.1f}" cy="{line}" r="4"/>' for value in row.values]
    return _svg(label, bottom + 38, parts)


def maps(label: str, rows: Sequence[MapRow]) -> str:
    """Return a line of maps for each row, below its name. The largest value has the full colour."""
    most = max((value for row in rows for one in row.maps for line in one for value in line), default=0.0) or 1.0
    side = (WIDTH - GAP * (MAPS - 1)) / MAPS
    parts, height = [], side + 26
    for number, row in enumerate(rows):
        top = height * number
        parts += [_text(0, top + 12, row.name, "start", "name"), _text(WIDTH, top + 12, row.text, "end", "name")]
        for place, one in enumerate(row.maps[:MAPS]):
            scale = side / len(one)
            cells = "".join(_cells(one, most))
            parts.append(f'<g transform="translate({place * (side + GAP):.1f} {top + 18:.1f}) scale({scale:.3f})">{cells}')
            parts.append(f'<rect class="frame" width="{len(one)}" height="{len(one)}"/></g>')
    return _svg(label, round(height * len(rows)), parts)


def _cells(one: Sequence[Sequence[float]], most: float) -> Iterable[str]:
    """Yield a path for each strength of colour. Neighbours of one strength are one piece."""
    found: dict[int, list[str]] = {}
    for top, line in enumerate(one):
        start = 0
        for left, (value, following) in enumerate(zip(line, (*line[1:], math.nan), strict=True), 1):
            level = round(LEVELS * value / most)
            if following != following or round(LEVELS * following / most) != level:
                found.setdefault(level, []).append(f"M{start} {top}h{left - start}v1h{start - left}z")
                start = left
    for level in sorted(found.keys() - {0}):
        yield f'<path class="cell" fill-opacity="{level / LEVELS:.3g}" d="{"".join(found[level])}"/>'


def _grid(x: _Axis, y: _Axis, name: str) -> Iterable[str]:
    for tick in y.ticks():
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        yield _text(LEFT - 6, y(tick) + 4, _number(tick), "end")
    for tick in x.ticks():
        yield _text(x(tick), HEIGHT - BOTTOM + 15, _number(tick), "middle")
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, name, "middle")


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{round(value, 9):g}" if abs(value) > 1e-6 else f"{value:g}"


def _style(number: int) -> str:
    return f"s{number % 8} d{number // 8 % 3}"


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    shown = f' class="{kind}"' if kind else ""
    return f'<text{shown} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(label: str, height: float, parts: Iterable[str]) -> str:
    head = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height:g}">'
    return head + "".join(parts) + "</svg>"
