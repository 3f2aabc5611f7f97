"""The stage `attention`: its maps are those that the models give, and it changes no other job."""

import contextlib
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transfer_models import STUDENT, TEACHER, model

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import Attention, read_record, sealed
from mobilebert.pretraining import objective
from mobilebert.stages import attention, transfer
from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import StudentConfig
from mobilebert.training.plan import TrainingPlan

torch.set_num_threads(1)
INPUTS = {"input_ids": torch.tensor([[2, 7, 9, 3, 5, 3]]), "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1]])}
TOKENS = ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
CONTROL = "control-shuffled-teacher"


@pytest.fixture(scope="module")
def study():
    scale = {"width_divisor": 8, "layer_divisor": 12, "residual_init": True}
    return Study.model_validate(
        {
            "schema": 1,
            "description": "d",
            "device": "cpu",
            "data": {"source": "synthetic", "vocab_size": 600},
            "scale": scale,
            "run": {"mobilebert": ["sst2"]},
        }
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory, study):
    """Return a folder with the records and models of all inputs of the job."""
    place, graph = tmp_path_factory.mktemp("results"), build_graph(study)
    for number, key in enumerate(graph["attention/mobilebert"].inputs):
        folder = record_folder(place, study.name, graph[key])
        names = [attention.TEXT] if key == "data" else ["model/config.json", "model/model.safetensors"]
        if key == "data":
            (folder / "corpus").mkdir(parents=True)
            (folder / attention.TEXT).write_bytes(b"")
        else:
            torch.manual_seed(number)
            objective.new_model(graph[key].config["architecture"]).save_pretrained(folder / "model")
        files = {name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(), "bytes": 1} for name in names}
        content = {"schema": 1, "study": study.name, "stage": graph[key].stage, "name": graph[key].name, "status": "ok"}
        content |= {"fingerprint": graph[key].fingerprint, "config": graph[key].config, "inputs": {}, "artefacts": files}
        (folder / "result.json").write_text(json.dumps(sealed(content)))
    return place


@pytest.fixture
def context(results, study):
    graph = build_graph(study)
    found = JobContext(graph["attention/mobilebert"], study.name, results, graph)
    found.folder.mkdir(exist_ok=True, parents=True)
    return found


def direct(model, layer):
    """Return the heads of a layer from a plain forward pass of the whole model."""
    with torch.no_grad():
        return model(**INPUTS, output_attentions=True).attentions[layer - 1][0].numpy()


@pytest.mark.parametrize(("depth", "layers"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (24, [1, 12])])
def test_maps_are_the_attentions_of_a_forward_pass(depth, layers):
    for sizes in (STUDENT, TEACHER):
        one = model(depth, num_hidden_layers=depth, **sizes)
        found = attention.maps(one, INPUTS)
        assert list(found) == layers
        for layer, heads in found.items():
            np.testing.assert_allclose(heads, direct(one, layer), atol=0.00051)
            assert np.shape(heads) == (2, 6, 6)


def test_a_layer_that_is_not_finite_leaves_no_map():
    one = model(1, **STUDENT)
    with torch.no_grad():
        one.mobilebert.encoder.layer[0].attention.self.query.weight.fill_(float("nan"))
    with pytest.raises(attention.Diverged, match="attention is not finite"):
        attention.maps(one, INPUTS)


def test_the_record_holds_teacher_and_students_and_stays_small(context, study, monkeypatch):
    monkeypatch.setattr(attention, "text", lambda context: (INPUTS, TOKENS))
    assert attention.main(context, study) is None
    context.write()
    found = read_record(context.folder / "result.json").attention
    assert [(item.model, item.weights) for item in found.maps] == [
        ("ib-bert-large", "pretrain"),
        ("mobilebert", "initial"),
        ("mobilebert", "transfer"),
        ("mobilebert", "distill"),
    ]
    keys = context.job.inputs[1:]
    for key, item in zip(keys, (item for item in found.maps if item.weights != "initial"), strict=True):
        one = objective.load_model(record_folder(context.results, study.name, context.graph[key]) / "model",
                                   context.graph[key].config["architecture"]).eval()  # fmt: skip
        assert list(item.layers) == [1, 2]
        for layer, heads in item.layers.items():
            np.testing.assert_allclose(heads, direct(one, layer), atol=0.00051)
    assert context.metrics == {}


def test_the_largest_record_has_less_than_200_kb(context):
    size = attention.TOKENS
    heads = np.full((attention.HEADS, size, size), 0.123).tolist()
    maps = [{"model": CONTROL, "weights": "transfer", "layers": {1: heads, 12: heads}}] * 4
    context.attention = Attention.model_validate({"tokens": ["[MASK]"] * size, "maps": maps})
    context.write()
    assert (context.folder / "result.json").stat().st_size < 200_000


@pytest.mark.parametrize("row", ["mobilebert", CONTROL])
def test_initial_weights_are_those_with_which_the_transfer_begins(context, study, monkeypatch, row):
    job = JobContext(context.graph[f"transfer/{row}"], study.name, context.results, context.graph)
    begun = []

    def train_together(context, others, prepare, device):
        begun.append(prepare(context, None)[0])
        return begun[0]

    for name, value in {
        "corpus_of": lambda context: None,
        "make_optimizer": lambda *given, **named: None,
        "make_plan": lambda *given: TrainingPlan(
            steps=1, batch=lambda step: {}, loss=lambda batch, step: {}, rate=lambda step: 1.0, seed=0
        ),
        "jobs_sharing_teacher": lambda *given: contextlib.nullcontext(()),
        "train_together": train_together,
        "heldout_loss": lambda *given: 0.0,
    }.items():
        monkeypatch.setattr(transfer, name, value)
    monkeypatch.setattr(transfer.Transfer, "prepare", lambda *given: None)
    monkeypatch.setattr(objective, "save_model", lambda *given: None)
    transfer.main(job, study)
    mine = attention.initial(job.settings(StudentConfig), objective.input_model(job, "pretrain/ib-bert-large")).state_dict()
    theirs = begun[0].state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_text_is_a_heldout_pair_without_masks_and_without_padding(context, monkeypatch):
    batch = {"input_ids": torch.tensor([[2, 4, 9, 3, 4, 3, 0, 0]]), "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0]])}
    batch |= {"masked_positions": torch.tensor([1, 4]), "masked_labels": torch.tensor([7, 5])}
    batch |= {"attention_mask": torch.tensor([[1] * 6 + [0] * 2])}
    asked = []
    monkeypatch.setattr(objective, "batches", lambda *given, **named: asked.append((given, named)) or (lambda step: batch))
    monkeypatch.setattr(attention, "load_tokenizer", lambda folder: SimpleNamespace(id_to_token="w{}".format))
    inputs, tokens = attention.text(context)
    assert {name: value.tolist() for name, value in inputs.items()} == {name: value.tolist() for name, value in INPUTS.items()}
    assert tokens == ["w2", "w7", "w9", "w3", "w5", "w3"]
    assert asked[0][0][1:] == ("heldout", attention.TOKENS, 1)


@pytest.mark.parametrize(("key", "file"), [("data", attention.TEXT), ("distill/mobilebert", "model/model.safetensors")])
def test_records_copied_without_their_files_leave_it_void(context, study, key, file):
    path = record_folder(context.results, study.name, context.graph[key]) / file
    path.rename(path.with_name("gone"))
    outcome = attention.main(context, study)
    path.with_name("gone").rename(path)
    assert outcome == f"{file} of {key} is not on this machine"
    assert context.attention is None


def test_a_run_makes_the_maps_of_one_student_and_no_job_waits_for_them(study):
    for name, wanted in {"smoke": "mobilebert", "small-tasks": "mobilebert-tiny", "released": None}.items():
        opened = load_study(name)
        graph = build_graph(opened)
        found = [key for key in jobs_in_scope(opened, graph) if key.startswith("attention/")]
        assert found == ([f"attention/{wanted}"] if wanted else [])  # the student of `released` is a published checkpoint
        assert not [job.id for job in graph.values() if any(key.startswith("attention") for key in job.inputs)]
