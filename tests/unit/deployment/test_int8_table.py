"""`mobilebert int8` says whether int8 keeps the score; each of its conditions fails alone."""

import json
import re

import pytest
import short_records
from written import write

from mobilebert.cli.main import main
from mobilebert.cli.stages import _summary
from mobilebert.deployment.int8_table import as_text, rows_of, verdicts

MADE = {
    "method": "dynamic",
    "engine": "onnxruntime 1",
    "weight_range": [-64, 64],
    "activation_type": "uint8",
    "saturates": False,
    "scored_on": {"cpu": "a processor", "isa": "avx2"},
    "bytes_before": 1000,
    "bytes_after": 300,
    "int8_flops_share": 0.99,
    "ran_int8_flops_share": 0.96,
    "layer_errors": {"0": 0.01, "1": 0.3},
    "broken_layers": ["1"],
}
CHANGE = {"points": 0.1, "low": -0.8, "high": 0.9, "rows": 872}


def records(made=(), change=CHANGE, score=0.9, width=128, way="onnxruntime-int8"):
    prefix = "" if way == "onnxruntime-int8" else f"{way}:"
    details = {"change": change}
    tuned = {"config": {"architecture": {"hidden_size": 512, "intra_bottleneck_size": width}}}
    fields = {
        "config": {"task": "sst2"},
        "metrics": {"majority": 0.51, f"{prefix}accuracy": score + 0.001},
        "samples": {"float_accuracy": [score]},
        "details": details if not prefix else {way: details},
        "quantizations": {way: MADE | dict(made)},
    }
    return [("finetune/mobilebert/sst2", tuned), ("quantize/mobilebert/sst2", fields)]


def rows(*given, **changes):
    return rows_of(short_records.of(*(short_records.record(key, **fields) for key, fields in given or records(**changes))))


@pytest.mark.parametrize("way", ["onnxruntime-int8", "openvino-int8"])
def test_a_way_that_meets_every_condition_keeps_the_score(way):
    (row,) = rows(way=way)
    assert row["against"] == []
    assert (row["float"], row["int8"], row["size"], row["int8_flops_share"]) == (0.9, 0.901, 0.3, 0.96)
    assert verdicts([row]) == [f"mobilebert/sst2: int8 keeps the score within 1 point in {way}"]
    line = as_text([row]).splitlines()[1]
    assert all(text in line for text in ("90.00", "90.10", "+0.10 [-0.80, +0.90]", "0.30x", "96.0%", " 1 ", "avx2"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"change": {**CHANGE, "low": -1.01}}, "interval -1.01 to +0.90 is not within 1 point"),  # its point, 0.1, is
        ({"change": {**CHANGE, "high": 1.2}}, "interval -0.80 to +1.20 is not within 1 point"),
        ({"change": None}, "no interval of the paired change"),
        ({"made": {"ran_int8_flops_share": 0.72}}, "72% of the FLOPs in int8, 90% are needed"),  # whatever the file says
        ({"made": {"ran_int8_flops_share": None, "int8_flops_share": 0.5}}, "50% of the FLOPs in int8, 90% are needed"),
        ({"made": {"bytes_after": 351}}, "file 0.351x, 0.35x is needed"),
        ({"width": 32}, "blocks 32 wide, 64 are needed"),
        ({"score": 0.6}, "float score +9.0 points from the commonest class, +10 are needed"),
    ],
)
def test_each_condition_alone_is_named(changes, reason):
    (row,) = rows(**changes)
    assert row["against"] == [reason]
    assert verdicts([row]) == ["mobilebert/sst2: not shown that int8 keeps the score", f"  onnxruntime-int8: {reason}"]


def test_a_record_of_an_older_version_is_printed(tmp_path, capsys):
    older = {key: MADE[key] for key in ("method", "engine", "weight_range", "activation_type", "saturates", "bytes_before")}
    fields = {"samples": {"float_f1": [0.8]}, "quantization": older | {"bytes_after": 400}, "details": {}}
    write(tmp_path, "quantize/mobilebert/squad_v1.1", {"task": "squad_v1.1"}, {"f1": 0.79}, **fields)
    assert main(["int8", "--records", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["models"][0]["change"], found["models"][0]["isa"]) == (None, "unknown")
    assert found["verdicts"] == ["mobilebert/squad_v1.1: not judged: no paired interval for this task"]
    assert found["models"][0]["broken_layers"] is None
    assert main(["int8", "--records", str(tmp_path)]) == 0
    assert re.search(r"80.00  79.00 .* - +unknown\n", capsys.readouterr().out)  # nobody measured the layers


def test_measured_layers_of_which_none_is_broken_are_printed_so():
    (row,) = rows(made={"broken_layers": []})
    assert re.search(r"96.0% +none +avx2", as_text([row]))
    (row,) = rows(made={"layer_errors": {}, "broken_layers": ["2"]})  # its error is not finite
    assert row["broken_layers"] == ["2"]


def test_a_way_without_an_int8_model_is_printed_with_its_reason():
    tuned, (key, fields) = records()
    fields["config"]["also"] = ["quanto", "openvino-int8"]
    fields["details"]["quanto"] = {"reason": "quanto: no such layer"}
    found = rows(tuned, (key, fields))
    assert [row["way"] for row in found] == ["onnxruntime-int8", "quanto"]
    assert verdicts(found) == [
        "mobilebert/sst2: int8 keeps the score within 1 point in onnxruntime-int8",
        "  quanto: not quantized: no such layer",
    ]
    assert re.search(r"mobilebert/sst2  quanto +90.00  - +- +- +- +- +-\n", as_text(found))
    (record,) = (one for one in short_records.of(short_records.record(key, **fields)).values())
    assert _summary(record.model_copy(update={"seconds": 2.0}), None).startswith(
        "quantize/mobilebert/sst2: incomplete (not quantized in quanto: no such layer) in 2.0 s"
    )


@pytest.mark.parametrize(
    ("padding", "against"),
    [
        ({**CHANGE, "low": -0.5}, []),
        ({**CHANGE, "low": -4.0}, ["padding to 16 tokens alone changes the float score by -4.00 to +0.90"]),
        (None, ["no interval of what padding alone changes"]),
    ],
)
def test_padding_that_changes_the_float_score_is_named(padding, against):
    tuned, (key, fields) = records(way="litert-int8")
    fields["details"]["litert-int8"]["padded_float"] = {"tokens": 16, "scores": {"accuracy": 0.89}, "change": padding}
    (row,) = rows(tuned, (key, fields))
    assert (row["float"], row["against"]) == (0.89, against)


def test_damaged_and_edited_records_are_named(tmp_path, capsys):
    for key, fields in records():
        fields = {"metrics": {}, **fields}
        write(tmp_path, key, **fields)
    path = write(tmp_path, "quantize/mobilebert/mrpc", {"task": "mrpc"}, {})
    path.write_text(path.read_text().replace('"mrpc"', '"qnli"'))
    (tmp_path / "finetune/mobilebert/mrpc").mkdir()
    damaged = tmp_path / "finetune/mobilebert/mrpc/result.json"
    damaged.write_text("{")
    assert main(["int8", "--records", str(tmp_path)]) == 0
    found = capsys.readouterr()
    assert "onnxruntime-int8" in found.out
    lines = found.err.splitlines()
    assert [line for line in lines if line.startswith(f"mobilebert: {damaged}: ")]
    assert f"mobilebert: {path}: edited after it was written; the table goes without it" in lines


def test_a_folder_without_int8_models_is_one_line(tmp_path, capsys):
    (tmp_path / "finetune").mkdir()
    assert main(["int8", "--records", str(tmp_path)]) == 2
    assert "no current record of the stage quantize" in capsys.readouterr().err
