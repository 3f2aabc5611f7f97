"""Build the graph of a study: a job for every stage of every model row, its inputs and fingerprint.

A record belongs to a job if it has the job's fingerprint. This covers the resolved configuration,
the inputs' fingerprints and the comment-free syntax of the modules used, but never threads, paths
or devices. Snakemake, `plan`, the stages and the report all read this one graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mobilebert import paper
from mobilebert.paper import claims
from mobilebert.study import expectations
from mobilebert.study.architecture import architecture, mismatch
from mobilebert.study.budget import scratch_steps
from mobilebert.study.code_hash import digest
from mobilebert.study.job import Graph, Job
from mobilebert.study.recipe import AXES, EXECUTION, TASK_NAMES, Training
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError, allowed, shown

STAGES = (
    "data",
    "pretrain",
    "checkpoint",
    "transfer",
    "distill",
    "attention",
    "finetune",
    "quantize",
    "latency",
    "report",
    "track",
    "check",
)

# The most masked positions in a sequence. The paper masks 15 % of its tokens; the released commands
# mask at most 20, even if it has 512.
MAX_PREDICTIONS = {"paper": None, "released": 20}


def _science(settings: Training) -> dict:
    """Return the settings that decide a result; micro-batches only do with dropout (`_dropout`)."""
    return settings.model_dump(exclude={*EXECUTION})


def _dropout(settings: Training, dropout: bool) -> dict:
    """Return `dropout`; with dropout also `accumulate`, the number of micro-batches.

    On a GPU each micro-batch draws other masks, so their number changes the result. So does the
    number of data-parallel processes, which is unknown here and becomes a label of the record.
    """
    return {"dropout": True, "accumulate": settings.accumulate} if dropout else {"dropout": False}


def final_job(study: Study, model: str) -> str | None:
    """Return the id of the job with a model's pre-trained weights; None for bag-of-embeddings."""
    row = study.models[model]
    if row.preset == "bag-of-embeddings":
        return None
    if model in study.checkpoints:
        return f"checkpoint/{model}"
    return f"distill/{model}" if row.teacher else f"pretrain/{model}"


def build_graph(study: Study) -> Graph:
    """Return every job that the study could run: all rows of all tables on all tasks.

    Raises UserError if a job cannot be configured, or if an expectation cannot hold. A study whose
    graph builds is therefore valid.
    """
    graph = Graph()
    graph.study_file = study.file
    data = study.data
    kind = data.source.split(":")[0]  # a folder's path does not decide a result; `sums` pins its content
    graph.add("data", "", {**data.model_dump(exclude={"source"}), "source": kind})
    rows = study.models
    also = {"also": list(study.quantize_also)} if study.quantize_also else {}
    for model in sorted(rows, key=lambda name: rows[name].teacher is not None):  # teachers first
        _pretrained(graph, study, model)
        final, shape = final_job(study, model), architecture(study, model)
        for task in TASK_NAMES:
            if final is None and task.startswith("squad"):
                continue  # a bag has no order, so no span
            setting = _finetune_setting(study, task, final is not None)
            config = {"task": task, "recipe": study.recipe, "architecture": shape, **setting}
            tuned = graph.add("finetune", f"{model}/{task}", config, ["data", *([final] if final else [])])
            if final:
                graph.add("quantize", f"{model}/{task}", {"task": task, **setting, **also}, ["data", tuned])
    timed = {name: architecture(study, name, study.latency.full_size) for name in study.latency.models}
    graph.add("latency", "", {**study.latency.model_dump(exclude={"models", "full_size"}), "architectures": timed})
    expectations.check(study.name, study.expect, graph, jobs_in_scope(study, graph))
    expectations.check_gate(study.name, study.gate, graph)
    return graph


def _finetune_setting(study: Study, task: str, pretrained: bool) -> dict:
    """Return a task's settings. The bag of embeddings has no search and one learning rate."""
    setting = study.finetune.setting(task)
    baseline_rate = setting.pop("baseline_learning_rate")
    if not pretrained:
        return {**setting, "learning_rate": baseline_rate, "search": "none", "halving": False}
    unused = AXES if setting["search"] == "paper" else ()
    return {key: value for key, value in setting.items() if key not in unused}


def _pretrained(graph: Graph, study: Study, model: str) -> None:
    row = study.models[model]
    if row.preset == "bag-of-embeddings":
        return
    base: dict[str, Any] = {"architecture": architecture(study, model), "seed": study.seed + row.seed, "recipe": study.recipe}
    base["max_predictions"] = MAX_PREDICTIONS[study.recipe]
    if model in study.checkpoints:
        weights = study.checkpoints[model]  # a hash, or name and revision, pins them; a folder's path decides nothing
        pin = {"sha256": weights.sha256} if weights.is_local else {"source": weights.source, "revision": weights.revision}
        graph.add("checkpoint", model, {**pin, "architecture": base["architecture"]})
        return
    if row.budget_of and not row.teacher:
        if study.run_of(model) is not None and (study.distill.max_minutes or study.transfer.max_minutes):
            raise UserError(
                f"{study.name}: run: {model} needs {row.budget_of}'s step count; remove distill's and transfer's max_minutes"
            )
        graph.add("pretrain", model, {**base, **_scratch(study, row), **_dropout(study.distill, row.dropout)}, ["data"])
        return
    if not row.teacher:
        settings = study.search if row.schedule == "search" else study.pretrain
        science = {**_science(settings), **_dropout(settings, row.dropout and settings.dropout)}
        graph.add("pretrain", model, {**base, **science}, ["data"])
        return
    if problem := mismatch(base["architecture"], architecture(study, row.teacher), row.losses):
        raise UserError(f"{study.name}: {model}, taught by {row.teacher}: {problem}")
    teacher = final_job(study, row.teacher)
    assert teacher is not None
    base["control"] = row.control
    transfer = {**_science(study.transfer), "strategy": row.strategy, "losses": row.losses}
    inputs = ["data", teacher]
    layers = base["architecture"]["num_hidden_layers"]
    if row.strategy == "pkt" and study.transfer.steps < layers:
        raise UserError(f"{study.name}: transfer.steps: {study.transfer.steps} is less than one for each of {layers} layers")
    if row.strategy in ("jkt", "pkt"):
        inputs.append(graph.add("transfer", model, {**base, **transfer}, ["data", teacher]))
    config = {**base, **_science(study.distill), "strategy": row.strategy, "transfer": None}
    if row.strategy == "akt":  # one stage: layer-wise losses and distillation at once, for the steps of both
        config["transfer"] = transfer
        config["steps"] = study.distill.steps + study.transfer.steps
        if study.distill.max_minutes and study.transfer.max_minutes:
            config["max_minutes"] = study.distill.max_minutes + study.transfer.max_minutes
    if row.budget_of:
        config["steps"] = _steps(study, row)
    distilled = graph.add("distill", model, config, inputs)
    graph.add("attention", model, {"teacher": row.teacher}, [*inputs, distilled])


def _scratch(study: Study, row: paper.Model) -> dict:
    """Return the settings of a model that trains without a teacher for the budget of a student."""
    settings = {key: value for key, value in _science(study.distill).items() if key not in ("alpha", "temperature")}
    return {**settings, "steps": 1 if row.untrained else _steps(study, row), "max_minutes": None}


def _steps(study: Study, row: paper.Model) -> int:
    """Return the steps of a row that has the budget of another row's student."""
    assert row.budget_of is not None
    student = paper.models()[row.budget_of]
    assert student.teacher is not None
    mine, theirs = (architecture(study, name) for name in (row.budget_of, student.teacher))
    return scratch_steps(study, student, mine, theirs, row.budget)


def with_upstream(graph: Graph, ids: Iterable[str]) -> list[str]:
    """Return `ids` and all their direct and indirect inputs, in the graph's order."""
    wanted, waiting = set(), list(ids)
    while waiting:
        key = waiting.pop()
        if key not in wanted:
            wanted.add(key)
            waiting.extend(graph[key].inputs)
    return [key for key in graph if key in wanted]


def jobs_in_scope(study: Study, graph: Graph) -> list[str]:
    """Return the ids of the jobs that a bare `snakemake` runs, without the views."""
    ids = ["data", "latency"]
    for model in study.models:
        ids += [f"finetune/{model}/{task}" for task in study.tasks_of(model)]
        ids += [f"quantize/{model}/{task}" for task in study.quantized_tasks_of(model)]
        final = final_job(study, model)
        if final and not study.tasks_of(model) and study.run_of(model) is not None:
            ids.append(final)  # `run: {control: []}`: pre-train and compare it, but do not fine-tune
    wanted = with_upstream(graph, ids)
    students = [key.removeprefix("distill/") for key in wanted if key.startswith("distill/")]
    if students:  # the maps of one student show what transfer does; those of others are made if asked for
        student = "mobilebert" if "mobilebert" in students else students[0]
        wanted = with_upstream(graph, [*wanted, f"attention/{student}"])
    return wanted


def table_jobs(study: Study, graph: Graph, number: int) -> list[str]:
    """Return the ids of the jobs behind the measured cells of one table, in the graph's order."""
    ids = set()
    for row in paper.table(number).rows:
        for column in paper.table(number).columns if row.model else ():
            key = cell_job(row, column)
            if key:
                ids.add(key)
            if column.source == "glue":
                ids.update(f"finetune/{row.model}/{task}" for task in TASK_NAMES if not task.startswith("squad"))
    return with_upstream(graph, ids)


def cell_job(row: paper.Row, column: paper.Column) -> str | None:
    """Return the id of the job whose record a cell prints; None if the cell needs no job."""
    if column.source == "latency":
        return "latency"
    if column.source != "finetune":
        return None
    return f"{'quantize' if row.precision == 'int8' else 'finetune'}/{row.model}/{column.task}"


def add_views(study: Study, graph: Graph, extra: Iterable[str] = ()) -> Graph:
    """Add report, track and check over the jobs in scope and `extra`, other current records."""
    wanted = {*jobs_in_scope(study, graph), *extra}
    inputs = [key for key in graph if key in wanted]
    expect = [item.model_dump() for item in study.expect]
    view = {"study": study.name, **study.model_dump(mode="json", exclude={"data", "checkpoints"})}
    printed = [table.model_dump(mode="json") for table in paper.tables()]
    sizes = {model: architecture(study, model, full_size=True) for model in paper.models()}
    judged = [claim.model_dump(mode="json") for claim in claims.claims()]
    hashes = {"tables": digest(printed), "architectures": digest(sizes), "claims": digest(judged)}
    graph.add("report", "", {**view, **hashes}, inputs)
    graph.add("track", "", {"study": study.name, "expect": expect}, inputs)
    graph.add("check", "", {"expect": expect}, [*inputs, "report"])  # not "track": a broken MLflow store must not stop the check
    return graph


def find_job(graph: Graph, stage: str, name: str) -> Job:
    """Return the job of a stage and name (may be empty). Raises UserError if there is none."""
    job = graph.get(f"{stage}/{name}" if name else stage)
    if job is None:
        names = [key.removeprefix(f"{stage}/") for key in graph if key.startswith(f"{stage}/")]
        raise UserError(f"{stage}: unknown name {shown(name)}; {allowed(names or ['none'], name)}")
    return job
