"""The typed view of a job's configuration has every key and refuses a wrong one early."""

import pytest

from mobilebert.study.graph import build_graph
from mobilebert.study.job import Graph, Job
from mobilebert.study.load import load_study, studies
from mobilebert.study.stage_config import (
    CONFIGS,
    DataConfig,
    DistillConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    StageConfig,
    TrainingConfig,
    TransferConfig,
    stage_config,
)

GRAPH = build_graph(load_study("smoke"))
EXAMPLES = {job.stage: job for job in GRAPH.values()}


@pytest.mark.parametrize("name", sorted(studies()))
def test_the_typed_view_holds_what_the_fingerprint_covers(name):
    for job in build_graph(load_study(name)).values():
        assert job.settings(StageConfig).model_dump(mode="json", exclude_unset=True) == job.config, job.id


def test_every_stage_that_makes_something_has_a_class():
    assert {job.stage for job in GRAPH.values()} | {"checkpoint"} == set(CONFIGS)


@pytest.mark.parametrize("stage", sorted(EXAMPLES))
def test_a_key_too_many_or_too_few_stops_the_graph_and_is_named(stage):
    config, graph = EXAMPLES[stage].config, Graph()
    for key in config:
        less = {name: value for name, value in config.items() if name != key}
        for wrong in (less, {**less, f"{key}x": config[key]}):
            with pytest.raises(ValueError, match=rf"^{stage}/toy: {key}x?: ") as error:
                graph.add(stage, "toy", wrong)
            assert "\n" not in str(error.value)
    assert not graph
    assert graph.add(stage, "toy", config) == f"{stage}/toy"


def test_a_wrong_value_behind_a_right_job_of_the_same_stage_stops_the_graph():
    trained, joint = (GRAPH[key].config for key in ("pretrain/bert-base", "distill/mobilebert-akt"))
    cases = [
        ("pretrain", trained, {"steps": -3}, "steps"),
        ("distill", joint, {"transfer": {**joint["transfer"], "losses": ["fmt", "mistake"]}}, "transfer.losses.1"),
    ]
    graph = Graph()
    for stage, right, wrong, key in cases:
        graph.add(stage, "right", right)
        with pytest.raises(ValueError, match=rf"^{stage}/wrong: {key}: "):
            graph.add(stage, "wrong", {**right, **wrong})
    assert list(graph) == ["pretrain/right", "distill/right"]


def test_keys_go_with_the_task_the_search_and_dropout():
    tuned, graph = EXAMPLES["finetune"].config, Graph()
    span = next(job.config for job in GRAPH.values() if job.stage == "finetune" and "squad" in job.name)
    trained = GRAPH["pretrain/bert-base"].config
    cases = [
        ("finetune", {**span, "task": "sst2"}, "doc_stride: not allowed here"),
        ("finetune", {**tuned, "task": "sst2", "search": "paper"}, "batch_size: not allowed here"),
        ("pretrain", {**trained, "dropout": not trained["dropout"]}, "accumulate: "),
        ("checkpoint", {"architecture": {}}, "source: missing"),
        ("checkpoint", {"architecture": {}, "sha256": "a", "source": "b"}, "source: not allowed here"),
    ]
    for stage, config, line in cases:
        with pytest.raises(ValueError, match=line):
            graph.add(stage, "toy", config)


def test_a_value_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"^steps: Input should be a valid integer$"):
        stage_config("pretrain", {**EXAMPLES["pretrain"].config, "steps": "many"})


def test_settings_are_made_once_and_are_of_the_class_that_is_asked_for():
    job = GRAPH["distill/mobilebert"]
    assert job.settings(DistillConfig) is job.settings(TrainingConfig) is job.settings(ModelConfig)
    with pytest.raises(TypeError, match=r"^distill/mobilebert: its configuration is a DistillConfig, not a PretrainConfig$"):
        job.settings(PretrainConfig)
    with pytest.raises(ValueError, match="Field required"):
        Job("data", "", {}, (), "").settings(DataConfig)


def test_layerwise_settings_beside_distillation_are_those_of_the_transfer():
    joint, alone = (GRAPH[key] for key in ("distill/mobilebert-akt", "transfer/mobilebert"))
    found, wanted = joint.settings(DistillConfig).layerwise, alone.settings(TransferConfig)
    assert (found.strategy, found.losses, found.factors) == ("akt", wanted.losses, wanted.factors)
    assert (found.recipe, found.steps, found.lower_layers) == (wanted.recipe, wanted.steps, wanted.lower_layers)
    assert GRAPH["distill/mobilebert"].settings(DistillConfig).layerwise is None


def test_the_baseline_is_not_searched():
    setting = build_graph(load_study("paper"))["finetune/bag-of-embeddings/sst2"].settings(FinetuneConfig)
    assert setting.search == "none"
    assert setting.learning_rate == 1e-3
