"""Fingerprints: changes that make a result stale, and changes that do not."""

import pytest
from pydantic import ValidationError

from mobilebert import paper
from mobilebert.modeling.presets import preset
from mobilebert.study.graph import add_views, build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.recipe import TASK_NAMES
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError


def changed(study, other):
    before, after = build_graph(study), build_graph(other)
    assert list(before) == list(after)
    return {key for key in before if before[key].fingerprint != after[key].fingerprint}


def with_task(study, task, **values):
    tasks = {**study.finetune.tasks, task: study.finetune.tasks.get(task, type(study.finetune.tasks["squad_v1.1"])())}
    tasks[task] = tasks[task].model_copy(update=values)
    return study.model_copy(update={"finetune": study.finetune.model_copy(update={"tasks": tasks})})


def test_one_tasks_rate_makes_only_that_task_stale():
    study = load_study("smoke")
    keys = changed(study, with_task(study, "mrpc", learning_rate=3e-4))
    assert keys
    assert all(key.endswith("/mrpc") and key.split("/")[0] in ("finetune", "quantize") for key in keys)


def test_a_changed_record_makes_the_views_stale():
    study = load_study("smoke")
    before, after = (add_views(item, build_graph(item)) for item in (study, with_task(study, "mrpc", learning_rate=3e-4)))
    scope = jobs_in_scope(study, before)
    stale = {key for key in [*scope, "report", "track", "check"] if before[key].fingerprint != after[key].fingerprint}
    assert stale == {"finetune/mobilebert/mrpc", "report", "track", "check"}


def test_a_changed_teacher_makes_only_its_students_stale():
    study = load_study("smoke")
    keys = changed(study, study.model_copy(update={"pretrain": study.pretrain.model_copy(update={"learning_rate": 1e-4})}))
    assert {"pretrain/ib-bert-large", "transfer/mobilebert", "distill/mobilebert-pd", "finetune/mobilebert/sst2"} <= keys
    assert not keys & {"data", "latency", "pretrain/search-a", "finetune/bag-of-embeddings/sst2"}


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "another"},
        {"run": {}, "expect": ()},
    ],
)
def test_description_run_and_expect_make_nothing_stale(changes):
    study = load_study("smoke")
    assert changed(study, study.model_copy(update=changes)) == set()


def test_other_data_or_weights_make_all_that_uses_them_stale():
    study = load_study("cpu")
    other = study.model_copy(update={"data": study.data.model_copy(update={"sums": "0" * 64})})
    assert {"data", "pretrain/ib-bert-large", "finetune/mobilebert/sst2"} <= changed(study, other)
    study = load_study("released")
    weights = {**study.checkpoints, "mobilebert": study.checkpoints["mobilebert"].model_copy(update={"revision": "abc"})}
    keys = changed(study, study.model_copy(update={"checkpoints": weights}))
    assert {"checkpoint/mobilebert", "finetune/mobilebert/sst2"} <= keys
    assert "finetune/bert-base/sst2" not in keys


def test_a_local_checkpoint_is_identified_by_its_weights_not_its_path():
    study = load_study("released")

    def at(path, sha256):
        weights = study.checkpoints["mobilebert"].model_copy(update={"source": path, "sha256": sha256})
        return study.model_copy(update={"checkpoints": {**study.checkpoints, "mobilebert": weights}})

    assert changed(at("/a", "0" * 64), at("/b", "0" * 64)) == set()
    assert "checkpoint/mobilebert" in changed(at("/a", "0" * 64), at("/a", "1" * 64))


def test_an_expectation_on_no_record_is_refused():
    study = load_study("smoke")
    item = study.expect[0].model_copy(update={"metric": "finetune/mobilebirt/sst2:accuracy"})
    study = study.model_copy(update={"expect": (item,)})
    with pytest.raises(UserError, match="names no record of this study"):
        add_views(study, build_graph(study))


def test_a_transfer_too_short_for_its_layers_is_refused():
    study = load_study("smoke")
    study = study.model_copy(update={"transfer": study.transfer.model_copy(update={"steps": 1})})
    with pytest.raises(UserError, match=r"transfer\.steps: 1 is less than one for each of 2 layers"):
        build_graph(study)


@pytest.mark.parametrize(
    ("divisor", "wanted"),
    [
        (64, "scale: no model mobilebert-bare at this scale: num_attention_heads: 4 does not divide intra_bottleneck_size"),
        (3, r"scale\.width_divisor: 3 does not divide hidden_size 512 of"),
    ],
)
def test_a_scale_that_leaves_no_model_is_refused_before_any_work(divisor, wanted):
    """It is found before the corpus is prepared, not when the model is built."""
    study = load_study("smoke")
    study = study.model_copy(update={"scale": study.scale.model_copy(update={"width_divisor": divisor})})
    with pytest.raises(UserError, match=wanted):
        build_graph(study)


def test_a_changed_published_cell_makes_report_and_check_stale(monkeypatch):
    study = load_study("smoke")
    before = add_views(study, build_graph(study))
    table = paper.table(8)
    tables = [item if item.number != 8 else table.model_copy(update={"title": "another"}) for item in paper.tables()]
    monkeypatch.setattr(paper, "tables", lambda: tables)
    after = add_views(study, build_graph(study))
    assert {key for key in before if before[key].fingerprint != after[key].fingerprint} == {"report", "check"}


def test_paths_and_checkpoint_intervals_make_nothing_stale():
    study = load_study("cpu")
    data = study.data.model_copy(update={"source": "local:/somewhere/else"})
    pretrain = study.pretrain.model_copy(update={"checkpoint_every": 7})
    assert changed(study, study.model_copy(update={"data": data, "pretrain": pretrain})) == set()


def test_compile_and_graph_make_nothing_stale_but_a_time_limit_does():
    study = load_study("smoke")

    def touched(**changes):
        return changed(study, study.model_copy(update={"pretrain": study.pretrain.model_copy(update=changes)}))

    assert touched(compile=True, graph=True) == set()
    assert "pretrain/ib-bert-large" in touched(accumulate=4)  # its dropout is drawn for each micro-batch
    assert "pretrain/mobilebert-bare" not in touched(accumulate=4)  # it has no dropout
    distill = study.distill.model_copy(update={"accumulate": 4})
    assert "distill/mobilebert" not in changed(study, study.model_copy(update={"distill": distill}))
    assert "pretrain/ib-bert-large" in touched(max_minutes=1.0)


def test_a_study_may_pre_train_the_teacher_without_dropout():
    study = load_study("smoke")
    without = study.model_copy(update={"pretrain": study.pretrain.model_copy(update={"dropout": False})})
    before, after = (build_graph(item)["pretrain/ib-bert-large"].config for item in (study, without))
    assert before["dropout"] is True
    assert after["dropout"] is False
    assert "accumulate" not in after
    assert {key for key in before if before[key] != after.get(key)} == {"dropout", "accumulate"}
    keys = changed(study, without)
    assert "pretrain/ib-bert-large" in keys
    assert not keys & {"pretrain/mobilebert-bare", "pretrain/scratch", "pretrain/search-a", "data"}


def test_a_result_with_another_vocabulary_is_labelled():
    def labels(study, size):
        return study.model_copy(update={"data": study.data.model_copy(update={"vocab_size": size})}).labels("pretrain")

    paper_study = load_study("paper")
    assert labels(paper_study, None) == labels(paper_study, 30_522) == []
    assert labels(paper_study, 8192) == ["scaled: a vocabulary of 8,192"]
    assert labels(load_study("smoke"), 300) == load_study("smoke").labels("pretrain"), "it is generated anyway"


def test_akt_gets_the_minutes_of_both_stages():
    study = load_study("smoke")
    sections = {name: getattr(study, name).model_copy(update={"max_minutes": 2.0}) for name in ("transfer", "distill")}
    graph = build_graph(study.model_copy(update=sections))
    assert graph["distill/mobilebert-akt"].config["max_minutes"] == 4.0
    assert graph["distill/mobilebert"].config["max_minutes"] == 2.0
    assert build_graph(study)["distill/mobilebert-akt"].config["max_minutes"] is None


def test_inputs_come_before_their_users():
    for name in ("smoke", "released", "paper"):
        graph = add_views(load_study(name), build_graph(load_study(name)))
        seen = set()
        for key, job in graph.items():
            assert set(job.inputs) <= seen
            seen.add(key)


def test_smoke_imports_torch_at_most_45_times():
    study = load_study("smoke")
    heavy = ("pretrain", "transfer", "distill", "finetune", "quantize", "latency")
    assert sum(key.split("/")[0] in heavy for key in jobs_in_scope(study, build_graph(study))) <= 45


def test_smoke_runs_the_spine_and_every_strategy():
    scope = jobs_in_scope(load_study("smoke"), build_graph(load_study("smoke")))
    assert {f"finetune/mobilebert/{task}" for task in TASK_NAMES} <= set(scope)
    wanted = {"mobilebert-akt", "mobilebert-jkt", "mobilebert-bare", "mobilebert-pd", "mobilebert-pd-fmt", "mobilebert-no-opt"}
    assert {f"finetune/{model}/sst2" for model in wanted | {"bert-base", "bag-of-embeddings"}} <= set(scope)


def test_akt_gets_the_steps_of_both_stages():
    study = load_study("paper")
    graph = build_graph(study)
    assert graph["distill/mobilebert-akt"].config["steps"] == 740_000
    assert graph["distill/mobilebert"].config["steps"] == 500_000
    assert graph["transfer/mobilebert"].config["steps"] == graph["transfer/mobilebert-jkt"].config["steps"] == 240_000
    assert "transfer/mobilebert-akt" not in graph


def with_rows(monkeypatch, **rows):
    """Replace some rows of the paper's models."""
    models = paper.models()
    changed = {name: models[name].model_copy(update=fields) for name, fields in rows.items()}
    monkeypatch.setattr(paper, "models", lambda: models | changed)


@pytest.mark.parametrize(
    ("field", "mine", "theirs"),
    [
        ("num_hidden_layers", 6, 24),
        ("hidden_size", 256, 512),
        ("num_attention_heads", 8, 4),
        ("vocab_size", 28996, 30522),
    ],
)
def test_a_student_that_cannot_be_compared_with_its_teacher_is_refused_before_any_work(monkeypatch, field, mine, theirs):
    with_rows(monkeypatch, mobilebert={"overrides": {field: mine}})
    with pytest.raises(UserError) as caught:
        build_graph(load_study("paper"))
    expected = f"{field}: the student has {mine}, the teacher {theirs}; knowledge transfer needs them equal"
    assert str(caught.value) == f"paper: mobilebert, taught by ib-bert-large: {expected}"


def test_a_student_of_logits_alone_needs_only_the_vocabulary(monkeypatch):
    with_rows(monkeypatch, **{"mobilebert-pd": {"overrides": {"num_hidden_layers": 6, "num_attention_heads": 8}}})
    build_graph(load_study("paper"))
    with_rows(monkeypatch, **{"mobilebert-pd": {"overrides": {"vocab_size": 28996}}})
    with pytest.raises(UserError, match="mobilebert-pd, taught by ib-bert-large: vocab_size"):
        build_graph(load_study("paper"))


def test_features_alone_may_differ_in_heads(monkeypatch):
    with_rows(monkeypatch, **{"mobilebert-pd-fmt": {"overrides": {"num_attention_heads": 8}}})
    build_graph(load_study("paper"))


def test_every_strategy_gets_the_same_extra_steps():
    for name in ("paper", "smoke", "gpu"):
        study = load_study(name)
        graph = build_graph(study)
        total = {
            model: sum(
                graph[f"{stage}/{model}"].config["steps"] for stage in ("transfer", "distill") if f"{stage}/{model}" in graph
            )
            for model in ("mobilebert", "mobilebert-akt", "mobilebert-jkt")
        }
        assert set(total.values()) == {study.transfer.steps + study.distill.steps}


def test_a_model_from_scratch_gets_its_students_steps_settings_and_seeds():
    study = load_study("learning")
    graph = build_graph(study)
    for seed, suffix in enumerate(("", "-seed-1", "-seed-2")):
        student, scratch = graph[f"distill/mobilebert{suffix}"], graph[f"pretrain/scratch{suffix}"]
        assert scratch.config["steps"] == student.config["steps"] + graph[f"transfer/mobilebert{suffix}"].config["steps"]
        assert scratch.config["seed"] == student.config["seed"] == graph[f"transfer/mobilebert{suffix}"].config["seed"] == seed
        for key in ("architecture", "batch_size", "length", "learning_rate", "optimizer", "beta2", "warmup_steps"):
            assert scratch.config[key] == student.config[key], key
        assert scratch.config["dropout"] is False  # the student has none either
        assert student.inputs[:2] == ("data", "pretrain/ib-bert-large")
        assert scratch.inputs == ("data",)
        compute = graph[f"pretrain/scratch-compute{suffix}"].config
        assert {**compute, "steps": 0} == {**scratch.config, "steps": 0}
        assert compute["steps"] > scratch.config["steps"]


def test_a_student_of_logits_alone_may_have_the_steps_of_one_with_a_transfer():
    for name in ("paper", "learning"):
        study = load_study(name)
        graph = build_graph(study)
        like, other = graph["distill/mobilebert"].config, graph["distill/student-pd"].config
        assert other["steps"] == study.transfer.steps + study.distill.steps
        changes = {key for key in like if like[key] != other[key]}
        assert changes == {"steps", "strategy"}
        assert graph["distill/student-pd"].inputs == ("data", "pretrain/ib-bert-large")
        assert graph["distill/student-pd-fmt"].config == like


def test_an_untrained_model_is_that_from_scratch_after_one_step():
    graph = build_graph(load_study("learning"))
    assert graph["pretrain/untrained"].config == {**graph["pretrain/scratch"].config, "steps": 1}


def with_seeds(name, seeds, run):
    study = load_study(name)
    return Study.model_validate(
        {**study.model_dump(by_alias=True, mode="json"), "seeds": seeds, "run": run, "quantize": {}, "expect": []}
    )


def test_a_row_with_seeds_runs_each_of_them_on_its_tasks():
    study = with_seeds("smoke", {"mobilebert": 3}, {"mobilebert": ["sst2"], "scratch": []})
    scope = jobs_in_scope(study, graph := build_graph(study))
    assert [key for key in scope if key.startswith("finetune/")] == [
        f"finetune/{name}/sst2" for name in ("mobilebert", "mobilebert-seed-1", "mobilebert-seed-2")
    ]
    assert [graph[f"distill/mobilebert{suffix}"].config["seed"] for suffix in ("", "-seed-1", "-seed-2")] == [0, 1, 2]
    assert "pretrain/scratch" in scope
    assert "pretrain/scratch-seed-1" not in graph
    assert {key for key in scope if key.startswith("pretrain/")} == {"pretrain/ib-bert-large", "pretrain/scratch"}


def test_a_seed_named_in_run_is_the_same_job_as_one_of_seeds():
    names = ("mobilebert", "mobilebert-seed-1", "mobilebert-seed-2")
    by_key = with_seeds("smoke", {"mobilebert": 3}, {"mobilebert": []})
    by_name = with_seeds("smoke", {}, {name: [] for name in names})
    one, other = build_graph(by_key), build_graph(by_name)
    assert jobs_in_scope(by_key, one) == jobs_in_scope(by_name, other)
    assert {key: job.fingerprint for key, job in one.items()} == {key: job.fingerprint for key, job in other.items()}


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ({"mobilebrt": 3}, "seeds: 'mobilebrt' is no row that this study pre-trains"),
        ({"bag-of-embeddings": 3}, "seeds: 'bag-of-embeddings' is no row"),
        ({"mobilebert-seed-1": 3}, "seeds: 'mobilebert-seed-1' is no row"),
        ({"mobilebert": 0}, "greater than or equal to 1"),
    ],
)
def test_seeds_of_what_is_not_pre_trained_are_refused(seeds, message):
    with pytest.raises(ValidationError, match=message):
        with_seeds("smoke", seeds, {"mobilebert": []})


def test_a_published_checkpoint_takes_the_place_of_pre_training():
    graph = build_graph(load_study("released"))
    assert graph["finetune/mobilebert/sst2"].inputs == ("data", "checkpoint/mobilebert")
    assert not any(key in graph for key in ("distill/mobilebert", "transfer/mobilebert"))


def test_a_preset_that_is_no_row_is_timed_and_nothing_else():
    study = Study.model_validate({"schema": 1, "description": "d", "latency": {"models": ["distilbert", "mobilebert"]}})
    graph = build_graph(study)
    assert graph["latency"].config["architectures"]["distilbert"] == preset("distilbert")
    assert [key for key in graph if "distilbert" in key] == []
