"""Time every model on every engine (paper section 4.5), interleaved in rounds."""

from __future__ import annotations

from mobilebert.deployment.latency import measure
from mobilebert.jobs.context import JobContext
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import LatencyConfig

RAN = ("ran_with", "error", "bytes", "flops", "parameters", "operators", "int8_flops_share", "cold_start_ms", "memory_mib")


def main(context: JobContext, study: Study) -> str | None:
    """Write the raw samples, the percentiles (ms) and what each engine ran into the record.

    Return why the measurement is void if the machine was disturbed, else None.
    """
    config = context.settings(LatencyConfig)
    specs = [
        {"name": f"{model}/{engine}", "config": architecture, "engine": engine}
        for model, architecture in config.architectures.items()
        for engine in config.engines
    ]
    found = measure(
        specs,
        length=config.length,
        batch=config.batch_size,
        threads=config.threads,
        rounds=config.rounds,
        warmup=config.warmup,
        seed=0,
    )
    for spec in specs:
        result = found["models"][spec["name"]]
        context.samples[spec["name"]] = result["samples_ms"]
        for key in ("p50", "p90", "p99"):
            context.metrics[f"{spec['name']}:{key}_ms"] = result[key]
        context.details.setdefault("models", {})[spec["name"]] = {key: result[key] for key in RAN}
    context.details |= {key: value for key, value in found.items() if key != "models"}
    if not study.latency.full_size:
        context.label(study.labels("latency"))
    return None if found["validity"] == "ok" else found["validity"].removeprefix("void: ")
