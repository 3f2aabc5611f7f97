"""Compare two sides: what differs between them, every metric, and the gate if one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mobilebert.compare.baseline import Baseline
from mobilebert.compare.differences import Difference, differences
from mobilebert.compare.gate import GateRow, gate
from mobilebert.compare.metrics import MetricRow, metric_rows
from mobilebert.compare.side import Side


@dataclass(frozen=True)
class Comparison:
    """Two sides compared. base, new: their names, with the number of runs."""

    base: str
    new: str
    differences: tuple[Difference, ...]
    metrics: tuple[MetricRow, ...]

    @property
    def is_equal(self) -> bool:
        """Return whether nothing differs but times, of which two runs never have the same."""
        return not self.differences and all(row.verdict == "same" or row.is_timing for row in self.metrics)

    @property
    def verdicts(self) -> dict[str, int]:
        """Return how many metrics have each verdict, the most frequent first."""
        found: dict[str, int] = {}
        for row in self.metrics:
            found[row.verdict] = found.get(row.verdict, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Report:
    """All that one command compared. gate: None unless it was asked for."""

    comparisons: tuple[Comparison, ...]
    gate: tuple[GateRow, ...] | None = None

    def as_json(self) -> dict:
        """Return the report as JSON can hold it."""
        found = []
        for one in self.comparisons:
            metrics = [_metric(row) for row in one.metrics]
            content = {"base": one.base, "new": one.new, "equal": one.is_equal}
            found.append(content | {"differences": list(map(asdict, one.differences)), "metrics": metrics})
        rows = None if self.gate is None else [asdict(row) for row in self.gate]
        return {"comparisons": found, "gate": rows}


def compare(base: Side, new: Sequence[Side], baseline: Baseline | None = None) -> Report:
    """Return the report on the new sides. baseline: the gate's, if the gate is asked for."""
    found = []
    for side in new:
        found.append(Comparison(_name(base), _name(side), tuple(differences(base, side)), tuple(metric_rows(base, side))))
    return Report(tuple(found), tuple(gate(baseline, base, new)) if baseline else None)


def _name(side: Side) -> str:
    return f"{side.name} ({len(side.seeds)} run{'s' * (len(side.seeds) > 1)})"


def _metric(row: MetricRow) -> dict:
    found: dict = {"job": row.job, "metric": row.metric, "better": row.better, "verdict": row.verdict}
    for name, values in (("base", row.base), ("new", row.new)):
        found[name] = values and {"values": values.values, "mean": values.mean, "spread": values.spread, "n": len(values.values)}
    return found | {"difference": row.difference, "margin": row.margin}
