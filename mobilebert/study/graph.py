"""The graph of a study: every stage of every row, what it reads, and the fingerprint that says whether a record is its own.

A fingerprint covers a job's resolved configuration, its inputs' fingerprints and the comment-free syntax of the modules it
uses. Threads, paths and devices never enter it. Snakemake, `plan`, the stages and the report all read this one graph.
"""

from __future__ import annotations

from collections.abc import Iterable

from mobilebert import paper
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
    "finetune",
    "quantize",
    "latency",
    "report",
    "track",
    "check",
)

# Masked positions of a sequence at most. The paper masks 15 %; the released commands stop at 20, even of 512 tokens.
MAX_PREDICTIONS = {"paper": None, "released": 20}


def _science(settings: Training) -> dict:
    """Settings that decide a result; micro-batches do with dropout alone, see `_dropout`."""
    return settings.model_dump(exclude={*EXECUTION})


def _dropout(settings: Training, row: paper.Model) -> dict:
    """With dropout the micro-batches are science: on a GPU each draws its own. So do the processes of a data-parallel run; their
    number is not known here, and is a label of the record."""
    return {"dropout": True, "accumulate": settings.accumulate} if row.dropout else {"dropout": False}


def final_job(study: Study, model: str) -> str | None:
    """The job whose record holds the model's finished pre-trained weights; None for the bag of embeddings."""
    row = study.models[model]
    if row.preset == "bag-of-embeddings":
        return None
    if model in study.checkpoints:
        return f"checkpoint/{model}"
    return f"distill/{model}" if row.teacher else f"pretrain/{model}"


def build_graph(study: Study) -> Graph:
    """Return every job that the study could run: all rows of all tables on all tasks.

    Raises UserError if not every job can be made, or if an expectation cannot hold: a study that builds is a valid one.
    """
    graph = Graph()
    graph.study_file = study.file
    data = study.data
    kind = data.source.split(":")[0]  # a folder's path is not science; `sums` pins what is in it
    graph.add("data", "", {**data.model_dump(exclude={"source"}), "source": kind})
    rows = study.models
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
                graph.add("quantize", f"{model}/{task}", {"task": task, **setting}, ["data", tuned])
    timed = {name: architecture(study, name, study.latency.full_size) for name in study.latency.models}
    graph.add("latency", "", {**study.latency.model_dump(exclude={"models", "full_size"}), "architectures": timed})
    expectations.check(study.name, study.expect, graph, jobs_in_scope(study, graph))
    return graph


def _finetune_setting(study: Study, task: str, pretrained: bool) -> dict:
    """What a task's runs depend on. The search is of pre-trained models; the baseline keeps its one setting."""
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
    base = {"architecture": architecture(study, model), "seed": study.seed + row.seed, "recipe": study.recipe}
    base["max_predictions"] = MAX_PREDICTIONS[study.recipe]
    if model in study.checkpoints:
        weights = study.checkpoints[model]  # pinned by hash or by name and revision: a folder's path is not science
        pin = {"sha256": weights.sha256} if weights.is_local else {"source": weights.source, "revision": weights.revision}
        graph.add("checkpoint", model, {**pin, "architecture": base["architecture"]})
        return
    if row.budget_of:
        if model in study.run and (study.distill.max_minutes or study.transfer.max_minutes):
            raise UserError(f"{study.name}: run: {model} counts the steps of {row.budget_of}, which max_minutes leaves open")
        graph.add("pretrain", model, {**base, **_scratch(study, row), **_dropout(study.distill, row)}, ["data"])
        return
    if not row.teacher:
        settings = study.search if row.schedule == "search" else study.pretrain
        science = {**_science(settings), **_dropout(settings, row)}
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
    if row.strategy == "akt":  # one stage: the layer-wise losses beside distillation, for the steps of both
        config["transfer"] = transfer
        config["steps"] = study.distill.steps + study.transfer.steps
        if study.distill.max_minutes and study.transfer.max_minutes:
            config["max_minutes"] = study.distill.max_minutes + study.transfer.max_minutes
    graph.add("distill", model, config, inputs)


def _scratch(study: Study, row: paper.Model) -> dict:
    """Settings of a model that gets, without a teacher, what a student gets with one."""
    assert row.budget_of is not None
    student = paper.models()[row.budget_of]
    assert student.teacher is not None
    mine, theirs = (architecture(study, name) for name in (row.budget_of, student.teacher))
    settings = {key: value for key, value in _science(study.distill).items() if key not in ("alpha", "temperature")}
    return {**settings, "steps": scratch_steps(study, student, mine, theirs, row.budget), "max_minutes": None}


def with_upstream(graph: Graph, ids: Iterable[str]) -> list[str]:
    """`ids` and everything they are made from, in the graph's order."""
    wanted, waiting = set(), list(ids)
    while waiting:
        key = waiting.pop()
        if key not in wanted:
            wanted.add(key)
            waiting.extend(graph[key].inputs)
    return [key for key in graph if key in wanted]


def jobs_in_scope(study: Study, graph: Graph) -> list[str]:
    """The jobs that a bare `snakemake` runs, without report, tracking and check."""
    ids = ["data", "latency"]
    for model in study.models:
        ids += [f"finetune/{model}/{task}" for task in study.tasks_of(model)]
        ids += [f"quantize/{model}/{task}" for task in study.quantized_tasks_of(model)]
        final = final_job(study, model)
        if final and not study.tasks_of(model) and model in study.run:
            ids.append(final)  # `run: {control: []}`: pre-trained and compared, not fine-tuned
    return with_upstream(graph, ids)


def table_jobs(study: Study, graph: Graph, number: int) -> list[str]:
    """The jobs behind the measured cells of one table."""
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
    """The job whose record a cell prints; None where nothing needs to run."""
    if column.source == "latency":
        return "latency"
    if column.source != "finetune":
        return None
    return f"{'quantize' if row.precision == 'int8' else 'finetune'}/{row.model}/{column.task}"


def add_views(study: Study, graph: Graph, extra: Iterable[str] = ()) -> Graph:
    """Add report, tracking and check over the scope and over what else has a current record."""
    wanted = {*jobs_in_scope(study, graph), *extra}
    inputs = [key for key in graph if key in wanted]
    expect = [item.model_dump() for item in study.expect]
    view = {"study": study.name, **study.model_dump(mode="json", exclude={"data", "checkpoints"})}
    printed = [table.model_dump(mode="json") for table in paper.tables()]
    sizes = {model: architecture(study, model, full_size=True) for model in paper.models()}
    graph.add("report", "", {**view, "tables": digest(printed), "architectures": digest(sizes)}, inputs)
    graph.add("track", "", {"study": study.name, "expect": expect}, inputs)
    graph.add("check", "", {"expect": expect}, [*inputs, "report"])  # a store that is out of order hides no verdict
    return graph


def find_job(graph: Graph, stage: str, name: str) -> Job:
    job = graph.get(f"{stage}/{name}" if name else stage)
    if job is None:
        names = [key.removeprefix(f"{stage}/") for key in graph if key.startswith(f"{stage}/")]
        raise UserError(f"{stage}: unknown name {shown(name)}; {allowed(names or ['none'], name)}")
    return job
