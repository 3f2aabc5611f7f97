"""A Hugging Face folder of any architecture as a study's baseline row: loaded, tuned, scored."""

import hashlib
import json
import shutil

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from mobilebert.cli.main import main
from mobilebert.data.tokenizer import SPECIAL_TOKENS
from mobilebert.finetuning.task import forward_of, inputs_of, new_model
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.execute import execute_job
from mobilebert.modeling.weight_files import float_types, read_tensors
from mobilebert.pretraining import objective
from mobilebert.pretraining.common import check_vocabulary
from mobilebert.reporting.plan import plan
from mobilebert.stages import checkpoint
from mobilebert.stages.checkpoint import load_baseline
from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.job import Job
from mobilebert.study.load import load_study
from mobilebert.study.sections import Checkpoint
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

VOCABULARY = 600
TASKS = (None, "sst2", "squad_v1.1")  # None means the pre-training model


def distilbert(folder, **fields):
    sizes = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 2, "max_position_embeddings": 80}
    torch.manual_seed(0)
    transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**sizes | fields)).save_pretrained(folder)
    return folder


def study(tmp_path, folder, **changes):
    file = tmp_path / "mine.yaml"
    content = {
        "schema": 1,
        "description": "a baseline",
        "device": "cpu",
        "data": {"source": "synthetic", "vocab_size": VOCABULARY, "documents": 100},
        "scale": {"width_divisor": 8, "layer_divisor": 12, "max_position_embeddings": 80},
        "pretrain": {"length": 32},
        "search": {"length": 32},
        "transfer": {"length": 32},
        "distill": {"length": 32},
        "finetune": {
            "search": "none",
            "seeds": [0],
            "epochs": 1,
            "length": 48,
            "train_rows": 32,
            "eval_rows": 32,
            "doc_stride": 32,
            "max_query_length": 16,
            "tasks": {"squad_v1.1": {"length": 80}, "squad_v2.0": {"length": 80}},
        },
        "latency": {"length": 32},
        "checkpoints": {"distilbert": {"source": str(folder), "sha256": file_sha256(folder / "model.safetensors")}},
        "run": {"distilbert": ["sst2", "squad_v1.1"]},
        "quantize": {},
    }
    file.write_text(yaml.safe_dump(content | changes))
    return file


def test_distilbert_from_a_folder_to_its_scores(tmp_path, capsys):
    folder = distilbert(tmp_path / "distilbert")
    file = study(tmp_path, folder)
    for stage in (["data"], ["checkpoint", "distilbert"], ["finetune", "distilbert/sst2"], ["quantize", "distilbert/sst2"]):
        assert main([*stage, "--study", str(file), "--results", str(tmp_path / "results")]) == 0, capsys.readouterr().err
    results = tmp_path / "results" / "mine"
    taken = load_file(results / "checkpoint/distilbert/model/model.safetensors")
    given = load_file(folder / "model.safetensors")
    assert taken.keys() == {key.removeprefix("distilbert.") for key in given if key.startswith("distilbert.")}
    assert all(torch.equal(value, given[f"distilbert.{key}"]) for key, value in taken.items())
    record = json.loads((results / "finetune/distilbert/sst2/result.json").read_text())
    assert record["status"] == "ok"
    assert 0 <= record["metrics"]["accuracy"] <= 1
    assert json.loads((results / "checkpoint/distilbert/result.json").read_text())["weights_dtype"] == {str(folder): "float32"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        shutil.copytree(results / "finetune/distilbert/sst2/model", tmp_path / "x")
    )
    assert tokenizer.model_max_length == 80
    assert tokenizer.vocab_size == VOCABULARY
    tuned = load_file(results / "finetune/distilbert/sst2/model/model.safetensors")
    name = "transformer.layer.0.attention.q_lin.weight"
    assert not torch.equal(tuned[f"distilbert.{name}"], taken[name])
    quantized = json.loads((results / "quantize/distilbert/sst2/result.json").read_text())
    assert quantized["status"] == "ok"
    assert quantized["metrics"]["bytes_after"] < quantized["metrics"]["bytes_before"]
    assert {*quantized["quantization"]["layer_errors"]} == {"0", "1"}


@pytest.mark.parametrize(
    ("kind", "task"), [(kind, task) for kind in ("bert", "mobilebert", "auto") for task in TASKS[kind == "auto" :]]
)
def test_weights_of_half_precision_are_loaded_as_float32(tmp_path, kind, task):
    """transformers would keep the type of the file."""
    if kind == "auto":
        model, architecture = transformers.DistilBertModel.from_pretrained(distilbert(tmp_path)), {"model_type": "auto"}
    else:
        architecture = {"model_type": kind, "vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2}
        architecture |= {"num_hidden_layers": 1, "intermediate_size": 24, "max_position_embeddings": 16}
        architecture |= {"intra_bottleneck_size": 8, "embedding_size": 8} if kind == "mobilebert" else {}
        model = objective.new_model(architecture)
    model.bfloat16().save_pretrained(tmp_path)
    loaded = new_model(task, architecture, tmp_path) if task else objective.load_model(tmp_path, architecture)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    loaded.save_pretrained(tmp_path / "again")
    assert float_types(read_tensors([tmp_path / "again" / "model.safetensors"], "again")) == "float32"
    assert float_types(read_tensors([tmp_path / "model.safetensors"], "model")) == "bfloat16"


def test_a_half_precision_input_is_recorded_and_printed(tmp_path, capsys):
    graph = {"checkpoint/half": Job("checkpoint", "half", {}, (), "a" * 64)}
    made = JobContext(graph["checkpoint/half"], "mine", tmp_path, graph)
    made.folder.mkdir(parents=True)
    made.state.mkdir(parents=True)
    transformers.DistilBertModel.from_pretrained(distilbert(made.folder / "model")).bfloat16().save_pretrained(
        made.folder / "model"
    )
    made.artefacts.append("model/model.safetensors")
    made.write()
    run = JobContext(Job("finetune", "half/sst2", {}, ("checkpoint/half",), "b" * 64), "mine", tmp_path, graph)
    capsys.readouterr()  # drop transformers' progress bars
    assert objective.weights_folder(run, "checkpoint/half") == made.folder / "model"
    assert run.weights_dtype == {"checkpoint/half": "bfloat16"}
    assert capsys.readouterr().err == f"mobilebert: {made.folder}/model: bfloat16 weights are loaded as float32\n"


@pytest.mark.parametrize("task", ["sst2", "squad_v1.1"])
def test_forward_gives_what_transformers_gives(tmp_path, task):
    model = new_model(task, {"model_type": "auto"}, distilbert(tmp_path)).eval()
    batch = {key: torch.ones(2, 9, dtype=torch.long) for key in ("input_ids", "attention_mask", "token_type_ids")}
    assert inputs_of(model, batch).keys() == {"input_ids", "attention_mask"}
    found = forward_of(model, "cpu")({key: value.numpy() for key, value in batch.items()})
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for key, value in found.items():
        assert (torch.from_numpy(value) - expected[key]).abs().max() <= 1e-6
    assert found.keys() == ({"start_logits", "end_logits"} if task == "squad_v1.1" else {"logits"})


def test_the_graph_holds_baselines_beside_the_papers_rows(tmp_path):
    found = load_study(study(tmp_path, distilbert(tmp_path / "distilbert")))
    graph = build_graph(found)
    assert graph["checkpoint/distilbert"].config["architecture"] == {"model_type": "auto", "vocab_size": VOCABULARY}
    assert graph["finetune/distilbert/rte"].inputs == ("data", "checkpoint/distilbert")
    assert {"checkpoint/distilbert", "finetune/distilbert/sst2"} <= set(jobs_in_scope(found, graph))
    assert "finetune/distilbert/sst2" in plan(found, graph, "h100")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {}}, "checkpoints: unknown model 'distilbert'; allowed: "),
        ({"run": {"distilbrt": "all"}}, "checkpoints: unknown model 'distilbert'"),
        ({"run": {"distilbert": ["sst2"], "x": ["sst2"]}}, "run: unknown model 'x'; allowed: "),
        ({"latency": {"length": 32, "models": ["distilbert"]}}, "latency.models: no shape is known of the baseline 'distilbert'"),
    ],
)
def test_unknown_model_names_are_refused(tmp_path, changes, message):
    file = study(tmp_path, distilbert(tmp_path / "distilbert"), **changes)
    with pytest.raises(UserError) as refusal:
        load_study(file)
    assert message in str(refusal.value)


def test_a_name_that_is_a_path_is_refused(tmp_path):
    folder = distilbert(tmp_path / "distilbert")
    weights = {"../x": {"source": str(folder), "sha256": file_sha256(folder / "model.safetensors")}}
    with pytest.raises(UserError, match=r"'\.\./x': a baseline's name has at most"):
        load_study(study(tmp_path, folder, checkpoints=weights, run={"../x": ["sst2"]}))


@pytest.mark.parametrize(
    ("entry", "accepted"),
    [
        ({"source": ""}, False),
        ({"source": " "}, False),
        ({"source": "https://huggingface.co/a/b"}, False),
        ({"source": "file:///folder/model"}, False),
        ({"source": "a/b/c"}, False),
        ({"source": "a/../b"}, False),
        ({"source": "owner/name\n"}, False),
        ({"source": "owner/na me"}, False),
        ({"source": "owner\\name"}, False),
        ({"source": "owner/name"}, True),
        ({"source": "distilbert-base_uncased.v1"}, True),
        ({"source": "owner/name", "revision": "../../x"}, False),
        ({"source": "owner/name", "revision": ""}, False),
        ({"source": "owner/name", "revision": "/x"}, False),
        ({"source": "owner/name", "revision": "refs/pr/1"}, True),
        ({"source": "owner/name", "revision": "v1.0-beta_2"}, True),
        ({"source": "./folder\0", "sha256": "0" * 64}, False),
        ({"source": "../folder", "sha256": "0" * 64}, True),
        ({"source": "~/folder", "sha256": "0" * 64}, True),
    ],
)
def test_a_source_is_a_folder_or_a_hub_name(entry, accepted):
    if accepted:
        assert Checkpoint(**entry).source == entry["source"]
    else:
        with pytest.raises(ValueError, match="is allowed"):
            Checkpoint(**entry)


def test_a_vocabulary_of_another_size_is_refused(tmp_path, capsys):
    file = study(tmp_path, distilbert(tmp_path / "distilbert", vocab_size=599))
    assert main(["checkpoint", "distilbert", "--study", str(file), "--results", str(tmp_path / "results")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mobilebert: checkpoints.distilbert: ")
    assert line.endswith("has vocab_size 599, the row needs 600")


def brought(folder, tokens, name):
    """Write a vocabulary beside the weights, in one of the two forms that the hub has."""
    if name == "vocab.txt":
        (folder / name).write_text("\r\n".join(tokens))
    elif name:
        ids = {token: index for index, token in reversed([*enumerate(tokens)])}
        (folder / name).write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids}}))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", None])
def test_a_checkpoint_with_another_vocabulary_than_the_datas_is_refused(tmp_path, name):
    """The number of tokens and the size of the table are equal: only the tokens differ."""
    folder, tokens = distilbert(tmp_path / "distilbert"), [f"token{number}" for number in range(VOCABULARY)]
    loaded = load_study(study(tmp_path, folder))
    graph = build_graph(loaded)
    key, results = "checkpoint/distilbert", tmp_path / "results"

    def data(tokens):
        def stage(run):
            run.details["vocab"] = hashlib.sha256("".join(f"{token}\n" for token in tokens).encode()).hexdigest()
            run.metrics["vocab_size"] = len(tokens)

        (results / "mine/data/result.json").unlink(missing_ok=True)
        execute_job(graph["data"], loaded.name, results, graph, stage)

    brought(folder, tokens, name)
    execute_job(graph[key], loaded.name, results, graph, lambda context: checkpoint.main(context, loaded))
    tuned = JobContext(graph["finetune/distilbert/sst2"], loaded.name, results, graph)
    data(tokens)
    check_vocabulary(tuned)
    data([*tokens[1:], tokens[0]])
    if name:
        with pytest.raises(UserError, match=rf"^{key}: its vocabulary \(600 entries, .*\) is not the data's \(600 entries"):
            check_vocabulary(tuned)
    else:  # only the sizes are known
        check_vocabulary(tuned)
        data([*tokens, "more"])
        with pytest.raises(UserError, match=f"^{key}: the tokenizer has 601 entries, the model 600$"):
            check_vocabulary(tuned)


def taken(folder, tmp_path):
    """Run the stage `checkpoint` on a folder; return its exit code and its result folder."""
    command = ["checkpoint", "distilbert", "--study", str(study(tmp_path, folder)), "--results", str(tmp_path / "results")]
    return main(command), tmp_path / "results/mine/checkpoint/distilbert"


def test_a_checkpoint_in_half_precision_is_taken_as_float32_and_recorded(tmp_path, capsys):
    folder = distilbert(tmp_path / "distilbert")
    transformers.DistilBertModel.from_pretrained(folder).half().save_pretrained(folder)
    tokens = [*SPECIAL_TOKENS, *(f"token{number}" for number in range(VOCABULARY - 5))]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    code, made = taken(folder, tmp_path)
    assert code == 0
    assert f"mobilebert: {folder}: float16 weights are loaded as float32\n" in capsys.readouterr().err
    record = json.loads((made / "result.json").read_text())
    assert record["weights_dtype"] == {str(folder): "float16"}
    half = load_file(folder / "model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.float16}
    alone = shutil.copytree(made / "model", tmp_path / "alone")
    assert all(torch.equal(value, half[key].float()) for key, value in load_file(alone / "model.safetensors").items())
    assert json.loads((alone / "config.json").read_text())["dtype"] == "float32"
    tokenizer = transformers.AutoTokenizer.from_pretrained(alone)
    assert tokenizer.model_max_length == 80
    assert tokenizer("token3 token7")["input_ids"] == [2, 8, 12, 3]
    files = {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()} - {"result.json"}
    assert record["artefacts"].keys() == files


def test_files_that_the_stage_cannot_take_are_refused_in_one_line(tmp_path, capsys):
    folder = distilbert(tmp_path / "distilbert")
    shard = shutil.copytree(folder, tmp_path / "shards")
    transformers.DistilBertModel.from_pretrained(folder).save_pretrained(shard, max_shard_size="10KB")
    (shard / "model.safetensors").unlink()

    def line(source):
        file = study(tmp_path, folder, checkpoints={"distilbert": {"source": str(source), "sha256": file_sha256(weights)}})
        assert main(["checkpoint", "distilbert", "--study", str(file), "--results", str(tmp_path / "results")]) == 2
        assert not (tmp_path / "results/mine/checkpoint/distilbert/model").exists()
        return capsys.readouterr().err.splitlines()[-1]

    weights = folder / "model.safetensors"
    assert "model.safetensors.index.json is there: a study pins one file" in line(shard)
    (folder / "vocab.txt").write_text("\n".join(f"token{number}" for number in range(VOCABULARY + 1)))
    assert "its tokenizer has 601 tokens, its model 600" in line(folder)
    (folder / "vocab.txt").write_bytes(b"\xff")
    assert "vocab.txt is not UTF-8" in line(folder)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text("[")
    assert "tokenizer.json is not JSON" in line(folder)
    for content in (b"", weights.read_bytes()[:-1]):
        weights.write_bytes(content)
        assert "checkpoints.distilbert: " in line(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    file = distilbert(tmp_path) / "model.safetensors"
    whole = load_file(file)
    name = "distilbert.transformer.layer.1.ffn.lin1.weight"
    for changed in (
        {key: value for key, value in whole.items() if key != name},
        {**whole, name: whole[name][:, :3].clone()},
        {**whole, name: torch.full_like(whole[name], float("nan"))},
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(UserError, match=r"transformer\.layer\.1\.ffn\.lin1\.weight"):
            load_baseline(str(tmp_path), "main")
    save_file(whole, file, {"format": "pt"})
    assert isinstance(load_baseline(str(tmp_path), "main"), transformers.DistilBertModel)
