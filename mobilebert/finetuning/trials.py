"""Run the trials of one fine-tuning job: the search on the development set, then every seed.

Each trial has a line in runs.jsonl: run (its name), role (search or seed), setting, seed, part (it
sees 1/part of the training rows), status (ok, failed, diverged), reason (null if ok), metrics,
details, loss (first and last point), training (details of its training loop), started, seconds. If
it was trained in a stack of K trials, `details` has `stacked_with: K`, and its seconds include a
K-th of the stack's training time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mobilebert.data import squad
from mobilebert.data.examples import sample, table_file
from mobilebert.evaluation.squad import score_v2
from mobilebert.finetuning.outcomes import failure, summary
from mobilebert.finetuning.search import Trial, grid, search, stacks, total
from mobilebert.finetuning.stacked import train as together
from mobilebert.jobs.context import JobContext
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import Diverged
from mobilebert.util.files import json_safe, write_atomically
from mobilebert.util.progress import bar

Train = Callable[[JobContext, Trial, Path], tuple[dict, dict]]

TrainTogether = Callable[[JobContext, list[Trial]], Train | None]


def constant_exact_match(data: Path, setting: FinetuneConfig) -> dict[str, float]:
    """Return the score that a trial on SQuAD must beat, as a metric.

    It is the better of answering nothing and answering the context's first word.
    """
    frame = sample(pd.read_parquet(table_file(data, setting.task, "validation")), setting.eval_rows, seed=0)
    wanted = squad.references(frame)
    words = [context.split()[:1] for context in frame["context"]]
    guesses = [dict.fromkeys(frame["id"], ""), {key: " ".join(word) for key, word in zip(frame["id"], words, strict=True)}]
    return {"constant_exact_match": max(score_v2(guess, wanted)["exact_match"] for guess in guesses)}


def runs_at_once(study: Study, setting: FinetuneConfig, device: str) -> int:
    """Return how many trials may be trained at once.

    It is `finetune.together`, but on a GPU not more than fit into its memory with the search's
    largest batch. A job has the GPU to itself, so its total memory counts. The free memory may
    differ when a killed job resumes, and the job must then form the same stacks.
    """
    if device != "cuda" or study.finetune.together == 1:
        return study.finetune.together
    rows = max(item["batch_size"] for item in grid(setting))
    memory = torch.cuda.mem_get_info()[1]
    return min(study.finetune.together, together.most(setting.architecture, rows, setting.length, memory))


def run_all_trials(context: JobContext, train: Train, train_together: TrainTogether | None = None, most: int = 1) -> list[dict]:
    """Run the search, then the chosen setting with every seed; return their lines in that order.

    A failed trial (`outcomes.failure`) is chosen only if no trial learnt: it ranks below all that
    learnt, and failed ones rank among themselves by score. A trial that was finished before a kill
    is read, not run again; a running one continues from its last saved state.

    train: (context for state and curves, trial, output folder) -> (metrics, details).
    train_together: (context for state and curves, at most `most` trials) -> a `train` to call for
        each of these trials; None if their model cannot be stacked: each is then trained alone.
    """
    context.resume("", 0)  # the curves of seeds that were finished before a kill
    setting, found = context.settings(FinetuneConfig), []
    headline = TASKS[setting.task].metrics[0]
    with bar(total(setting), f"{context.job.id} runs", unit="run") as progress:

        def scores_of(trials: list[Trial]) -> list[float | None]:
            records = {}
            for group in stacks(trials, most):
                for trial, record in zip(group, run_trials(context, group, train, train_together), strict=True):
                    records[trial] = record
                    progress.update()
            found.extend(records[trial] for trial in trials)
            return [_rank(records[trial], headline) for trial in trials]

        chosen = search(setting, scores_of)
        scores_of([Trial(**chosen, seed=seed) for seed in setting.seeds])
    return found


def run_trials(context: JobContext, trials: list[Trial], train: Train, train_together: TrainTogether | None) -> Iterator[dict]:
    """Yield the line of each of several trials, trained at once if possible.

    The memory of a stack is only estimated: a stack that runs out of memory is split into halves.
    """
    name = together.key_of([trial.name for trial in trials])
    shared, fits = None, True
    if len(trials) > 1 and not all(record_file(context, trial).exists() for trial in trials):
        part = part_of(context, trials[0].role, name)
        started, clock = datetime.now(UTC), time.monotonic()
        assert train_together is not None
        try:
            one = train_together(part, trials)
        except torch.OutOfMemoryError:
            one, fits = None, False
        if one:
            train, shared = one, Shared(part, len(trials), started, (time.monotonic() - clock) / len(trials))
    if fits:
        for trial in trials:
            yield run_trial(context, trial, train, shared)
    else:
        for half in (trials[: len(trials) // 2], trials[len(trials) // 2 :]):
            yield from run_trials(context, half, train, train_together)
    (context.state / f"{name}.safetensors").unlink(missing_ok=True)
    shutil.rmtree(context.state / name, ignore_errors=True)


@dataclass
class Shared:
    """The values that trials of a stack share.

    part: holds saved state and curves.
    size: the number of trials.
    started: when training began.
    seconds: one trial's share of the training time.
    """

    part: JobContext
    size: int
    started: datetime
    seconds: float


def part_of(context: JobContext, role: str, name: str) -> JobContext:
    """Return the context for saved state and curves.

    A search has hundreds of trials, too many curves for the record. So each of its trials or stacks
    gets a separate context, whose folder is deleted when they end.
    """
    part = context
    if role == "search":
        part = JobContext(context.job, context.study, context.results, context.graph)
        part.state = context.state / name
        part.state.mkdir(exist_ok=True)
    return part


def record_file(context: JobContext, trial: Trial) -> Path:
    """Return the file of a finished trial's line."""
    return context.state / "runs" / f"{trial.name}.json"


def _rank(record: dict, headline: str) -> float | None:
    """Return the score by which the search ranks a trial; None if it diverged."""
    score = record["metrics"].get(headline)
    return score - 3 if record["status"] == "failed" else score  # scores are in -1..1, so a failed one is at most -2


def run_trial(context: JobContext, trial: Trial, train: Train, shared: Shared | None) -> dict:
    """Run one trial, or read its line if it finished before a kill; return the line.

    The output folder of a search's trial is deleted.
    """
    done = record_file(context, trial)
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    out, task = context.state / trial.name, context.settings(FinetuneConfig).task
    out.mkdir(exist_ok=True)
    part = shared.part if shared else part_of(context, trial.role, trial.name)
    started, clock = shared.started if shared else datetime.now(UTC), time.monotonic()
    status, reason, metrics = "ok", None, {}
    details: dict[str, Any] = {"stacked_with": shared.size} if shared else {}
    try:
        metrics, found = train(part, trial, out)
        details |= found
    except Diverged as error:
        status, reason = "diverged", str(error)
    losses = [value for _, value in part.curves.get(f"{trial.name}_loss", [])]
    if status == "ok":
        shares = details["shares"].get("validation", [])
        reason = failure(task, metrics, details["rows"]["validation"], shares, losses)
        status = "failed" if reason else "ok"
    record = {
        "run": trial.name,
        "role": trial.role,
        "setting": trial.setting,
        "seed": trial.seed,
        "part": trial.part,
        "status": status,
        "reason": reason,
        "metrics": metrics,
        "details": details,
        "loss": [losses[0], losses[-1]] if losses else [],
        "training": {key: value for key, value in part.details.items() if key.startswith(f"{trial.name}_")},
        "started": started.isoformat(timespec="seconds"),
        # A resumed trial's earlier seconds, in another process, are not counted.
        "seconds": round(time.monotonic() - clock + (shared.seconds if shared else 0), 3),
    }
    write_atomically(done, json.dumps(json_safe(record), ensure_ascii=False, allow_nan=False).encode())
    if trial.role == "search":
        shutil.rmtree(out)
    elif status != "diverged":  # a diverged trial keeps its last good state
        (context.state / f"{trial.name}.safetensors").unlink(missing_ok=True)
    return record


def collect(context: JobContext, runs: list[dict], headline: str) -> None:
    """Write the trials into the job's record; copy files of the seeds into the job's folder.

    The files are all of the best seed's, and the predictions of every seed that did not diverge.
    The best seed has the best headline score on the development set among the seeds that learnt, or
    among those that failed if none learnt.

    metrics: the median over the seeds that did not diverge, and failed_share, the share of all
        seeds that failed or diverged.
    samples: every seed's value, null if it diverged.
    details: `summary` (see `outcomes`), `statuses` of the seeds, `setting`, and `search`: its
        number of trials, the count of each status and the chosen setting's score.
    Raises Diverged if every seed did.
    """
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in runs)
    write_atomically(context.folder / "runs.jsonl", text.encode())
    context.artefacts.append("runs.jsonl")
    seeds = [record for record in runs if record["role"] == "seed"]
    tried = [record for record in runs if record["role"] == "search"]
    ended = [record for record in seeds if record["status"] != "diverged"]
    if not ended:
        raise Diverged(f"every seed: {seeds[0]['reason']}")
    context.details["summary"] = summary(seeds, headline)
    for name, figures in context.details["summary"].items():
        context.samples[name] = [record["metrics"].get(name) for record in seeds]
        context.metrics[name] = figures["median"]
    context.metrics["failed_share"] = sum(record["status"] != "ok" for record in seeds) / len(seeds)
    best = max(ended, key=lambda record: (record["status"] == "ok", record["metrics"][headline]))
    for record in seeds:
        context.details |= record["training"]
    context.details |= {**best["details"], "best_seed": best["seed"], "seeds": [record["seed"] for record in seeds]}
    context.details |= {"statuses": [record["status"] for record in seeds], "setting": best["setting"]}
    if tried:
        counts = {status: sum(record["status"] == status for record in tried) for status in ("ok", "failed", "diverged")}
        chosen = next(record for record in reversed(tried) if record["setting"] == best["setting"])
        context.details["search"] = {"runs": len(tried), **counts, f"chosen_{headline}": chosen["metrics"].get(headline)}
    source = context.state / f"seed{best['seed']}"
    for file in sorted(source.rglob("*")):
        if file.is_file():
            keep(context, file, str(file.relative_to(source)))
    for record in ended:
        for file in sorted((context.state / record["run"]).glob("predictions.*")):
            keep(context, file, f"runs/{record['run']}/{file.name}")


def keep(context: JobContext, file: Path, name: str) -> None:
    """Copy a file from the state folder to the job's folder, as an artefact."""
    (context.folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, context.folder / name)
    context.artefacts.append(name)


def setting_labels(study: Study, setting: FinetuneConfig, others: list[str]) -> list[str]:
    """Return labels that say how the setting was chosen and how it differs from the paper's.

    The paper chooses the best of 270 settings on the set that it reports. A missing search and
    changed settings are labelled only if the labels `others` leave the result comparable with the
    paper's.
    """
    judged = all(text.startswith(("corpus:", "changed:", "split:")) for text in others)
    if setting.search != "none":
        halved = ", by successive halving" if setting.halving else ""
        found = [f"search: chosen among {len(grid(setting))} settings on this development set{halved}"]
    else:
        found = ["search: none, one setting a task"] if judged else []
    return found + (study.finetune.changed(setting.task) if judged else [])


def subset_labels(context: JobContext, task: str, used: int, whole: int, setting: FinetuneConfig) -> list[str]:
    """Return labels that say which part of the task's data was used, if not all of it."""
    labels = [
        f"subset ({role}): {text}"
        for role, text in context.record_of("data").details["labels"].get(task, {}).items()
        if not role.startswith("test")
    ]
    if used < whole:
        labels.append(f"subset (train): {used:,} of {whole:,} rows drawn at random")
    if context.details["rows"]["validation"] < context.record_of("data").details["rows"][task]["validation"]:
        labels.append(f"subset (validation): {setting.eval_rows:,} rows drawn at random")
    return labels
