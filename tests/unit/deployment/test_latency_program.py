"""`mobilebert latency MODEL...`: what it times, what it prints, and what it refuses in one line."""

import json
import re
from typing import get_args

import pytest

from mobilebert.cli import latency as program
from mobilebert.cli.main import main
from mobilebert.deployment import latency, latency_text
from mobilebert.deployment.engines.table import ENGINES, Kernel, int8_flops, int8_share, owners
from mobilebert.modeling.presets import names, preset
from mobilebert.study.fields import Engine

MODEL = {
    "samples_ms": [10.0],
    "p90": 11.0,
    "p99": 12.0,
    "min": 9.0,
    "error": 2e-7,
    "parameters": 1000,
    "operators": 40,
    "int8_flops_share": 0.0,
    "bytes": 4_000_000,
    "memory_mib": 30.0,
    "cold_start_ms": 100.0,
    "owners": [["MatMul", 3, 900.0], ["Add", 9, 100.0]],
    "ran_with": {},
}
SPECS = [{"name": f"{model}/onnxruntime", "model": model, "engine": "onnxruntime"} for model in ("small", "large")]


def measured(validity="ok"):
    """Return a result as `latency.measure` gives, written by hand: no machine took these times."""
    models = {"small/onnxruntime": MODEL | {"p50": 10.0, "flops": 200_000_000}}
    models["large/onnxruntime"] = MODEL | {"p50": 30.0, "flops": 900_000_000}
    return {
        "length": 128,
        "batch": 1,
        "threads": 1,
        "rounds": 1,
        "warmup": 0,
        "seed": 0,
        "models": models,
        "machine": {},
        "peaks": {"gflops": 60.0, "gb_per_s": 8.0},
        "processor": {"cpu": "a processor", "isa": "avx2"},
        "validity": validity,
    }


def rows_of(text):
    """Return the rows of the table by model, each as a mapping of head to cell."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("model"))
    heads = re.split(r"\s{2,}", lines[start])
    cells = [re.split(r"\s{2,}", line) for line in lines[start + 1 : start + 3]]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in cells}


def test_the_table_has_ratios_to_the_first_model_and_shares_of_the_peak():
    text = latency_text.table(measured(), SPECS)
    rows = rows_of(text)
    assert (rows["small"]["time ratio"], rows["large"]["time ratio"]) == ("1.00", "3.00")
    assert (rows["small"]["FLOPs ratio"], rows["large"]["FLOPs ratio"]) == ("1.00", "4.50")
    # 0.2 GFLOP in 10 ms are 20 a second, a third of 60; 0.9 in 30 ms are 30, half of them.
    assert (rows["small"]["GFLOP/s"], rows["small"]["of peak"]) == ("20.0", "33%")
    assert (rows["large"]["GFLOP/s"], rows["large"]["of peak"]) == ("30.0", "50%")
    assert "large has 4.50 times the FLOPs of small and takes 3.00 times as long: 30.0 GFLOP/s (50%" in text
    assert "measured peaks: 60.0 GFLOP/s of float32 matrix products, 8.0 GB/s of memory reads" in text


def test_a_void_run_prints_no_number_that_depends_on_the_load():
    text = latency_text.table(measured("void: other processes used 1.00 of a core"), SPECS)
    for row in rows_of(text).values():
        assert {row[head] for head in latency_text.LOAD} == {"void"}
        assert row["operators"] == "40"
    assert "peaks" not in text
    assert "as long" not in text
    assert "ms  " not in latency_text.profile(measured("void: load"), SPECS)


def test_a_profile_names_the_owners_of_the_time_the_slowest_first():
    lines = latency_text.profile(measured(), SPECS[:1]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0.90", "ms", "90%", "3", "x", "MatMul"],
        ["0.10", "ms", "10%", "9", "x", "Add"],
    ]


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("other processes used 1.00 of a core during the timed rounds", "; for a quiet run stop other programs"),
        ("mobilebert/pytorch: its output is 1 away from that of the same weights in PyTorch", ""),
    ],
)
def test_the_program_prints_json_with_every_sample_and_exits_with_1_if_void(reason, hint, monkeypatch, capsys):
    asked, void = [], measured(f"void: {reason}")
    monkeypatch.setattr(latency, "measure", lambda specs, **sizes: asked.append((specs, sizes)) or void)
    assert main(["latency", "mobilebert", "--length", "64", "--threads", "2", "--rounds", "9", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == void
    assert printed.err.startswith(f"mobilebert: void: {reason}{hint}")
    assert ("quiet" in printed.err) == bool(hint)
    ((specs, sizes),) = asked
    assert specs == [{"name": "mobilebert/pytorch", "model": "mobilebert", "engine": "pytorch", "config": preset("mobilebert")}]
    assert sizes == {"length": 64, "batch": 1, "threads": 2, "rounds": 9, "warmup": 5, "seed": 0}


def test_a_row_of_the_tables_and_a_checkpoint_are_models(tmp_path):
    (spec,) = program.specs_of("mobilebert-nonorm-gelu", ["onnxruntime"])
    assert (spec["config"]["normalization_type"], spec["config"]["hidden_act"]) == ("no_norm", "gelu_new")
    assert program.specs_of(str(tmp_path), None)[0]["checkpoint"] == str(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    assert program.specs_of(str(tmp_path), None)[0]["checkpoint"] == str(tmp_path / "model")
    assert program.specs_of("google/mobilebert-uncased", None)[0]["checkpoint"] == "google/mobilebert-uncased"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nosuch"], f"nosuch: no preset, no checkpoint's folder and no .tflite file; allowed: {', '.join(names())}"),
        (["./nosuch/folder"], "./nosuch/folder: no preset"),
        (["no.tflite"], "no.tflite: no such file"),
        (["mobilebert", "--engine", "tensorrt"], "engine of mobilebert/tensorrt: 'tensorrt' is unknown: choose one of pytorch"),
        (["mobilebert", "mobilebert"], "name: 'mobilebert/pytorch' is the name of 2 models"),
        (["mobilebert", "--length", "1"], "length: 1 is not"),
        (["mobilebert", "--study", "cpu"], "latency: a MODEL and --study"),
        (["--engine", "onnxruntime"], "latency: --engine needs a MODEL"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["latency", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"mobilebert: {says}")
    assert printed.err.count("\n") == 1


def test_another_engine_does_not_take_a_tflite_file(tmp_path, capsys):
    (tmp_path / "model.tflite").write_bytes(b"")
    assert main(["latency", str(tmp_path / "model.tflite"), "--engine", "openvino"]) == 2
    assert "only litert runs a .tflite file, not openvino" in capsys.readouterr().err


def test_every_engine_is_listed(capsys):
    assert main(["latency", "--engine", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ENGINES)


def test_a_study_knows_every_engine_that_makes_its_own_file():
    assert {*get_args(Engine)} == {*ENGINES} - {"litert"}


def test_the_int8_share_counts_hidden_products_as_float():
    kernels = [Kernel("QGemm", True, 60, 4.0), Kernel("MatMul", False, 20, 2.0), Kernel("Add", False, 0, 3.0)]
    assert int8_flops(kernels) == (60, 80)
    assert int8_share((60, 80), None) == int8_share((60, 80), 70) == 0.75
    assert int8_share((60, 80), 120) == 0.5  # 40 FLOPs are in an operator that hides its products
    assert int8_share((0, 0), None) is None
    assert owners([*kernels, Kernel("Add", False, 0, 2.0)]) == [("Add", 2, 5.0), ("QGemm (int8)", 1, 4.0), ("MatMul", 1, 2.0)]
    assert owners([Kernel("Add", False, 0, None)]) == []
