"""An expectation that cannot hold is refused before the run: its records and metrics are known."""

import json
import math
from pathlib import Path

import pytest
import yaml

from mobilebert.cli.main import main
from mobilebert.study import expectations
from mobilebert.study.graph import STAGES, build_graph
from mobilebert.study.load import load_study
from mobilebert.study.recipe import TASK_NAMES
from mobilebert.study.sections import Expectation
from mobilebert.util.errors import UserError

ROOT = Path(__file__).parents[3]
RECORDS = sorted(ROOT.glob("reports/cpu/**/result.json"))
MINI = ROOT / "tests/workflow/mini.yaml"


def test_every_metric_of_a_real_record_is_known_and_within_its_range():
    """The study `cpu` has committed records of all tasks and of all stages but `checkpoint`."""
    graph, seen = build_graph(load_study("cpu")), set()
    for path in RECORDS:
        record = json.loads(path.read_text())
        key = "/".join(filter(None, (record["stage"], record["name"])))
        if record["stage"] in ("report", "track", "check"):
            continue
        known = expectations.metrics(graph[key])
        assert record["metrics"].keys() <= known.keys(), key
        for name, value in record["metrics"].items():
            least, most = known[name]
            assert value is None or least <= value <= most, f"{key}:{name}"
        seen.add(record["stage"])
        missing = known.keys() - record["metrics"].keys()
        assert all(name.startswith("mismatched_") for name in missing), f"{key} lacks {missing}"  # the data folder lacks this set
    assert seen == {*STAGES} - {"checkpoint", "report", "track", "check"}
    assert {json.loads(path.read_text())["name"].partition("/")[2] for path in RECORDS} >= {*TASK_NAMES}


def refused(tmp_path, capsys, **expectation) -> str:
    content = yaml.safe_load(MINI.read_text())
    content["expect"] = [{"what": "w", "metric": "data:vocab_size", "above": 0.0, "reason": "r", **expectation}]
    for key in [key for key, value in expectation.items() if value is None]:
        del content["expect"][0][key]
    for part in ("pretrain", "transfer", "distill"):
        content[part]["learning_rate"] = 0.003
    content["finetune"]["learning_rate"] = 0.001
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    code = main(["plan", "--study", str(file), "--device", "h100"])
    line = capsys.readouterr().err
    assert (code, line.count("\n")) in ((0, 0), (2, 1))
    assert len(line) < 320
    return line.strip()


@pytest.mark.parametrize(
    ("expectation", "wanted"),
    [
        (
            {"metric": "finetune/mobilebert/sst2:acuracy"},
            "finetune/mobilebert/sst2 has no metric 'acuracy'; allowed: accuracy, majority",
        ),
        ({"metric": "finetune/mobilebert/sst2"}, "'finetune/mobilebert/sst2' names no metric; write <record>:<metric>"),
        ({"metric": "finetune/mobilebert/sst2:"}, "names no metric"),
        ({"metric": ":accuracy"}, "names no record of this study: ''"),
        ({"metric": "finetune/mobilebirt/sst2:accuracy"}, "names no record of this study: 'finetune/mobilebirt/sst2'; allowed: "),
        ({"metric": "report:match"}, "names no record of this study: 'report'"),
        ({"metric": "data:vocab_size, latency:x"}, "data has no metric 'vocab_size, latency:x'"),
        (
            {"metric": "finetune/mobilebert/sst2, finetune/mobilebert/rte:accuracy"},
            "a run of this study does not make finetune/mobilebert/rte",
        ),
        ({"metric": "finetune/mobilebert/rte:accuracy"}, "does not make finetune/mobilebert/rte; name it in run or quantize"),
        ({"metric": "quantize/mobilebert/sst2:failed_share"}, "quantize/mobilebert/sst2 has no metric 'failed_share'"),
        ({"metric": "latency:mobilebert/onnxruntime:p50_ms"}, "latency has no metric 'mobilebert/onnxruntime:p50_ms'"),
        ({"metric": "latency:bert-base/pytorch:p50_ms"}, "allowed: mobilebert/pytorch:p50_ms, mobilebert/pytorch:p90_ms"),
        ({"metric": "pretrain/ib-bert-large:loss"}, "has no metric 'loss'; allowed: heldout_mlm_loss"),
        ({"above": "finetune/mobilebert/sst2:f1"}, "finetune/mobilebert/sst2 has no metric 'f1'"),
        ({"above": "0.5"}, "'0.5' names no metric"),
        ({"metric": "finetune/mobilebert/sst2:accuracy", "above": 1.0}, "is never above 1.0: it lies from 0 to 1"),
        (
            {"metric": "finetune/mobilebert/sst2:accuracy", "above": 0.9, "by": 0.2},
            "is never above 0.9 by 0.2: it lies from 0 to 1",
        ),
        ({"metric": "finetune/mobilebert/sst2:accuracy", "above": 90.0}, "is never above 90.0"),
        (
            {"metric": "pretrain/ib-bert-large:heldout_mlm_loss", "above": None, "below": 0.0},
            "is never below 0.0: it lies from 0 to inf",
        ),
        (
            {"metric": "finetune/mobilebert/sst2:accuracy", "above": "finetune/bag-of-embeddings/sst2:accuracy", "by": 1.5},
            "is never above 'finetune/bag-of-embeddings/sst2:accuracy' by 1.5",
        ),
        ({"above": "data:vocab_size"}, "is never above 'data:vocab_size'"),
    ],
)
def test_an_expectation_that_cannot_hold_is_refused(tmp_path, capsys, expectation, wanted):
    line = refused(tmp_path, capsys, **expectation)
    assert line.startswith("mobilebert: mine: expect.0: ")
    assert wanted in line


@pytest.mark.parametrize(
    ("expectation", "wanted"),
    [
        ({"above": 88.8}, "is never above 88.8: it lies from 0 to 1; {}; 88.8 percent is 0.888"),
        ({"above": None, "below": 88.8}, "is always below 88.8: it lies from 0 to 1; {}; 88.8 percent is 0.888"),
        ({"above": 0.5, "by": 5.0}, "is never above 0.5 by 5: it lies from 0 to 1; {}; 5 percent is 0.05"),
    ],
)
def test_a_bound_in_percent_is_refused_with_its_fraction(tmp_path, capsys, expectation, wanted):
    line = refused(tmp_path, capsys, metric="finetune/mobilebert/sst2:accuracy", **expectation)
    assert line.endswith(wanted.format("metrics of records are fractions from 0 to 1"))


@pytest.mark.parametrize("key", ["above", "below"])
@pytest.mark.parametrize(("value", "said"), [([1], "a list of 1"), (True, "True"), ({"a": 1}, "a dict of 1"), (math.nan, "nan")])
def test_a_bound_of_another_type_is_refused_by_its_key(tmp_path, capsys, key, value, said):
    line = refused(tmp_path, capsys, **{"above": None, key: value})
    assert line.endswith(f"mine.yaml: expect.0.{key}: <record>:<metric> or a number is allowed, not {said}")


@pytest.mark.parametrize(
    "expectation",
    [
        {"metric": "finetune/mobilebert/sst2:accuracy", "above": 0.5, "by": 0.5},
        {"metric": "finetune/mobilebert/sst2:accuracy", "above": "finetune/bag-of-embeddings/sst2:accuracy", "by": -0.1},
        {"metric": "finetune/mobilebert/sst2, finetune/bag-of-embeddings/sst2:failed_share", "above": None, "below": 0.5},
        {"metric": "latency:mobilebert/pytorch:p99_ms", "above": None, "below": 100},
        {"metric": "quantize/mobilebert/sst2:accuracy_change", "above": -0.1},
        {"metric": "quantize/mobilebert/sst2:bytes_before", "above": "quantize/mobilebert/sst2:bytes_after", "by": 1e6},
        {"metric": "transfer/mobilebert:heldout_transfer_loss", "above": None, "below": 3},
        {"metric": "distill/mobilebert:heldout_mlm_loss", "above": None, "below": "distill/mobilebert:unigram_entropy"},
        {"metric": "data:tokens_train", "above": 1000},
    ],
)
def test_an_expectation_that_can_hold_is_taken(tmp_path, capsys, expectation):
    assert refused(tmp_path, capsys, **expectation) == ""


def test_the_metrics_of_each_kind_of_task():
    graph = build_graph(load_study("smoke"))
    names = {task: set(expectations.metrics(graph[f"finetune/mobilebert/{task}"])) for task in TASK_NAMES}
    assert names["stsb"] == {"pearson", "spearmanr", "failed_share"}
    assert names["cola"] == {"matthews_correlation", "majority", "failed_share"}
    assert names["mnli"] == {"accuracy", "majority", "mismatched_accuracy", "mismatched_majority", "failed_share"}
    assert names["squad_v1.1"] == {"exact_match", "f1", "constant_exact_match", "failed_share"}
    assert expectations.metrics(graph["quantize/mobilebert/cola"])["matthews_correlation_change"] == (-2, 2)


def test_an_expectation_on_a_checkpoint_has_no_metric_to_name():
    study = load_study("released")
    item = Expectation(what="w", metric="checkpoint/mobilebert:loss", above=0, reason="r")
    with pytest.raises(UserError, match="checkpoint/mobilebert has no metric 'loss'; it has none"):
        build_graph(study.model_copy(update={"expect": (item,)}))
