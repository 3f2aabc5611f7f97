"""Write a card's section on the int8 files of a checkpoint, from the record of `quantize`."""

from __future__ import annotations

from collections.abc import Mapping

from mobilebert.deployment.quantized_files import FILES, FIRST
from mobilebert.jobs.record import Quantization, Record
from mobilebert.publishing.checkpoint import Checkpoint, hub_name
from mobilebert.publishing.text import code, digits, table
from mobilebert.reporting import reading
from mobilebert.study.tasks import Task
from mobilebert.util.text import markdown

RUN = {  # folder on the hub -> what runs its files
    "onnx": "ONNX Runtime runs a file of `onnx/`: its inputs are `input_ids`, `attention_mask` and `token_type_ids`.",
    "openvino": "OpenVINO runs the `.xml` file of `openvino/`, with its weights beside it.",
    "tflite": "LiteRT runs a file of `tflite/`. It has one length: shorter rows are padded and masked.",
    "quanto": "optimum's `quanto` loads the file of `quanto/`; the `.json` file beside it lists the quantized layers.",
}


def section(checkpoint: Checkpoint, task: Task | None) -> str:
    """Return the section; "" without int8 files."""
    record = checkpoint.quantized
    if record is None or task is None or not checkpoint.int8:
        return ""
    rows = []
    for engine, how in _engines(record).items():
        prefix = "" if engine == FIRST else f"{engine}:"
        file = hub_name(FILES.get(engine, engine))
        if file not in checkpoint.int8:
            continue
        for metric in task.metrics:
            own, change = (reading.number(record.metrics.get(f"{prefix}{metric}{end}")) for end in ("", "_change"))
            if reading.is_number(own):
                rows.append((code(file), markdown(metric), digits(own), _signed(change), _size(how), _cpu(how)))
    head = ("file", "metric", "value", "change from this checkpoint in float32", "bytes", "scored on")
    lines = ["## int8", "", *table(head, rows)]
    folders = {name.partition("/")[0] for name in checkpoint.int8 if not name.endswith("result.json")}
    lines += ["", *(text for folder, text in RUN.items() if folder in folders)]
    if reading.status(record) != "ok":
        lines.insert(2, f"**The int8 model has not learnt its task**: {markdown(reading.reason(record))}.\n")
    if any(how and how.saturates for how in _engines(record).values()):
        lines += ["", "**A processor without VNNI can give other answers**: sums of two products can exceed 16 bits."]
    return "\n".join(lines)


def _engines(record: Record) -> Mapping[str, Quantization | None]:
    """Return engine -> how it quantized; records of before several engines have one."""
    return record.quantizations or {FIRST: record.quantization}


def _size(how: Quantization | None) -> str:
    return f"{how.bytes_after:,} of {how.bytes_before:,}" if how else "–"


def _cpu(how: Quantization | None) -> str:
    return code(", ".join(how.scored_on.values()) if how else "")


def _signed(change: float) -> str:
    return f"{change:+.4f}" if reading.is_number(change) else "–"
