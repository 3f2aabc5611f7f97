"""Write the model card of a checkpoint from its records, in the hub's format.

The card states nothing that no record states: labels say what was scaled, and a score is the median
over the seeds, with every seed beside it.
"""

from __future__ import annotations

import contextlib
import shlex
import statistics
from collections.abc import Iterable, Mapping

from mobilebert.jobs.record import Record
from mobilebert.publishing import int8
from mobilebert.publishing.checkpoint import FOLDER, Checkpoint
from mobilebert.publishing.text import code, digits, table
from mobilebert.reporting import reading
from mobilebert.reporting.run_params import flatten
from mobilebert.reporting.verdicts import NAMED
from mobilebert.study.graph import with_upstream
from mobilebert.study.job import Graph
from mobilebert.study.tasks import TASKS, Task
from mobilebert.util.text import markdown, one_line

PAPER = "https://arxiv.org/abs/2004.02984"
GLUE, SQUAD = "nyu-mll/glue", {"squad_v1.1": "rajpurkar/squad", "squad_v2.0": "rajpurkar/squad_v2"}
CLASSES = {"bert": "transformers", "mobilebert": "mobilebert"}  # type of a model -> package of its classes
NOT_RECIPE = ("architecture.", "seed", "task")


def card(checkpoint: Checkpoint, found: Mapping[str, Record], graph: Graph) -> str:
    """Return the content of README.md. found: all current records of the study."""
    from huggingface_hub import ModelCardData

    record, data = checkpoint.record, found.get("data")
    task = TASKS.get(record.name.rpartition("/")[2]) if record.stage == "finetune" else None
    is_real = data is not None and data.config.get("source") != "synthetic"
    metrics = _metrics(record, task)
    facts = ModelCardData(
        language="en" if is_real else None,
        pipeline_tag=_kind(task),
        tags=["mobilebert", *dict.fromkeys(label.partition(":")[0].partition(" ")[0] for label in reading.labels(record))],
        datasets=([SQUAD.get(task.name, GLUE)] if task and is_real else None),
        metrics=list(metrics) or None,
        model_name=checkpoint.name,
        eval_results=[_result(record, task, name, value, is_real) for name, value in metrics.items()] or None,
    )
    parts = [
        _head(checkpoint, task),
        _scores(record, metrics),
        int8.section(checkpoint, task),
        _deviations(record),
        _data(data, task),
    ]
    parts += [_training(record), _lineage(record, found, graph), _use(record, task), _origin(checkpoint)]
    return f"---\n{facts.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _kind(task: Task | None) -> str:
    if task is None:
        return "fill-mask"
    return "question-answering" if task.is_squad else "text-classification"


def _metrics(record: Record, task: Task | None) -> dict[str, float]:
    """Return the task's metrics, or the held-out ones of a pre-trained model."""
    named = {name: reading.number(value) for name, value in record.metrics.items() if reading.is_number(value)}
    return {name: value for name, value in named.items() if (name in task.metrics if task else name.startswith("heldout_"))}


def _result(record: Record, task: Task | None, name: str, value: float, is_real: bool):
    from huggingface_hub import EvalResult

    config, where = (task.name, task.column) if task else (None, "held-out text")
    real = SQUAD.get(task.name, GLUE) if task else "corpus"
    return EvalResult(
        task_type=_kind(task),
        dataset_type=real if is_real else "generated",
        dataset_name=where if is_real else f"generated text in the form of {where}",
        dataset_config=config,
        dataset_split="validation" if task else "heldout",
        metric_type=name,
        metric_name=f"{name}, {_over(record, name)}",
        metric_value=value,
        verified=False,
    )


def _over(record: Record, metric: str) -> str:
    count = len(record.samples.get(metric, []))
    return f"median of {count} seeds" if count > 1 else "one seed"


# --- the sections


def _head(checkpoint: Checkpoint, task: Task | None) -> str:
    record = checkpoint.record
    model = record.name.partition("/")[0]
    what = (
        f"fine-tuned on {task.column}"
        if task
        else {"transfer": "after knowledge transfer, before distillation"}.get(record.stage)
    )
    lines = [f"# {markdown(checkpoint.name)}", ""]
    lines.append(f"{code(model)}, {what or 'pre-trained'}: a checkpoint of a reproduction of [MobileBERT]({PAPER}).")
    if reading.status(record) == "failed":
        lines += ["", f"**This model has not learnt its task**: {markdown(reading.reason(record))}."]
    if any(not label.startswith(NAMED) for label in reading.labels(record)):
        lines += ["", "**Its scores are not comparable with the paper's**: see what differs below."]
    return "\n".join(lines)


def _scores(record: Record, metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    seeds, best = record.details.get("seeds"), record.details.get("best_seed")
    chosen = seeds.index(best) if isinstance(seeds, list) and best in seeds else None
    rows = []
    for name, value in metrics.items():
        each = [reading.number(item) for item in record.samples.get(name, [])]
        own = digits(each[chosen]) if chosen is not None and chosen < len(each) else "–"
        rows.append((markdown(name), digits(value), _spread(each), str(max(len(each), 1)), own))
    lines = ["## Scores", "", *table(("metric", "value", "standard deviation", "seeds", "this checkpoint"), rows)]
    if isinstance(seeds, list) and len(seeds) > 1:
        every = markdown(", ".join(map(str, seeds)))
        lines += ["", f"A value is the median over seeds {every}. This checkpoint is that of seed {markdown(str(best))}:"]
        lines.append("the best on the same rows, so its own value is too high by the choice.")
    return "\n".join(lines)


def _spread(values: Iterable[float]) -> str:
    finite = [item for item in values if reading.is_number(item)]
    if len(finite) > 1:
        with contextlib.suppress(OverflowError):  # no float holds it
            return digits(statistics.stdev(finite))
    return "–"


def _deviations(record: Record) -> str:
    found = reading.labels(record)
    listed = [f"- {markdown(label)}" for label in found] or ["- nothing that the study labels"]
    return "\n".join(("## What differs from the paper", "", *listed))


def _data(data: Record | None, task: Task | None) -> str:
    if data is None:
        return "## Data\n\nNo current record of the data."
    source = str(data.config.get("source", "")).partition(":")[0]  # of local:<folder>, not the folder
    words = {
        "synthetic": "Generated text, not English.",
        "hub": "Data sets of the hub.",
        "local": "A local copy of the data sets.",
    }
    places = [f"tasks/{task.name}/{split}.parquet" for split in task.splits] if task else []
    places += ["corpus/train.tokens.npy", "corpus/heldout.tokens.npy"]
    rows = [(place, code(data.artefacts[place].get("sha256", ""))) for place in places if place in data.artefacts]
    return "\n".join(("## Data", "", words.get(source, markdown(source)), "", *table(("file", "sha256"), rows)))


def _training(record: Record) -> str:
    config = {key: value for key, value in flatten(record.config).items() if not key.startswith(NOT_RECIPE) and value != "None"}
    seeds = markdown(", ".join(reading.seeds(record))) or "–"
    rows = [("seeds", seeds), *((markdown(key), code("" if value == "nan" else value)) for key, value in config.items())]
    return "\n".join(("## Training", "", *table(("key", "value"), rows)))


def _lineage(record: Record, found: Mapping[str, Record], graph: Graph) -> str:
    keys = [key for key in with_upstream(graph, [record.id]) if key in found]
    rows = [
        (markdown(key), code(found[key].fingerprint[:16]), markdown(found[key].started[:10]), reading.status(found[key]))
        for key in keys
    ]
    return "\n".join(("## Jobs behind it", "", *table(("job", "fingerprint", "made", "status"), rows)))


def _use(record: Record, task: Task | None) -> str:
    architecture = record.config.get("architecture")
    kind = str(architecture.get("model_type", "mobilebert")) if isinstance(architecture, Mapping) else "mobilebert"
    head = "QuestionAnswering" if task and task.is_squad else "SequenceClassification" if task else "PreTraining"
    name = f"{'Bert' if kind == 'bert' else 'MobileBert'}For{head}"
    lines = ["## Use", "", "```python", f"from {CLASSES.get(kind, 'mobilebert')} import {name}", ""]
    lines += [f'model = {name}.from_pretrained("FOLDER OR HUB NAME")', "```"]
    if task:
        columns = ("question", "context") if task.is_squad else ("text", "text-pair")[: len(task.text_columns)]
        texts = " ".join(f'--{column} "..."' for column in columns)
        lines += ["", "```sh", f"mobilebert predict FOLDER --task {task.name} {texts}", "```"]
    return "\n".join(lines)


def _origin(checkpoint: Checkpoint) -> str:
    record = checkpoint.record
    rows = [
        ("made", markdown(record.started)),
        ("seconds", f"{reading.seconds(record):.0f}"),
        ("machine", code(", ".join(f"{key} {value}" for key, value in record.machine.items() if key != "load"))),
        ("packages", code(", ".join(f"{key} {value}" for key, value in record.versions.items()))),
        ("commit", markdown(record.commit or "not recorded")),
        ("weights", code(record.artefacts.get(f"{FOLDER}model.safetensors", {}).get("sha256", ""))),
        ("record", "`result.json`, with every metric, seed and hash"),
    ]
    command = one_line(shlex.join(("mobilebert", record.stage, record.name, "--study", record.study)))
    return "\n".join(("## Origin", "", *table(("what", "value"), rows), "", "```sh", command, "```"))
