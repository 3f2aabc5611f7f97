"""Choose what the page draws, from what runs produced: scores over latency, learning curves,
losses, the intervals of claims and attention maps. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from mobilebert import paper
from mobilebert.deployment.engines.table import ENGINES, FLOAT
from mobilebert.deployment.quantized_files import PLAIN
from mobilebert.jobs.record import Record
from mobilebert.reporting import attention_maps, latency_cells, reading
from mobilebert.reporting.chart import Curve, Dot, Interval, can_be_drawn, curves, dots, intervals
from mobilebert.reporting.run_params import flatten
from mobilebert.study.pretraining_seeds import row_of
from mobilebert.study.tasks import TASKS

SIZE = ("hidden_size", "num_hidden_layers", "intermediate_size")  # models that agree in these are of one size
MOST = 120  # points of a curve; a longer one is averaged over equal numbers of steps
# Curves of one kind share an axis: (stages, name of the curve) -> title. Other curves have the
# title "<stage>: <name>".
KINDS = {
    (("pretrain", "distill"), "train_heldout_mlm"): "Masked words, held-out text (nats)",
    (("pretrain", "distill"), "train_mlm"): "Masked words, in training (nats)",
    (("pretrain", "distill"), "train_nsp"): "Next sentence, in training (nats)",
    (("pretrain",), "train_loss"): "Whole loss of pre-training",
    (("distill",), "train_loss"): "Whole loss of distillation",
    (("distill",), "train_kd"): "Distillation: teacher's word predictions (PD)",
    (("distill",), "train_layers"): "Distillation: teacher's layers (AKT)",
    (("transfer",), "train_loss"): "Knowledge transfer: teacher's layers",
}


@dataclass(frozen=True)
class Panel:
    """One chart.

    legend: (number of the style, name, text) of each line; empty if the chart names its points.
    """

    title: str
    svg: str
    legend: Sequence[tuple[int, str, str]] = ()


@dataclass(frozen=True)
class Figure:
    """Charts of one kind, with a text on how to read them, or on why there is none."""

    id: str
    title: str
    text: str
    panels: Sequence[Panel]


def figures(records: Mapping[str, Record], claims: Mapping | None = None) -> list[Figure]:
    """Return the figures of the page. claims: the section on claims, `claims.text.section`."""
    models = sorted({_model(record) for record in records.values() if record.name})
    styles = {model: number for number, model in enumerate(models)}
    return [
        _tradeoff(records, styles),
        _losses(records, claims),
        _learning(records, styles),
        *_attention(records),
    ]


def _model(record: Record) -> str:
    return row_of(record.row or record.name.partition("/")[0])


# --- attention


def _attention(records: Mapping[str, Record]) -> Iterable[Figure]:
    """Yield the maps of teacher and students; nothing if no record keeps any."""
    found = [record.attention for record in records.values() if record.attention]
    drawn = [(item, title, svg) for item in found for title, svg in attention_maps.panels(item)]
    if drawn:
        texts = dict.fromkeys(" ".join(item.tokens) for item, _, _ in drawn)
        text = (
            "A row of a map is a token that looks, a column a token that it looks at: the stronger the colour, the more of its "
            'attention goes there. "0.20 off" means that 20 % of it goes to other tokens than in the teacher. Heads in another '
            "order are the same attention, so the value of the best order follows if it is lower. "
            f"The text, held out: {'; '.join(texts)}"
        )
        yield Figure("attention", "Attention of teacher and student", text, [Panel(title, svg) for _, title, svg in drawn])


# --- accuracy over latency


def _tradeoff(records: Mapping[str, Record], styles: Mapping[str, int]) -> Figure:
    latency, panels, others = records.get("latency"), [], False  # others: a score is of another size than its time
    known = latency_cells.engines(latency)
    times = latency_cells.milliseconds(latency) if latency and latency.status == "ok" else {}
    for task in TASKS:
        points = {}
        for (model, engine), time in times.items():
            found = _scored(records, model, task, engine)
            if not found or not latency or not can_be_drawn(found[1], time):
                continue
            if _size(latency, f"architectures.{model}") != _size(records[f"finetune/{model}/{task}"], "architecture"):
                others = True
            else:
                points[model, engine] = (time, found[1], reading.status(found[0]) != "ok")
        if len({model for model, _ in points}) > 1:
            title = f"{TASKS[task].column}: {TASKS[task].metrics[0].replace('_', ' ')} (%), measured here"
            panels.append(_over_latency(title, points, known, styles))
    if panels:
        published = _published(styles)
        text = (
            "Up and to the left is better. A hollow point has not learnt its task. The paper's points are of a Pixel 4 and of "
            "GLUE's test server: compare the order, not the values."
        )
        if len(known) > 1:
            text += f" Numbers name engines: {', '.join(f'{number} {engine}' for number, engine in enumerate(known, 1))}."
            text += " An 8-bit engine is drawn if the model was scored with it."
        text += " A model that was timed at another size than it was scored at is left out." if others else ""
        return Figure("tradeoff", "Accuracy over latency", text, [*panels, published])
    text = "Not drawn: no two models were both timed and scored on one task."
    if latency and latency.status != "ok":
        text = f"Not drawn: the timing is {latency.status} ({reading.reason(latency)})."
    elif others:
        text = "Not drawn: the times are of other sizes than the scores: of the paper's widths, the scores of scaled models."
    elif latency is None:
        text = "Not drawn: no timing among the records."
    return Figure("tradeoff", "Accuracy over latency", text, ())


def _over_latency(title: str, points: Mapping[tuple[str, str], tuple], known: list[str], styles: Mapping[str, int]) -> Panel:
    """Return the chart of (model, engine) -> (time, score, whether hollow).

    A model's name is beside its fastest point. Numbers above the points name the engines.
    """
    drawn, shown = [], []
    for (model, engine), (time, score, hollow) in points.items():
        fastest = min((own[0], other) for (name, other), own in points.items() if name == model)[1]
        mark = str(known.index(engine) + 1) if len(known) > 1 else ""
        drawn.append(Dot(model if engine == fastest else "", styles.get(model, 0), time, score, hollow, mark))
        shown.append(f"{model}{f' on {engine}' if mark else ''} {score:.1f} in {time:.3g} ms")
    return Panel(title, dots(f"{title}, over latency. {'; '.join(shown)}", drawn, "latency, measured here (ms)"))


def _scored(records: Mapping[str, Record], model: str, task: str, engine: str) -> tuple[Record, float] | None:
    """Return the record of a model's score on a task with an engine, and the score in percent.

    All float32 engines have the fine-tuned model's score. An engine of fewer bits has that of the
    file that `quantize` made for it. None if the model was not scored so.
    """
    tuned, metric = records.get(f"finetune/{model}/{task}"), TASKS[task].metrics[0]
    is_float = engine not in ENGINES or ENGINES[engine].tolerance == FLOAT
    record = tuned if is_float else records.get(f"quantize/{model}/{task}")
    if record is None or tuned is None or record.status != "ok":
        return None
    prefix = "" if is_float or engine in PLAIN else f"{engine}:"
    return record, reading.fraction_in_percent(record.metrics.get(f"{prefix}{metric}"))


def _size(record: Record, place: str) -> tuple[str | None, ...]:
    """Return the values of SIZE of the architecture at `place` in a record's configuration."""
    config = flatten(record.config)  # as MLflow gives it back
    return tuple(config.get(f"{place}.{name}") for name in SIZE)


def _published(styles: Mapping[str, int]) -> Panel:
    """Return the points that the paper prints in Table 4, of the rows that this suite runs."""
    points = []
    for row in paper.table(4).rows:
        time, score = row.published.get("latency_ms"), row.published.get("GLUE")
        if row.model and isinstance(time, int | float) and isinstance(score, int | float):
            points.append(Dot(row.model, styles.get(row.model, 0), float(time), float(score)))
    title = "GLUE score, published (Table 4)"
    shown = "; ".join(f"{point.name} {point.y:g} in {point.x:g} ms" for point in points)
    return Panel(title, dots(f"{title}, over latency. {shown}", points, "latency, published (ms)"))


# --- losses and the intervals of claims


def _losses(records: Mapping[str, Record], claims: Mapping | None) -> Figure:
    panels = [panel for panel in (_ends(records), *_claimed(claims)) if panel]
    text = (
        "A point is a run, or the effect that a claim states; a bar is its interval. A model to the left of the line of word "
        "frequencies knows more than how often each word occurs. A claim holds if its whole bar lies to the right of its mark."
        if panels
        else "Not drawn: no pre-trained model among the records, and no claim has an interval."
    )
    return Figure("ablations", "What each lesson and each choice is worth", text, panels)


def _ends(records: Mapping[str, Record]) -> Panel | None:
    """Return the loss on held-out text of every pre-trained model, best first."""
    found: dict[str, list[float]] = {}
    unigrams = set()
    for record in records.values():
        value = reading.number(record.metrics.get("heldout_mlm_loss"))
        if record.stage in ("pretrain", "distill") and record.status == "ok" and can_be_drawn(value):
            found.setdefault(_model(record), []).append(value)
            unigrams.add(reading.number(record.metrics.get("unigram_entropy")))
    if not found:
        return None
    rows = [Interval(model, _mean_text(values), values) for model, values in found.items()]
    rows.sort(key=lambda row: mean(row.values))
    marked = {"word frequencies": unigrams.pop()} if len(unigrams) == 1 and can_be_drawn(*unigrams) else {}
    title = "Loss on held-out text at the end"
    label = f"{title}. {'; '.join(f'{row.name} {row.text}' for row in rows)}"
    return Panel(title, intervals(label, rows, "nats a masked word, lower is better", marked))


def _mean_text(values: Sequence[float]) -> str:
    text = f"{mean(values):.3f}"
    return text if len(values) == 1 else f"{text}, {len(values)} seeds"


def _claimed(claims: Mapping | None) -> Iterable[Panel]:
    """Yield a panel for each unit of the claims that have a value."""
    groups: dict[str, list[Interval]] = {}
    for row in claims["rows"] if claims else ():
        limit = row["limit"] if can_be_drawn(row["limit"]) else None
        for effect in row["effects"]:
            ends = (effect["low"], effect["high"])
            if can_be_drawn(effect["value"]):
                low, high = ends if can_be_drawn(*ends) else (None, None)
                interval = Interval(effect["name"], effect["text"], (effect["value"],), low, high, limit)
                groups.setdefault(row["axis"], []).append(interval)
    for axis, rows in groups.items():
        title = f"Claims, in {axis}"
        label = f"{title}: {'; '.join(f'{row.name} {row.text}' for row in rows)}"
        yield Panel(title, intervals(label, rows, axis))


# --- learning curves


def _learning(records: Mapping[str, Record], styles: Mapping[str, int]) -> Figure:
    panels = [*_pretraining(records, styles), *_finetuning(records, styles)]
    text = "No record has curves."
    if panels:
        text = (
            f"Loss by step, lower is better; losses of one kind share an axis. A curve of more than {MOST} points is averaged "
            "over equal numbers of steps. The number beside a name is the last value. Seeds of one model have one colour."
        )
    return Figure("curves", "Learning curves", text, panels)


def _pretraining(records: Mapping[str, Record], styles: Mapping[str, int]) -> Iterable[Panel]:
    stages = ("pretrain", "transfer", "distill")
    known = [record for record in records.values() if record.stage in stages and record.curves]
    others = sorted({(record.stage, name) for record in known for name in record.curves})
    kinds = dict(KINDS)
    for stage, name in others:
        if not any(stage in group and name == key for group, key in KINDS):
            kinds[(stage,), name] = f"{stage}: {name}"
    for (group, name), title in kinds.items():
        lines = [(_model(record), record.curves[name]) for record in known if record.stage in group and name in record.curves]
        marked = {}
        if name == "train_heldout_mlm":
            entropies = {reading.number(record.metrics.get("unigram_entropy")) for record in known if record.stage in group}
            entropies = {value for value in entropies if can_be_drawn(value)}
            marked = {"word frequencies": entropies.pop()} if len(entropies) == 1 else {}
        yield from _panel(title, lines, styles, marked)


def _finetuning(records: Mapping[str, Record], styles: Mapping[str, int]) -> Iterable[Panel]:
    tuned: dict[str, list] = {}
    for record in records.values():
        if record.stage == "finetune":
            task = record.name.partition("/")[2]
            found = [(_model(record), curve) for name, curve in sorted(record.curves.items()) if name.endswith("_loss")]
            tuned.setdefault(task, []).extend(found)
    for task, lines in sorted(tuned.items()):
        yield from _panel(f"Fine-tuning: {task}", lines, styles)


def _panel(
    title: str, lines: Iterable[tuple[str, Sequence]], styles: Mapping[str, int], marked: Mapping[str, float] | None = None
) -> Iterable[Panel]:
    """Yield a panel of the lines that can be drawn, if there is one."""
    drawn, last = [], {}
    for model, points in sorted(lines, key=lambda line: line[0]):
        if known := [(float(step), float(value)) for step, value in points if can_be_drawn(step, value)]:
            drawn.append(Curve(styles[model], _averaged(known)))
            last[model] = known[-1][1]
    if drawn:
        legend = [(styles[model], model, f"{value:.3g}") for model, value in last.items()]
        label = f"{title}, by step. Last values: {'; '.join(f'{model} {value}' for _, model, value in legend)}"
        yield Panel(title, curves(label, drawn, "step", marked), legend)


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // MOST)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(mean(step for step, _ in group), mean(value for _, value in group)) for group in groups]
