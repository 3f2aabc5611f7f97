"""Answer on the page's first screen: what was run, what held, what did not."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mobilebert import paper
from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.reporting.cell import NOTHING, Cell, show
from mobilebert.reporting.tables import FilledTable, counts
from mobilebert.reporting.verdicts import NAMED, Outcome
from mobilebert.study.graph import final_job
from mobilebert.study.recipe import TASK_NAMES
from mobilebert.study.schema import Study
from mobilebert.study.tasks import TASKS

SUBJECT = "mobilebert"
WITHOUT = "without a model"  # the majority class, or the loss of word frequencies
# Model row -> heading. A result must beat these to mean anything.
BASELINES = {
    "bert-base": "BERT_BASE",
    "bag-of-embeddings": "bag of embeddings",
    "scratch": "student alone",
    "untrained": "never trained",
    "control-fresh-student": "transfer not loaded",
    "control-shuffled-teacher": "teacher shuffled",
}
# The kinds of labels that prevent a verdict, and how a sentence names them.
KINDS = {
    "synthetic": "on generated data",
    "scaled": "at a smaller scale",
    "subset": "with a part of the data",
    "budget": "with a limit of time",
}


@dataclass(frozen=True)
class Share:
    """A part of a card's bar. tone: good, near, bad or muted."""

    tone: str
    name: str
    count: int


@dataclass(frozen=True)
class Card:
    """One answer: a title, how many of how many, and the parts that make up the rest."""

    title: str
    target: str  # id of the section with the details
    figure: str
    what: str
    shares: Sequence[Share] = ()
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """One value of MobileBERT beside the paper's and the baselines'. cell: id of its table cell."""

    quantity: str
    published: str
    measured: str
    verdict: str
    cell: str | None
    baselines: Mapping[str, str] = field(default_factory=dict)


TONES = {
    **dict.fromkeys(("match", "pass", "ok", "reproduced"), "good"),
    "near": "near",
    **dict.fromkeys(("differs", "contradicted", "failed", "diverged", "fail", "edited"), "bad"),
}


def tone(verdict: str) -> str:
    """Return the tone of a verdict or a status: good, near, bad or muted."""
    return TONES.get(verdict, "muted")


def cell_id(table: int, row: int, column: int) -> str:
    """Return the id of a cell in the page; rows and columns count from 1."""
    return f"cell-{table}-{row}-{column}"


# --- the answer


def answer(
    tables: Sequence[FilledTable], outcomes: Sequence[Outcome], edited: Collection[str], claims: Mapping | None = None
) -> list[tuple[str, str]]:
    """Return the sentences that say what held, each with its tone."""
    numbers = counts(list(tables))
    judged = {name: numbers.get(f"measured_{name}", 0) for name in ("match", "near", "differs")}
    total = sum(judged.values())
    found = []
    if total:
        rest = ", ".join(f"{judged[name]} {text}" for name, text in (("near", "are near"), ("differs", "differ")) if judged[name])
        kind = "bad" if judged["differs"] else "near" if judged["near"] else "good"
        found.append((kind, f"{judged['match']} of {total} judged cells match the paper{f'; {rest}' if rest else ''}."))
    elif numbers["measured"]:
        why = _why_unjudged(tables)
        reason = f": this study ran {why}" if why else ""
        found.append(("muted", f"The paper's scores are neither confirmed nor refuted{reason}."))
    else:
        found.append(("muted", "Nothing has been measured yet."))
    if claims:
        verdicts = [row["verdict"] for row in claims["rows"] if row["standing"] == "primary"]
        held, broken = verdicts.count("reproduced"), verdicts.count("contradicted")
        if held or broken:
            rest = f", {broken} contradicted" if broken else ""
            found.append(("bad" if broken else "good", f"Claims of the paper: {held} of {len(verdicts)} reproduced{rest}."))
    failed = numbers.get("measured_failed", 0) + numbers.get("measured_diverged", 0)
    if failed:
        found.append(("bad", f"{failed} of {numbers['measured']} measured cells are of models that did not learn."))
    decided = [item for item in outcomes if item.outcome != "shown"]
    for name, kind in (("fail", "bad"), ("void", "near")):
        if others := [item.what for item in decided if item.outcome == name]:
            verb = "do not hold" if name == "fail" else "are void"
            found.append((kind, f"Expectations of the study that {verb}, {len(others)} of {len(decided)}: {'; '.join(others)}."))
    if decided and all(item.outcome == "pass" for item in decided):
        found.append(("good", f"Expectations of the study: all hold, {len(decided)} of {len(decided)}."))
    if edited:
        found.append(("bad", f"Changed after they were written, so without a value here: {', '.join(edited)}."))
    return found


def _why_unjudged(tables: Sequence[FilledTable]) -> str:
    """Return in words why cells have a value and no verdict."""
    labels = [label for filled in tables for row in filled.rows for cell in row.cells for label in _unjudged(cell)]
    found = [text for kind, text in KINDS.items() if any(label.startswith(kind) for label in labels)]
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def _unjudged(cell: Cell) -> tuple[str, ...]:
    if cell.verdict not in ("not judged", "failed"):
        return ()
    return tuple(label for label in cell.labels if not label.startswith(NAMED))


# --- cards


def cards(tables: Sequence[FilledTable], outcomes: Sequence[Outcome], claims: Mapping | None) -> list[Card]:
    """Return the cards: measured cells, claims, expectations, computed cells."""
    numbers = counts(list(tables))
    judged = sum(numbers.get(f"measured_{name}", 0) for name in ("match", "near", "differs"))
    note = f"{numbers['not_run']} more were not run"
    found = [Card("Measured cells", "tables", f"{judged} of {numbers['measured']}", "judged", _shares(numbers, "measured"), note)]
    if claims:
        found.append(_claims_card(claims))
    if outcomes:
        verdicts = [item.outcome for item in outcomes]
        decided = [verdict for verdict in verdicts if verdict != "shown"]
        shares = [Share(tone(name), name, verdicts.count(name)) for name in ("pass", "fail", "void", "shown") if name in verdicts]
        note = "comparisons of this study's own records"
        held = f"{decided.count('pass')} of {len(decided)}"
        found.append(Card("Expectations", "expectations", held, "hold", shares, note))
    held = f"{numbers.get('computed_match', 0)} of {numbers['computed']}"
    note = "from the configurations, without training"
    return [*found, Card("Sizes and costs", "tables", held, "match", _shares(numbers, "computed"), note)]


def _shares(numbers: Mapping[str, int], kind: str) -> list[Share]:
    found = {name.removeprefix(f"{kind}_"): count for name, count in numbers.items() if name.startswith(f"{kind}_")}
    shares = [Share(tone(name), name.replace("_", " "), count) for name, count in sorted(found.items())]
    return sorted(shares, key=lambda share: ("good", "near", "bad", "muted").index(share.tone))


def _claims_card(claims: Mapping) -> Card:
    rows = [row for row in claims["rows"] if row["standing"] == "primary"]
    verdicts = [row["verdict"] for row in rows]
    order = sorted(dict.fromkeys(verdicts), key=lambda name: (("good", "near", "bad", "muted").index(tone(name)), name))
    shares = [Share(tone(name), name, verdicts.count(name)) for name in order]
    exact = [row["verdict"] for row in claims["rows"] if row["standing"] == "exact"]
    note = f"and {exact.count('reproduced')} of {len(exact)} printed sizes"
    return Card("The paper's claims", "claims", f"{verdicts.count('reproduced')} of {len(rows)}", "reproduced", shares, note)


# --- headline values


def headlines(study: Study, records: Mapping[str, Record], tables: Sequence[FilledTable]) -> tuple[list[str], list[Headline]]:
    """Return the headings of the baselines that have a value, and the headline rows of SUBJECT.

    GLUE, SQuAD and latency come first, run or not; then every task that was scored, and the loss.
    """
    always = [
        ("glue", None, None),
        ("finetune", "squad_v1.1", "f1"),
        ("finetune", "squad_v2.0", "f1"),
        ("latency", None, "p50_ms"),
    ]
    tasks = [("finetune", task, TASKS[task].metrics[0]) for task in TASK_NAMES if f"finetune/{SUBJECT}/{task}" in records]
    rows = [_headline(study, key, records, tables) for key in dict.fromkeys((*always, *tasks))]
    if loss := _loss(study, records):
        rows.append(loss)
    used = [
        head
        for head in (WITHOUT, *_baselines(study).values())
        if any(row.baselines.get(head, NOTHING) != NOTHING for row in rows)
    ]
    return used, rows


def _cells(tables: Sequence[FilledTable], model: str, key: tuple) -> Iterator[tuple[bool, str, Cell]]:
    """Yield (whether the paper's value is of the test server, id, cell) for float cells."""
    for filled in tables:
        for number, row in enumerate(filled.rows, 1):
            for place, (column, cell) in enumerate(zip(filled.table.columns, row.cells, strict=True), 1):
                same = (column.source, column.task, column.metric) == key
                if row.row.model == model and row.row.precision == "fp32" and same:
                    yield column.published_split == "test server", cell_id(filled.number, number, place), cell


def _baselines(study: Study) -> dict[str, str]:
    """Return model row -> heading, also of the study's own checkpoints."""
    return BASELINES | {model: model for model in study.checkpoints if model not in paper.models()}


def _headline(study: Study, key: tuple, records: Mapping[str, Record], tables: Sequence[FilledTable]) -> Headline:
    source, task, metric = key
    found = min(_cells(tables, SUBJECT, key), key=lambda item: item[0], default=None)  # development scores come first
    baselines = {}
    for model, head in _baselines(study).items():
        if task:
            baselines[head] = _score(records.get(f"finetune/{model}/{task}"), metric)
        else:
            texts = [cell.measured_text for _, _, cell in _cells(tables, model, key) if cell.measured is not None]
            baselines[head] = texts[0] if texts else NOTHING
    if task and metric == "accuracy":
        baselines[WITHOUT] = _score(records.get(f"finetune/{SUBJECT}/{task}"), "majority", count=False)
    quantity = {"glue": "GLUE score", "latency": "latency (ms)"}.get(source) or f"{TASKS[task].column} {_words(metric)}"
    if found is None:
        return Headline(quantity, NOTHING, _score(records.get(f"finetune/{SUBJECT}/{task}"), metric), "", None, baselines)
    is_test, place, cell = found
    published = f"{cell.published_text}{' (test)' if is_test and cell.published is not None else ''}"
    return Headline(quantity, published, cell.measured_text, cell.verdict or "", place, baselines)


def _words(metric: str) -> str:
    return {"f1": "F1", "spearmanr": "Spearman", "matthews_correlation": "Matthews correlation"}.get(
        metric, metric.replace("_", " ")
    )


def _score(record: Record | None, metric: str, count: bool = True) -> str:
    """Return a score as a cell prints it, with " (failed)" if the model did not learn."""
    value = reading.fraction_in_percent(record.metrics.get(metric)) if record and record.status == "ok" else math.nan
    if record is None or math.isnan(value):
        return NOTHING
    failed = " (failed)" if count and reading.status(record) == "failed" else ""
    return f"{show(value, '%')}{failed}"


def _loss(study: Study, records: Mapping[str, Record]) -> Headline | None:
    """Return the loss on held-out text, also of the baselines; None if SUBJECT has none."""
    names = (SUBJECT, *_baselines(study))
    shown = {model: _nats(records.get(final_job(study, model) or "")) for model in names if model in study.models}
    if shown[SUBJECT] == NOTHING:
        return None
    baselines = {head: shown.get(model, NOTHING) for model, head in _baselines(study).items()}
    record = records[final_job(study, SUBJECT) or ""]
    baselines[WITHOUT] = _nats(record, "unigram_entropy")
    return Headline("loss on held-out text (nats, lower is better)", NOTHING, shown[SUBJECT], "", None, baselines)


def _nats(record: Record | None, metric: str = "heldout_mlm_loss") -> str:
    value = reading.number(record.metrics.get(metric)) if record and record.status == "ok" else math.nan
    return NOTHING if math.isnan(value) else f"{value:.3f}"
