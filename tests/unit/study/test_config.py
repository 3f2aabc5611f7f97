"""A wrong study is refused before any work, with exit code 2.

The one line names file and key and says what is allowed.
"""

import pytest
import yaml

from mobilebert.cli.main import main
from mobilebert.reporting.verdicts import cell
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError

GOOD = {"schema": 1, "description": "a test", "device": "cpu", "data": {"source": "synthetic"}}


def write(tmp_path, **changes):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return file


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu", "released", "paper", "small-tasks"])
def test_the_studies_load(name):
    assert load_study(name).name == name


def test_the_defaults_are_the_paper():
    study = load_study("paper")
    assert (study.pretrain.steps, study.pretrain.batch_size, study.pretrain.optimizer) == (500_000, 4096, "lamb")
    assert study.transfer.steps == 240_000
    assert (study.search.steps, study.search.batch_size) == (125_000, 2048)
    assert study.finetune.setting("squad_v1.1")["doc_stride"] == 128
    assert study.schedule_labels("pretrain") == study.labels("pretrain") == []
    assert not study.scale.scaled


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"pretain": {}}, ["pretain", "unknown key", "pretrain"]),
        ({"pretrain": {"step": 3}}, ["pretrain.step", "unknown key", "steps"]),
        ({"finetune": {"tasks": {"sst2": {"lr": 1.0}}}}, ["finetune.tasks.sst2.lr", "unknown key", "learning_rate"]),
        ({"pretrain": {"steps": "many"}}, ["pretrain.steps", "integer", "'many'"]),
        ({"pretrain": {"steps": 3.5}}, ["pretrain.steps", "integer", "3.5"]),
        ({"pretrain": {"steps": -3}}, ["pretrain.steps", "greater than 0", "-3"]),
        ({"pretrain": {"batch_size": 0}}, ["pretrain.batch_size", "greater than 0", "0"]),
        ({"pretrain": {"steps": 10, "warmup_steps": 20}}, ["pretrain", "warmup_steps 20 must be below steps 10"]),
        ({"pretrain": {"batch_size": 8, "accumulate": 9}}, ["pretrain", "accumulate 9 must not be more than batch_size 8"]),
        ({"search": {"graph": True}}, ["search.graph: true needs device: cuda"]),
        ({"transfer": {"max_minutes": 0.0}}, ["transfer.max_minutes", "greater than 0"]),
        ({"pretrain": {"optimizer": "sgd"}}, ["pretrain.optimizer", "'lamb' or 'adamw'", "'sgd'"]),
        ({"run": {"mobilebirt": "all"}}, ["run: unknown model 'mobilebirt'", "mobilebert"]),
        ({"run": {"mobilebert": ["sst3"]}}, ["run.mobilebert: unknown task 'sst3'", "sst2"]),
        ({"quantize": {"mobilebert": ["cola"]}}, ["quantize.mobilebert: unknown task 'cola'", "mrpc"]),
        ({"finetune": {"tasks": {"sst3": {}}}}, ["finetune.tasks", "unknown task 'sst3'"]),
        ({"finetune": {"seeds": []}}, ["finetune.seeds", "at least one seed"]),
        ({"finetune": {"seeds": [1, 1]}}, ["finetune.seeds", "each once"]),
        ({"data": {"source": "ftp"}}, ["data.source", "synthetic, hub or local:<folder>"]),
        ({"latency": {"models": ["x"]}}, ["latency.models: unknown model 'x'"]),
        ({"data": {"source": "local:x"}}, ["data", "sums must be the sha256"]),
        ({"checkpoints": {"mobilebert": {"source": "./x"}}}, ["checkpoints.mobilebert", "sha256 must be"]),
        ({"finetune": {"tasks": {"sst2": {"length": 1024}}}}, ["finetune.tasks.sst2.length: 1024", "512 positions"]),
        ({"pretrain": {"length": 1024}}, ["pretrain.length: 1024", "512 positions"]),
        ({"finetune": {"doc_stride": 384}}, ["finetune.doc_stride: 384", "317 context tokens"]),
        ({"transfer": {"learning_rate": float("inf")}}, ["transfer.learning_rate", "finite"]),
        ({"schema": 2}, ["schema", "1", "2"]),
        ({"expect": [{"what": "x", "metric": "a:b", "reason": "c"}]}, ["expect.0", "exactly one of above, below"]),
        (
            {"expect": [{"what": "x", "metric": "a:b", "above": 1, "void_unless": "x", "reason": "c"}]},
            ["expect: void_unless 'x': no earlier expectation has this what"],
        ),
        (
            {"run": {"bag-of-embeddings": ["squad_v1.1"]}},
            ["run.bag-of-embeddings: unknown task 'squad_v1.1'; allowed: cola, sst2"],
        ),
        ({"quantize": {"bag-of-embeddings": ["sst2"]}}, ["quantize.bag-of-embeddings: a bag of embeddings is not quantized"]),
        ({"quantize": {"bag-of-embeddings": "all"}}, ["quantize.bag-of-embeddings: a bag of embeddings is not quantized"]),
        ({"latency": {"models": ["bag-of-embeddings"]}}, ["latency.models: unknown model 'bag-of-embeddings'; allowed: "]),
        (
            {
                "checkpoints": {"distilbert": {"source": "org/name"}},
                "run": {"distilbert": "all"},
                "latency": {"models": ["distilbert"]},
            },
            ["latency.models: no shape is known of the baseline 'distilbert'; allowed: "],
        ),
        ({"latency": {"models": ["mobilebert", "mobilebert"]}}, ["latency.models", "'mobilebert' is given twice"]),
        ({"latency": {"engines": ["pytorch", "pytorch"]}}, ["latency.engines", "'pytorch' is given twice"]),
        ({"checkpoints": {"bag-of-embeddings": {"source": "x"}}}, ["checkpoints: bag-of-embeddings is never pre-trained"]),
        ({"run": {"mobilebert": True}}, ["run: 'mobilebert': all or a list of tasks is allowed, not True"]),
        ({"run": ["mobilebert"]}, ["run: a mapping is allowed, not a list of 1"]),
        ({"pretrain": 3}, ["pretrain: a group of keys is allowed, not 3"]),
        (
            {"transfer": {"factors": [-1.0, 1.0, 1.0, 1.0]}},
            ["transfer.factors", "each factor must be 0 or more", "[-1.0, 1.0, 1.0, 1.0]"],
        ),
        ({"transfer": {"factors": [0.0, 0.0, 0.0, 0.0]}}, ["transfer.factors", "one of them above 0"]),
        ({"pretrain": {"batch_size": 10**9}}, ["pretrain.batch_size", "less than or equal to 1048576", "1000000000"]),
        ({"finetune": {"search": "none", "batch_size": 10**9}}, ["finetune.batch_size", "less than or equal to 1048576"]),
        (
            {"finetune": {"search": "none", "tasks": {"sst2": {"batch_size": 10**9}}}},
            ["finetune.tasks: sst2.batch_size: at most 1,048,576", "1000000000"],
        ),
        ({"latency": {"batch_size": 10**9}}, ["latency.batch_size", "less than or equal to 1048576"]),
        ({"data": {"source": "synthetic", "documents": 10**9}}, ["data", "documents 1000000000: 4 to 100,000,000 are allowed"]),
        ({"data": {"source": "synthetic", "documents": 3}}, ["data", "documents 3: 4 to 100,000,000 are allowed"]),
        ({"data": {"source": "local:a\nb", "sums": "0" * 64}}, ["data.source"]),
        ({"schema": True}, ["schema", "1 is allowed, not True"]),
        ({"schema": 1.0}, ["schema", "1 is allowed, not 1.0"]),
        ({"seed": 2**32}, ["seed", "less than 4294967296"]),
        ({"data": {"source": "synthetic", "seed": 2**32}}, ["data.seed", "less than 4294967296"]),
        ({"distill": {"temperature": 2.0}}, ["distill.temperature: 2.0 is not 1", "only recipe: released"]),
        ({"recipe": "released", "distill": {"temperature": 0.0}}, ["distill.temperature", "greater than 0"]),
    ],
)
def test_refused_in_one_line(tmp_path, capsys, changes, wanted):
    file = write(tmp_path, **changes)
    assert main(["plan", str(file)]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    for text in [str(file), *wanted]:
        assert text in out.err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("device: cpu\ndevice: cuda\n", "key given twice: device"),
        ("- a\n", "mapping"),
        ("a: [1\n", "not YAML"),
        ("schema: 1\n", "description"),
        ("", "mapping"),
    ],
)
def test_files_that_are_not_a_study_are_refused(tmp_path, text, wanted):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=wanted):
        load_study(file)


def test_unknown_study_and_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"unknown study 'smoky'; allowed: cpu, engines, evening, .*, smoke, weekend, or a path"):
        load_study("smoky")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path / "absent.yaml")


def test_a_rate_without_a_point_is_a_number(tmp_path):
    """YAML 1.1 reads 1e-4 as text."""
    assert load_study(write(tmp_path, finetune={"search": "none", "learning_rate": 1})).finetune.learning_rate == 1
    file = tmp_path / "mine.yaml"
    file.write_text(file.read_text().replace("learning_rate: 1", "learning_rate: 1e-4"))
    assert load_study(file).finetune.learning_rate == 1e-4


def test_setting_one_task_keeps_the_defaults_of_the_others(tmp_path):
    """SQuAD's 4e-5, 5 epochs and length 384 are kept if a study sets SST-2."""
    tasks = {"sst2": {"epochs": 7}, "squad_v2.0": {"epochs": 2}}
    finetune = load_study(write(tmp_path, finetune={"search": "none", "tasks": tasks})).finetune
    first, second = finetune.setting("squad_v1.1"), finetune.setting("squad_v2.0")
    assert (first["learning_rate"], first["epochs"], first["length"]) == (4e-5, 5, 384)
    assert (second["learning_rate"], second["epochs"], second["length"]) == (4e-5, 2, 384)


def test_settings_of_one_task_hold_no_other_tasks(tmp_path):
    study = load_study(write(tmp_path, finetune={"search": "none", "tasks": {"sst2": {"epochs": 7}}}))
    assert study.finetune.setting("sst2")["epochs"] == 7
    assert study.finetune.setting("mrpc") == load_study(write(tmp_path, finetune={"search": "none"})).finetune.setting("mrpc")
    assert "doc_stride" not in study.finetune.setting("sst2")


@pytest.mark.parametrize("arguments", [["pretrain", "mobilebirt"], ["finetune", "mobilebert/sst3"], ["describe", "bert"]])
def test_unknown_names_on_the_command_line(capsys, arguments):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("mobilebert: ")


def test_changes_of_the_recipe_are_labels_unless_another_label_names_them(tmp_path):
    """Ways of computing, and changes that other labels name, are no changes."""
    file = tmp_path / "mine.yaml"
    head = "schema: 1\ndescription: d\n"
    file.write_text(
        head + "scale: {residual_init: true}\npretrain: {precision: bf16, learning_rate: 1e-3, compile: true}\n"
        "distill: {steps: 10, warmup_steps: 1, alpha: 0.1, checkpoint_every: 9}\n"
        "finetune: {search: none, seeds: [1], epochs: 9, weight_decay: 0.1, tasks: {rte: {length: 64}}}\n"
    )
    study = load_study(file)
    assert study.labels("finetune") == ["changed: scale residual_init True"]
    assert study.labels("latency") == study.schedule_labels("transfer") == study.schedule_labels("search") == []
    assert study.schedule_labels("pretrain") == ["changed: pretrain learning_rate 0.001, precision bf16"]
    assert study.schedule_labels("distill") == ["scaled: distill sees 2.0e-05 of the paper's tokens"]
    assert study.finetune.changed("rte") == ["changed: finetune length 64, weight_decay 0.1"]
    assert study.finetune.changed("squad_v2.0") == study.finetune.changed("cola") == ["changed: finetune weight_decay 0.1"]
    assert load_study("paper").finetune.changed("squad_v1.1") == []
    assert cell(84.0, 84.1, 0.5, study.schedule_labels("pretrain")) == "match"
    file.write_text(head + "scale: {residual_init: true, layer_divisor: 2}\n")
    assert load_study(file).labels("finetune") == ["scaled: widths / 1, layers / 2"]


def test_a_time_budget_is_a_label():
    study = load_study("smoke")
    study = study.model_copy(update={"transfer": study.transfer.model_copy(update={"max_minutes": 7.5})})
    assert study.schedule_labels("transfer") == [
        "budget: transfer ends after 7.5 minutes; continued after a kill it is not the same to the bit"
    ]
    assert study.schedule_labels("distill") == load_study("smoke").schedule_labels("distill")
