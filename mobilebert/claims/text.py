"""Say in words what was found on every claim: one line in a table and one paragraph each."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from mobilebert.claims.effects import Effect
from mobilebert.claims.judge import POWER, Finding, thresholds
from mobilebert.claims.measured import Measured
from mobilebert.paper.claims import OF_LOSSES, Claim, Link
from mobilebert.util.text import cut
from mobilebert.util.text import markdown as escaped

WIDTH = 120
PROSE = 100
COLUMNS = (13, 24, 48, 30)  # widths of the table; with three gaps they fill at most WIDTH
HEADS = ("verdict", "claim", "measured, with interval", "needed")
ORDER = ("reproduced", "contradicted", "inconclusive", "other device", "void", "not run", "exploratory")
AXES = {"nat": "nats of held-out loss", "points": "percentage points", "x": "times as fast", "G": "billions of operations"}
UNITS = {"nat": " nat", "points": " points", "x": " x", "G": " G"}


def summary(found: Sequence[Finding]) -> str:
    """Return how many claims have each verdict, as one line."""
    parts = []
    for title, standing in (("primary claims", "primary"), ("exact claims", "exact")):
        counts = Counter(finding.verdict for finding in found if finding.claim.standing == standing)
        shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
        parts.append(f"{sum(counts.values())} {title}: {shown}")
    explored = [finding for finding in found if finding.claim.standing == "exploratory"]
    measured = sum(bool(finding.effects) for finding in explored)
    return "; ".join([*parts, f"{len(explored)} exploratory: {measured} with a value, none judged"]) + "."


def condition(measured: Measured) -> str:
    """Return the sentence on which all claims about students depend."""
    runs = [
        f"{row} with seed {seed}, {run.loss:.2f} nat, {_below(run.unigram - run.loss)}"
        for row, seeds in sorted(measured.teachers.items())
        for seed, run in sorted(seeds.items())
        if run.loss is not None
    ]
    if not runs:
        return "No teacher is among the records."
    if len(runs) > 1:
        return f"Every claim on students is conditional on {len(runs)} teachers: {'; '.join(runs)}."
    return f"Every claim on students is conditional on one teacher: {runs[0]}."


def _below(lead: float) -> str:
    """Return how far a loss lies below the unigram entropy, or that the record lacks the latter."""
    return f"{lead:.2f} below the unigram entropy" if math.isfinite(lead) else "its unigram entropy not recorded"


def table(found: Sequence[Finding]) -> str:
    """Return the table as plain text, at most WIDTH columns wide."""
    rows = [(finding.verdict, finding.claim.id, values(finding), needed(finding.claim)) for finding in found]
    return "\n".join(map(_line, [HEADS, ["-" * width for width in COLUMNS], *rows]))


def _line(cells: Sequence[str]) -> str:
    return " ".join(cut(cell, width).ljust(width) for cell, width in zip(cells, COLUMNS, strict=True)).rstrip()


def values(finding: Finding) -> str:
    """Return the measured value and its interval; the reason if there is no value."""
    if finding.value is not None:
        return _figure(finding.claim, finding.value)
    if not finding.effects:
        return finding.reason
    texts = []
    for effect, interval in zip(finding.effects, finding.intervals, strict=True):
        reach = f" [{', '.join(_figure(finding.claim, end) for end in interval)}]" if math.isfinite(effect.error) else ""
        texts.append(f"{_figure(finding.claim, effect.value)}{reach}")
    return "; ".join(texts) + UNITS[finding.claim.unit]


def needed(claim: Claim) -> str:
    """Return what the value must be for the claim to hold."""
    if claim.kind == "size":
        return f"{claim.printed}{UNITS[claim.unit]}, as printed"
    limit = _figure(claim, thresholds(claim)[0])
    if claim.standing == "exploratory":
        return f"above {limit}; not judged"
    return f"above {limit}{' each' if len(claim.links) > 1 else ''}"


def _figure(claim: Claim, value: float) -> str:
    """Return a figure of a claim; the logarithm of a speed becomes a ratio."""
    if claim.kind == "speed":
        return f"{math.exp(value):.2f}" if value < 700 else "inf"
    if claim.kind == "size":
        return f"{value:.2f}{UNITS[claim.unit]}"
    return f"{value:+.3f}" if claim.unit == "nat" else f"{value:+.2f}"


# --- paragraphs


def paragraph(finding: Finding) -> str:
    """Return what was found, for a reader who does not know the paper."""
    claim = finding.claim
    parts = [f"The paper says ({claim.place}): {claim.sentence}."]
    if finding.value is not None:
        parts.append(f"Computed from the configurations: {finding.value:.3f}; the paper prints {claim.printed}.")
    parts += [_sentence(finding, number) for number in range(len(finding.effects))]
    if finding.details:
        parts.append(f"In points: {', '.join(map(_detail, finding.details))}.")
    parts.append(_conclusion(finding))
    return " ".join(parts)


def _detail(effect: Effect) -> str:
    """Return a task's effect with its number of rows, or one of its seeds' effects."""
    count = "" if "seed" in effect.name else f" of {effect.n:,} rows"
    return f"{effect.name} {effect.value:+.2f}{count}"


def _sentence(finding: Finding, number: int) -> str:
    claim, effect, link = finding.claim, finding.effects[number], finding.claim.links[number]
    reach = ""
    if math.isfinite(effect.error):
        low, high = (_figure(claim, end) for end in finding.intervals[number])
        reach = f", with {100 * finding.confidence:.4g} % confidence {low} to {high}"
    return f"Measured: {_what(claim, link, effect)}{reach} ({_count(claim, effect)})."


def _what(claim: Claim, link: Link, effect: Effect) -> str:
    ahead = effect.value >= 0
    if claim.kind == "speed":
        return f"{link.better[0]} is {math.exp(effect.value):.2f} times as fast as {(link.than or ('',))[0]}"
    if link.than is None:
        return f"{link.better[0]} scores {effect.value:.2f}"
    size = f"{abs(effect.value):.3f}" if claim.unit == "nat" else f"{abs(effect.value):.2f}"
    if claim.kind == "contrast":
        gains = [f"the gain of {side[0]} on {side[1]}" for side in (link.better, link.than)]
        return f"{gains[0]} is {size} nat {'larger' if ahead else 'smaller'} than {gains[1]}"
    if claim.kind in OF_LOSSES:
        return f"the held-out loss of {link.better[0]} is {size} nat {'lower' if ahead else 'higher'} than that of {link.than[0]}"
    return f"{link.better[0]} scores {size} points {'more' if ahead else 'less'} than {link.than[0]}"


def _count(claim: Claim, effect: Effect) -> str:
    if claim.kind == "no loss":
        return f"{effect.n:,} rows"
    noun = "timing" if claim.kind == "speed" else "seed"
    return f"{effect.n} {noun}{'' if effect.n == 1 else 's'}"


def _conclusion(finding: Finding) -> str:
    claim = finding.claim
    if finding.verdict == "reproduced":
        return "The digits agree." if claim.kind == "size" else "The claim holds in this study."
    if finding.verdict == "contradicted":
        if claim.kind == "size":
            return "The digits differ, so this does not agree with the paper."
        return "The claim does not hold in this study: the interval lies wholly beyond the margin, on the other side."
    if finding.verdict == "not run":
        return f"Not run: {finding.reason}."
    if finding.verdict == "void":
        return f"Void, this study cannot speak to it: {finding.reason}."
    if finding.verdict == "other device":
        return f"No verdict: {finding.reason}. The paper's figure is {claim.printed}."
    told = f" {_told(finding)}" if finding.smallest is not None else ""
    if finding.verdict == "exploratory":
        return f"Exploratory: shown, not judged.{told}"
    return f"This study cannot tell: {finding.reason or _why_untold(finding)}.{told}"


def _why_untold(finding: Finding) -> str:
    """Return why a test has no verdict.

    A claim of several comparisons is contradicted if one of them is, at a correspondingly higher
    confidence than that of the printed intervals.
    """
    below, count = thresholds(finding.claim)[1], len(finding.intervals)
    if count > 1 and any(high < below for _, high in finding.intervals):
        confidence = 100 * (1 - (1 - finding.confidence) / count)
        needed_of_one = f"but as one of {count} it must do so with {confidence:.4g} % confidence"
        return f"a comparison lies beyond the margin on the other side, {needed_of_one}"
    above = thresholds(finding.claim)[0]
    untold = [low <= above <= high or low <= below <= high for low, high in finding.intervals]
    if not any(untold):
        between = f"between {_figure(finding.claim, below)} and {_figure(finding.claim, above)}"
        return f"{'an' if count > 1 else 'the'} interval lies {between}, which counts neither as a gain nor as a loss"
    which = f" of comparison {untold.index(True) + 1}" if count > 1 and sum(untold) == 1 else ""
    return f"the interval{which} holds values on both sides of a margin"


def _told(finding: Finding) -> str:
    """Return the smallest difference that such a study could have told."""
    claim, smallest = finding.claim, finding.smallest or 0.0
    share = f"would have been told in {round(POWER * 10)} of 10 such studies"
    limit = _figure(claim, thresholds(claim)[0])
    if claim.kind == "speed":
        return f"A ratio {100 * math.expm1(min(smallest, 50.0)):.0f} % away from {limit} {share}."
    if claim.kind == "score":
        return f"A value {smallest:.2f} points away from {limit} {share}."
    digits, unit = (3 if claim.unit == "nat" else 2), UNITS[claim.unit]
    if thresholds(claim)[0] == thresholds(claim)[1]:
        return f"A difference {smallest:.{digits}f}{unit} away from {limit} {share}."
    return f"A difference of {claim.margin + smallest:.{digits}f}{unit} {share}."


# --- whole texts


def plain(found: Sequence[Finding], measured: Measured) -> str:
    """Return summary, table and paragraphs for a terminal."""
    texts = [textwrap.fill(text, PROSE) for text in (summary(found), condition(measured))]
    texts.append(table(found))
    for finding in found:
        head = f"{finding.claim.id}: {finding.verdict}"
        texts.append("\n".join([head, *textwrap.wrap(paragraph(finding), PROSE, initial_indent="  ", subsequent_indent="  ")]))
    return "\n\n".join(texts)


def markdown(found: Sequence[Finding], measured: Measured) -> str:
    """Return the section on claims as Markdown, under a heading `## Claims`."""
    lines = ["## Claims", "", escaped(summary(found)), "", escaped(condition(measured)), ""]
    lines += [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    for finding in found:
        cells = (f"**{finding.verdict}**", finding.claim.id, escaped(values(finding)), escaped(needed(finding.claim)))
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- **{finding.claim.id}: {finding.verdict}.** {escaped(paragraph(finding))}" for finding in found]
    return "\n".join(lines) + "\n"


def section(found: Sequence[Finding], measured: Measured) -> dict:
    """Return the section on claims as the page's template reads it."""
    rows = [
        {
            "id": finding.claim.id,
            "standing": finding.claim.standing,
            "sentence": finding.claim.sentence,
            "verdict": finding.verdict,
            "values": values(finding),
            "needed": needed(finding.claim),
            "paragraph": paragraph(finding),
            "axis": AXES[finding.claim.unit] if finding.claim.links[0].than else "percent",
            "limit": _plain_number(finding.claim, thresholds(finding.claim)[0]) if finding.effects else None,
            "effects": _effects(finding),
        }
        for finding in found
    ]
    return {"summary": summary(found), "condition": condition(measured), "rows": rows}


def _effects(finding: Finding) -> list[dict]:
    """Return the effects as a chart draws them: a speed is a ratio, an unknown end is None."""
    found = []
    for effect, link, interval in zip(finding.effects, finding.claim.links, finding.intervals, strict=False):
        name = f"{link.better[0]} over {(link.than or ('',))[0]}" if len(finding.claim.links) > 1 else finding.claim.id
        low, high = (_plain_number(finding.claim, end) for end in interval)
        text = f"{_figure(finding.claim, effect.value)}{UNITS[finding.claim.unit]}"
        found.append({"name": name, "value": _plain_number(finding.claim, effect.value), "low": low, "high": high, "text": text})
    return found


def _plain_number(claim: Claim, value: float) -> float | None:
    """Return a value without logarithm; None if it is not finite."""
    ended = math.exp(value) if claim.kind == "speed" and value < 700 else value
    return ended if math.isfinite(ended) else None


def as_data(finding: Finding) -> dict:
    """Return a finding as JSON holds it: intervals of a speed are ratios, no value is infinite."""
    links = [
        {
            "better": list(link.better),
            "than": link.than and list(link.than),
            "value": _plain_number(finding.claim, effect.value),
            "interval": [_plain_number(finding.claim, end) for end in interval],
            "n": effect.n,
        }
        for link, effect, interval in zip(finding.claim.links, finding.effects, finding.intervals, strict=False)
    ]
    claim = finding.claim
    return {
        "id": claim.id,
        "verdict": finding.verdict,
        "standing": claim.standing,
        "kind": claim.kind,
        "place": claim.place,
        "sentence": claim.sentence,
        "unit": claim.unit,
        "needed": needed(claim),
        "value": finding.value,
        "links": links,
        "confidence": round(finding.confidence, 6),
        "smallest": finding.smallest,
        "reason": finding.reason,
        "paragraph": paragraph(finding),
    }
