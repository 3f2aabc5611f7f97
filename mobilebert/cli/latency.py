"""Time any models side by side, or a study's if no model is named."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mobilebert.cli.options import positive
from mobilebert.util.errors import UserError, allowed


def add_options(latency: argparse.ArgumentParser) -> None:
    """Add the options for models that are named on the command line."""
    latency.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="preset, checkpoint's folder or hub name, .tflite file; none: the study's",
    )
    own = latency.add_argument_group("with MODEL")
    own.add_argument("--engine", nargs="+", metavar="E", help="engines that run every model (default pytorch); --engine list")
    own.add_argument("--length", type=positive, help="tokens of a sequence (default 128)")
    own.add_argument("--batch", type=positive, help="sequences in a batch (default 1)")
    own.add_argument("--rounds", type=positive, help="timed rounds; each runs every model on every engine once (default 50)")
    own.add_argument(
        "--device",
        action="append",
        metavar="D",
        help="local (default), or android[:SERIAL] for .tflite files on a phone through adb; again for several phones",
    )
    own.add_argument("--benchmark-binary", type=Path, metavar="PATH", help="LiteRT's benchmark_model, built for the phone")
    own.add_argument("--profile", action="store_true", help="print which operations take the time, too")
    own.add_argument("--json", action="store_true", help="print JSON with every sample")


def time_models(options: argparse.Namespace) -> int:
    """Time the models and print the table. Return 1 if the run is void."""
    from mobilebert.deployment.engines.table import ENGINES

    if options.engine == ["list"]:
        width = max(map(len, ENGINES))
        print("\n".join(f"{name:{width}}  {engine.does}" for name, engine in ENGINES.items()))
        return 0
    from mobilebert.deployment import devices

    phones = devices.serials(options.device or [])
    if phones:
        return time_on_phones(options, phones)
    if options.benchmark_binary:
        raise UserError("latency: --benchmark-binary is for --device android")
    from mobilebert.deployment import latency, latency_text
    from mobilebert.util.files import json_safe

    specs = [spec for model in options.models for spec in specs_of(model, options.engine)]
    length, batch, rounds = options.length or 128, options.batch or 1, options.rounds or 50
    sizes = {"length": length, "batch": batch, "threads": options.threads or 1, "rounds": rounds, "warmup": 5, "seed": 0}
    found = latency.measure(specs, **sizes)
    if options.json:
        print(json.dumps(json_safe(found)))
    else:
        print(latency_text.table(found, specs))
        if options.profile:
            print(f"\n{latency_text.profile(found, specs)}")
    if found["validity"] == "ok":
        return 0
    hint = f"; {latency_text.QUIET}" if latency.BUSY in found["validity"] else ""
    print(f"mobilebert: {found['validity']}{hint}", file=sys.stderr)
    return 1


def time_on_phones(options: argparse.Namespace, phones: list[str | None]) -> int:
    """Time .tflite files on phones and print the table.

    Raises UserError for options and models that a phone does not take.
    """
    from mobilebert.deployment import phone_latency

    for name in ("engine", "length", "batch", "profile"):
        if getattr(options, name):
            raise UserError(f"latency: --{name} is not for a phone, which runs the file as it is")
    if options.threads:
        raise UserError("latency: --threads is not for a phone, which runs the file with 1, 2 and 4 threads")
    if options.benchmark_binary is None:
        raise UserError("latency: --device android needs --benchmark-binary PATH, LiteRT's benchmark_model for the phone")
    for model in options.models:
        specs_of(model, ["litert"])
        if not model.endswith(".tflite"):
            raise UserError(f"{model}: a phone runs .tflite files; mobilebert.tf.export_tflite writes one")
    files = [Path(model).expanduser() for model in options.models]
    found = phone_latency.measure(files, phones, options.benchmark_binary.expanduser(), options.rounds or 50)
    print(json.dumps(found) if options.json else phone_latency.table(found))
    return 0


def specs_of(model: str, engines: list[str] | None) -> list[dict]:
    """Return the specs of a model on every engine, for `latency.measure`.

    Raises UserError for a name that is no preset, row of the paper's tables, folder, hub name or
    .tflite file.
    """
    from mobilebert import paper
    from mobilebert.modeling.presets import names, preset

    path, rows = Path(model).expanduser(), paper.models()
    if model.endswith(".tflite"):
        if not path.is_file():
            raise UserError(f"{model}: no such file; a .tflite file is expected")
        if engines and engines != ["litert"]:
            raise UserError(f"{model}: only litert runs a .tflite file, not {', '.join(engines)}")
        engines, source = ["litert"], {"file": str(path)}
    elif model in names():
        source = {"config": preset(model)}
    elif model in rows and rows[model].preset in names():
        source = {"config": preset(rows[model].preset, **rows[model].overrides)}
    elif path.is_dir() or (model.count("/") == 1 and not model.startswith((".", "/", "~"))):
        nested = path / "model"  # the folder of the stage `finetune`
        source = {"checkpoint": str(nested if (nested / "config.json").is_file() else path if path.is_dir() else model)}
    else:
        raise UserError(f"{model}: no preset, no checkpoint's folder and no .tflite file; {allowed(names(), model)}")
    return [{"name": f"{model}/{engine}", "model": model, "engine": engine, **source} for engine in engines or ["pytorch"]]
