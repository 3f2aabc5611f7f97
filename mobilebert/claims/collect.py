"""Collect from records what claims are judged on. The records may be of any version of the code."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mobilebert import paper
from mobilebert.claims.answers import read_answers
from mobilebert.claims.measured import Measured, Pretrained, Score, Timing
from mobilebert.claims.scores import score
from mobilebert.jobs.record import Record, read_record
from mobilebert.modeling.presets import preset
from mobilebert.paper.claims import OF_LOSSES, claims
from mobilebert.reporting import reading
from mobilebert.reporting.architecture_columns import facts
from mobilebert.reporting.verdicts import NAMED
from mobilebert.study.pretraining_seeds import row_of
from mobilebert.study.schema import NAME
from mobilebert.study.stages import STAGES, VIEWS
from mobilebert.util.errors import UserError, shown

SETUP = {"threads": "threads", "batch": "batch_size", "length": "length"}  # word -> key of a timing's record
COPIES = "mlartifacts"  # MLflow's folder; it holds a copy of every record


@dataclass(frozen=True)
class Source:
    """A record and the folder in which its artefacts may lie."""

    record: Record
    folder: Path

    @property
    def row(self) -> str:
        """Return the paper's row: `scratch-seed-2` is a seed of `scratch`."""
        return row_of(self.record.row or self.record.name.partition("/")[0])


def sources_in(folder: Path) -> list[Source]:
    """Return every record below a folder, without the views, in the order of their paths.

    Hidden folders and MLflow's copies do not count. Raises UserError if the folder is missing, if
    it holds no record, for a damaged or an edited record, for one that no job can have written, for
    two records of one job except different timings, and for records of several studies except
    timings.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds records (result.json)")
    found = []
    for path in sorted(folder.rglob("result.json")):
        if any(part.startswith(".") or part == COPIES for part in path.relative_to(folder).parts):
            continue
        record = read_record(path)
        if record.seal == "edited":
            raise UserError(f"{path}: edited after it was written; restore it")
        if record.stage not in STAGES or not all(NAME.fullmatch(part) for part in record.name.split("/") if record.name):
            raise UserError(f"{path}: {shown(record.id)} is no job's id")  # it is shown in paths and commands
        if record.stage not in VIEWS:
            found.append(Source(record, path.parent))
    if not found:
        raise UserError(f"{folder}: holds no record (result.json)")
    _check_apart(found, folder)
    return found


def _check_apart(sources: Iterable[Source], folder: Path) -> None:
    """Raise UserError if a value would count twice, or if rows of two studies would be compared."""
    seen: set[object] = set()
    first: Record | None = None
    for record, path in ((source.record, source.folder / "result.json") for source in sources):
        is_timing = record.stage == "latency"
        key = record.model_dump_json() if is_timing else record.id
        if key in seen:
            problem = "a copy of another timing" if is_timing else f"a second record of {record.id}"
            raise UserError(f"{path}: {problem} below {folder}; remove one of them")
        seen.add(key)
        if is_timing:
            continue
        first = first or record
        if record.study != first.study:
            names = f"{shown(first.study)} and {shown(record.study)}"
            raise UserError(f"{path}: {folder} holds records of two studies, {names}; name the folder of one")


def collect(sources: Iterable[Source]) -> Measured:
    """Return what the records measured. Raises UserError if a file of predictions is damaged."""
    known = list(sources)
    pretrained = _pretrained(known)
    compared = {row for claim in claims() if claim.kind in OF_LOSSES for row in claim.rows}
    teachers = {row.teacher for row in paper.models().values() if row.teacher}
    seeds = {source.record.id: _seed(source.record) for source in known if source.record.stage in ("pretrain", "distill")}
    scored = [(source.row, _seed_of_input(source.record, seeds), source) for source in known if reading.is_score(source.record)]
    return Measured(
        losses={row: runs for row, runs in pretrained.items() if row in compared},
        teachers={row: runs for row, runs in pretrained.items() if row in teachers},
        answers=_answers(scored),
        scores=_scores(scored),
        timings=tuple(_timing(source.record) for source in known if source.record.stage == "latency"),
        sizes=_sizes(),
        scaled=frozenset(source.row for source in known if _is_scaled(source.record)),
    )


def _is_scaled(record: Record) -> bool:
    return any(not text.startswith(NAMED) for text in record.labels)


def _seed(record: Record) -> int:
    seed = record.config.get("seed") if record.pretraining_seed is None else record.pretraining_seed
    return seed if isinstance(seed, int) else 0


def _seed_of_input(record: Record, seeds: Mapping[str, int]) -> int:
    """Return the pre-training seed of a score: the record's own, or that of its input."""
    if record.pretraining_seed is not None:
        return record.pretraining_seed
    found = [seeds[key] for key in record.inputs if key in seeds]
    if not found and record.stage == "quantize":  # its input is the fine-tuned model, named alike
        row = record.name.partition("/")[0]
        found = [seeds[key] for key in (f"distill/{row}", f"pretrain/{row}") if key in seeds]
    return found[0] if found else 0


# --- pre-training


def _pretrained(sources: Iterable[Source]) -> dict[str, dict[int, Pretrained]]:
    """Return row -> seed -> run: the loss of the last stage, and the tokens of all of them."""
    tokens: dict[tuple[str, int], float] = defaultdict(float)
    last: dict[tuple[str, int], Record] = {}
    for source in sources:
        record, key = source.record, (source.row, _seed(source.record))
        row = paper.models().get(source.row)
        if row is None or record.stage not in ("pretrain", "transfer", "distill"):
            continue
        tokens[key] += _tokens(record)
        if record.stage == ("distill" if row.teacher else "pretrain"):
            last[key] = record
    found: dict[str, dict[int, Pretrained]] = defaultdict(dict)
    for (row, seed), record in last.items():
        loss = reading.number(record.metrics.get("heldout_mlm_loss")) if record.status == "ok" else math.nan
        unigram = reading.number(record.metrics.get("unigram_entropy"))
        found[row][seed] = Pretrained(
            loss=None if math.isnan(loss) else loss,
            unigram=math.inf if math.isnan(unigram) else unigram,
            tokens=tokens[row, seed],
            layout=json.dumps(record.config.get("architecture", {}), sort_keys=True, separators=(",", ":")),
        )
    return dict(found)


def _tokens(record: Record) -> float:
    """Return how many positions the model read: batches have no padding in pre-training."""
    done = reading.number(record.details.get("train_steps"))  # with a time limit fewer than configured
    steps = reading.number(record.config.get("steps")) if math.isnan(done) else done
    size = steps * reading.number(record.config.get("batch_size")) * reading.number(record.config.get("length"))
    return 0.0 if math.isnan(size) else size


# --- scores and answers


def _answers(scored: Iterable[tuple[str, int, Source]]) -> dict:
    wanted = {(task, arm) for claim in claims() for task in claim.tasks for link in claim.links for arm in _arms(link)}
    found: dict[str, dict[str, dict[int, object]]] = defaultdict(lambda: defaultdict(dict))
    for row, seed, source in scored:
        task = source.record.name.partition("/")[2]
        arm = f"{row}:int8" if source.record.stage == "quantize" else row
        if (task, arm) in wanted:
            found[task][arm][seed] = read_answers(source.record, source.folder)
    return {task: dict(arms) for task, arms in found.items()}


def _arms(link) -> tuple[str, ...]:
    return (*link.better, *(link.than or ()))


def _scores(scored: Iterable[tuple[str, int, Source]]) -> dict[str, dict[str, Score]]:
    records: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row, _, source in scored:
        if source.record.stage == "finetune":
            records[row][source.record.name.partition("/")[2]].append(source.record)
    found: dict[str, dict[str, Score]] = {}
    for claim in claims():
        if claim.column:
            sides = {row: score(claim.column, records[row]) for row in claim.rows if row in records}
            found[claim.column] = found.get(claim.column, {}) | {row: side for row, side in sides.items() if side}
    return found


# --- timings and sizes


def _timing(record: Record) -> Timing:
    """Return the median of each model in the record's first engine."""
    engines = record.config.get("engines")
    engine = engines[0] if isinstance(engines, list) and engines else None
    ending, times = f"/{engine}:p50_ms", {}
    for key, value in record.metrics.items():
        if key.endswith(ending) and reading.number(value) > 0:
            times[key.removesuffix(ending)] = reading.number(value)
    void = None if record.status == "ok" else record.reason or record.status
    sizes = [f"{name} {record.config[key]}" for name, key in SETUP.items() if key in record.config]
    device = str(record.machine.get("cpu") or record.machine.get("arch") or "an unknown machine")
    return Timing(times, device, void, ", ".join([str(engine), *sizes]))


@cache
def _sizes() -> dict[tuple[str, str], float]:
    wanted = {(name, claim.metric or "") for claim in claims() if claim.kind == "size" for name in claim.rows}
    return {(name, metric): facts(preset(name))[metric] for name, metric in wanted}
