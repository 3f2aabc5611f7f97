"""`mobilebert evaluate` and `predict` of any checkpoint or int8 file, against single rows."""

import json
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from mobilebert.cli.main import main
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import quantize_int8
from mobilebert.modeling import MobileBertConfig, MobileBertForPreTraining, MobileBertModel, tasks
from mobilebert.study.tasks import TASKS

WORDS = ["red", "green", "blue", "cat", "dog", "mat", "sat", "on", "who", "?", "."]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SMALL = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,  # so that rows differ in their classes
}
MOBILEBERT = SMALL | {"embedding_size": 16, "intra_bottleneck_size": 16}
ROWS = 30
DRAW = np.random.default_rng(2)


def sentences(count, longest=12):
    return [" ".join(DRAW.choice(WORDS, DRAW.integers(1, longest))) for _ in range(count)]


def table(name):
    task = TASKS[name]
    if task.is_squad:
        rows = []
        for row in range(ROWS):
            words = DRAW.choice(WORDS, DRAW.integers(10, 80)).tolist()
            start, answer = len(" ".join(words[:4])) + 1, words[4]
            answers = {"text": [answer], "answer_start": [start]}
            if name == "squad_v2.0" and row % 3 == 0:
                answers = {"text": [], "answer_start": []}
            rows.append({"id": f"q{row}", "title": "t", "context": " ".join(words), "question": "who ?", "answers": answers})
        return pd.DataFrame(rows)
    labels = DRAW.integers(0, 26, ROWS) / 5 if task.is_regression else DRAW.integers(0, task.num_labels, ROWS)
    return pd.DataFrame(
        {column: sentences(ROWS) for column in task.text_columns} | {"label": labels, "idx": range(50, 50 + ROWS)}
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("sst2", "mnli", "stsb", "squad_v1.1", "squad_v2.0"):
        task = TASKS[name]
        for split in ("validation", "validation_mismatched"):
            if split in task.splits:
                path = folder / task.folder / f"{task.splits[split]}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                table(name).to_parquet(path)
    return folder


def add_tokenizer(folder):
    BertWordPieceTokenizer({token: code for code, token in enumerate(VOCABULARY)}, lowercase=True).save(
        str(folder / "tokenizer.json")
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return name -> a folder in Hugging Face layout."""
    root, found = tmp_path_factory.mktemp("models"), {}

    def keep(name, model):
        found[name] = root / name
        if hasattr(model, "classifier"):  # the median output is 0, so that no class is always the largest
            with torch.no_grad():
                ids = torch.from_numpy(DRAW.integers(5, len(VOCABULARY), (50, 8)))
                model.classifier.bias -= model.eval()(input_ids=ids).logits.median(0).values
        model.save_pretrained(found[name])
        add_tokenizer(found[name])

    torch.manual_seed(4)
    for labels in (1, 2, 3):
        config = MobileBertConfig(**MOBILEBERT, num_labels=labels)
        keep(f"mobilebert-{labels}", tasks.MobileBertForSequenceClassification(config))
    keep("mobilebert-qa", tasks.MobileBertForQuestionAnswering(MobileBertConfig(**MOBILEBERT)))
    keep("pretrained", MobileBertForPreTraining(MobileBertConfig(**MOBILEBERT)))
    keep("encoder", MobileBertModel(MobileBertConfig(**MOBILEBERT)))
    keep("bert", BertForSequenceClassification(BertConfig(**SMALL)))
    small = {"vocab_size": len(VOCABULARY), "dim": 32, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "initializer_range": 0.2}
    keep("distilbert", DistilBertForSequenceClassification(DistilBertConfig(**small, max_position_embeddings=96)))
    return found


def run(capsys, *arguments):
    assert main([*map(str, arguments), "--threads", "1"]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main([*map(str, arguments), "--threads", "1"]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = [text for text in found.err.splitlines() if text.startswith("mobilebert:")]
    assert "Traceback" not in found.err
    return line


def loaded(folder, name):
    kinds = {"bert": BertForSequenceClassification, "distilbert": DistilBertForSequenceClassification}
    kinds["mobilebert-qa"] = tasks.MobileBertForQuestionAnswering
    return kinds.get(name, tasks.MobileBertForSequenceClassification).from_pretrained(folder).eval()


def logits_of(folder, name, frame, columns):
    """Return logits of every row alone, without padding, through transformers' own tokenizer."""
    model, tokenizer = loaded(folder, name), BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    found = []
    for row in frame[list(columns)].itertuples(index=False):
        inputs = tokenizer(*row, return_tensors="pt", return_token_type_ids=name != "distilbert")
        with torch.no_grad():
            found.append(model(**inputs).logits[0].numpy())
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "task"),
    [("mobilebert-2", "sst2"), ("bert", "sst2"), ("distilbert", "sst2"), ("mobilebert-3", "mnli"), ("mobilebert-1", "stsb")],
)
def test_evaluate_is_the_score_of_the_models_own_outputs(name, task, data, checkpoints, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    result = json.loads(run(capsys, "evaluate", checkpoints[name], "--task", task, "--data", data, "--predictions", out))
    kept = pd.read_parquet(out)
    for split, prefix in (("validation", ""), ("validation_mismatched", "mismatched_")):
        if split not in TASKS[task].splits:
            continue
        frame = pd.read_parquet(data / TASKS[task].folder / f"{TASKS[task].splits[split]}.parquet")
        logits = logits_of(checkpoints[name], name, frame, TASKS[task].text_columns)
        mine = kept[kept["split"] == split]
        assert mine["idx"].tolist() == frame["idx"].tolist()
        if task == "stsb":
            assert mine["prediction"].to_numpy() == pytest.approx(np.clip(logits[:, 0], 0, 5), abs=1e-4)
        else:
            assert len(np.unique(logits.argmax(1))) > 1
            assert mine["prediction"].tolist() == logits.argmax(1).tolist()
            assert result[f"{prefix}accuracy"] == pytest.approx(100 * accuracy_score(frame["label"], logits.argmax(1)))
    again = json.loads(run_score(capsys, task, data, out))
    assert again.pop("rows") == result.pop("rows")
    assert again.pop("labels") == result.pop("labels")
    assert again == pytest.approx(result)


def run_score(capsys, task, data, path):
    assert main(["score", "--task", task, "--data", str(data), "--predictions", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("task", ["squad_v1.1", "squad_v2.0"])
def test_evaluate_squad_and_its_official_file(task, data, checkpoints, tmp_path, capsys):
    given = ("evaluate", checkpoints["mobilebert-qa"], "--task", task, "--data", data, "--predictions")
    official = json.loads(run(capsys, *given, tmp_path / "p.json"))
    result = json.loads(run(capsys, *given, tmp_path / "p.parquet"))
    assert official == result
    assert json.loads(run_score(capsys, task, data, tmp_path / "p.parquet")) == result
    scored = json.loads(run_score(capsys, task, data, tmp_path / "p.json"))
    assert scored == {key: result[key] for key in scored}
    assert set(json.loads((tmp_path / "p.json").read_text())) == {f"q{row}" for row in range(ROWS)}
    assert ("best_f1_thresh" in result) == (task == "squad_v2.0")


def onnx_folder(checkpoint, name, folder):
    folder.mkdir(parents=True)
    export_onnx(loaded(checkpoint, name), folder / "float.onnx", length=16)
    quantize_int8(folder / "float.onnx", folder / "model.int8.onnx")
    (folder / "float.onnx").rename(folder / "other.onnx")
    return folder


RECORD = {
    "schema": 1, "study": "s", "stage": "finetune", "name": "m/sst2", "status": "ok", "fingerprint": "f", "inputs": {},
    "config": {},
}  # fmt: skip


def test_files_beside_an_onnx_file_are_read(checkpoints, tmp_path, capsys):
    """vocab.txt and config.json are read. Class names in config.json decide the order, as in a
    checkpoint; a row longer than the model's positions is refused."""
    folder = onnx_folder(checkpoints["mobilebert-3"], "mobilebert-3", tmp_path / "model")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    config = json.loads((checkpoints["mobilebert-3"] / "config.json").read_text())
    config["id2label"] = {"0": "CONTRADICTION", "1": "ENTAILMENT", "2": "NEUTRAL"}
    config["label2id"] = {name: int(code) for code, name in config["id2label"].items()}
    rows = ("--task", "mnli", "--text", "red dog", "--text-pair", "green cat on mat")
    plain = json.loads(run(capsys, "predict", checkpoints["mobilebert-3"], *rows))
    assert "no tokenizer" in refused(capsys, "predict", folder / "other.onnx", *rows)
    (folder / "config.json").write_text(json.dumps(config))
    named = json.loads(run(capsys, "predict", folder / "other.onnx", *rows))
    assert named["probability_entailment"] == pytest.approx(plain["probability_neutral"], abs=1e-5)
    (folder / "config.json").write_text("[]")
    assert "config.json holds no JSON object" in refused(capsys, "predict", folder / "other.onnx", *rows)
    (folder / "config.json").unlink()
    add_tokenizer(folder)
    long = ("--task", "mnli", "--text", "red " * 120, "--text-pair", "red")
    assert "other.onnx: does not run on 1 x 124 tokens" in refused(capsys, "predict", folder / "other.onnx", *long)


def test_int8_models_are_evaluated_from_a_folder_or_a_file(data, checkpoints, tmp_path, capsys):
    """The tokenizer lies beside the file, or is the study's if the file is in a study's results."""
    folder = onnx_folder(checkpoints["mobilebert-2"], "mobilebert-2", tmp_path / "study/quantize/mobilebert/sst2")
    given = ("--task", "sst2", "--data", data)
    assert "no tokenizer" in refused(capsys, "evaluate", folder, *given)
    (tmp_path / "study/data/tokenizer").mkdir(parents=True)
    add_tokenizer(tmp_path / "study/data/tokenizer")
    assert "no tokenizer" in refused(capsys, "evaluate", folder, *given)  # no study wrote this file, so its vocabulary is unknown
    (folder / "result.json").write_text(json.dumps(RECORD))
    result = json.loads(run(capsys, "evaluate", folder, *given, "--predictions", tmp_path / "p.parquet"))
    assert json.loads(run(capsys, "evaluate", folder / "model.int8.onnx", *given)) == result
    assert json.loads(run_score(capsys, "sst2", data, tmp_path / "p.parquet")) == result
    assert json.loads(run(capsys, "evaluate", folder / "other.onnx", *given)) == json.loads(
        run(capsys, "evaluate", checkpoints["mobilebert-2"], *given)
    )
    assert "its head has 2 labels, mnli has 3" in refused(capsys, "evaluate", folder, "--task", "mnli", "--data", data)
    assert "squad_v1.1 needs start_logits" in refused(capsys, "evaluate", folder, "--task", "squad_v1.1", "--data", data)


def test_a_study_model_keeps_its_lengths(checkpoints, tmp_path, capsys):
    """Four tokens leave only two words: later words change nothing if the record is there."""
    shutil.copytree(checkpoints["mobilebert-2"], tmp_path / "finetune/model")
    (tmp_path / "finetune/result.json").write_text('{"accuracy": 0.5}')  # not a record
    texts = ("red dog", "red dog . on the mat who ? blue")

    def shares(folder):
        rows = [run(capsys, "predict", folder, "--task", "sst2", "--text", text) for text in texts]
        return [json.loads(row)["probability_positive"] for row in rows]

    first, second = shares(tmp_path / "finetune")
    assert first != second
    (tmp_path / "finetune/result.json").write_text(json.dumps(RECORD | {"config": {"task": "sst2", "length": 4}}))
    first, second = shares(tmp_path / "finetune")
    assert first == second


def test_class_names_of_a_checkpoint_decide_their_order(data, checkpoints, tmp_path, capsys):
    """A checkpoint that orders its classes otherwise than the benchmark means the same classes."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["mobilebert-3"], folder)
    rows = ("--task", "mnli", "--text", "red dog", "--text-pair", "green cat on mat")
    plain = json.loads(run(capsys, "predict", folder, *rows))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "CONTRADICTION", "1": "ENTAILMENT", "2": "NEUTRAL"}
    config["label2id"] = {name: int(code) for code, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    named = json.loads(run(capsys, "predict", folder, *rows))
    places = {"contradiction": "entailment", "entailment": "neutral", "neutral": "contradiction"}
    for name, place in places.items():
        assert named[f"probability_{name}"] == pytest.approx(plain[f"probability_{place}"])
    assert named["label"] == max(places, key=lambda name: named[f"probability_{name}"])
    assert TASKS["mnli"].labels[named["prediction"]] == named["label"]
    said = "its classes are sad, glad, so-so; taken in this order for entailment, neutral, contradiction of mnli"
    del config["label2id"]
    for names, expected in ((config["id2label"], False), ({"0": "sad", "1": "glad", "2": "so-so"}, True)):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
        assert main(["predict", str(folder), *rows]) == 0
        assert (said in capsys.readouterr().err) is expected


NAMES = ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
PLACEHOLDERS = {f"LABEL_{code}": code for code in range(3)}


@pytest.mark.parametrize(
    "maps",
    [
        {"label2id": {name: code for code, name in enumerate(NAMES)}},
        {"label2id": {name: code for code, name in enumerate(NAMES)}, "id2label": {v: k for k, v in PLACEHOLDERS.items()}},
        {"id2label": dict(enumerate(NAMES)), "label2id": PLACEHOLDERS},
        {"id2label": {0: "LABEL_2", 1: "LABEL_0", 2: "LABEL_1"}},
        {"id2label": {0: "2", 1: "0", 2: "1"}},
    ],
)
@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_either_map_of_class_names_decides_the_order(maps, kind, checkpoints, tmp_path, capsys):
    folder = tmp_path / "model"
    if kind == "onnx":
        onnx_folder(checkpoints["mobilebert-3"], "mobilebert-3", folder)
        (folder / "model.int8.onnx").unlink()
        (folder / "other.onnx").rename(folder / "model.int8.onnx")
        add_tokenizer(folder)
    else:
        shutil.copytree(checkpoints["mobilebert-3"], folder)
    values = json.loads((checkpoints["mobilebert-3"] / "config.json").read_text())
    values = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
    rows = ("--task", "mnli", "--text", "red dog", "--text-pair", "green cat on mat")
    plain = json.loads(run(capsys, "predict", checkpoints["mobilebert-3"], *rows))
    (folder / "config.json").write_text(json.dumps(values | maps))
    named = json.loads(run(capsys, "predict", folder, *rows))
    places = {"contradiction": "entailment", "entailment": "neutral", "neutral": "contradiction"}
    for name, place in places.items():  # the plain model's columns are entailment, neutral, contradiction
        assert named[f"probability_{name}"] == pytest.approx(plain[f"probability_{place}"], abs=1e-5)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 1, "positive": 0}}, "contradict each other"),
        ({"id2label": {0: "negative", 1: "positive"}, "label2id": {"sad": 0, "glad": 1}}, "contradict each other"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1, "c": 2}}, "contradict each other"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label in config.json does not number its classes 0 to 1"),
        ({"id2label": {0: "a", 1: "a"}}, "gives two classes one name"),
        ({"label2id": {"a": 0, "b": 0}}, "does not number its classes"),
        ({"label2id": {"a": True, "b": 0}}, "does not number its classes"),
        ({"label2id": ["a", "b"]}, "label2id in config.json must be a JSON object of class names"),
        ({"id2label": {0: "a", 1: "b"}, "num_labels": 3}, "num_labels in config.json is 3, but 2 classes have names"),
    ],
)
def test_invalid_or_contradictory_class_names_are_refused(maps, message, checkpoints, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["mobilebert-2"], folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | maps))
    assert message in refused(capsys, "predict", folder, "--task", "sst2", "--text", "red")


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_predict_reads_a_users_file_and_writes_every_format(ending, data, checkpoints, tmp_path, capsys):
    frame = pd.read_parquet(data / "glue/mnli/validation_matched.parquet")
    logits = logits_of(checkpoints["mobilebert-3"], "mobilebert-3", frame, ("premise", "hypothesis"))
    source, rows = tmp_path / f"rows.{ending}", frame[["premise", "hypothesis", "idx"]]
    if ending == "tsv":
        rows.to_csv(source, sep="\t", index=False)
    elif ending == "jsonl":
        rows.to_json(source, orient="records", lines=True)
    else:
        rows.to_parquet(source)
    given = ("predict", checkpoints["mobilebert-3"], "--task", "mnli", "--input", source)
    printed = [json.loads(line) for line in run(capsys, *given).splitlines()]
    assert [row["prediction"] for row in printed] == logits.argmax(1).tolist()
    shares = torch.softmax(torch.tensor(logits), 1).numpy()
    assert [row["probability_neutral"] for row in printed] == pytest.approx(shares[:, 1].tolist(), abs=1e-4)
    for name in ("o.tsv", "o.parquet", "o.jsonl"):
        assert run(capsys, *given, "--output", tmp_path / name) == ""
    names = [TASKS["mnli"].labels[code] for code in logits.argmax(1)]
    expected = ["index\tprediction", *[f"{idx}\t{name}" for idx, name in zip(frame["idx"], names)]]
    assert (tmp_path / "o.tsv").read_text().splitlines() == expected
    assert pd.read_parquet(tmp_path / "o.parquet")["label"].tolist() == names
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [
        row | {"idx": json.loads(json.dumps(row["idx"]))} for row in printed
    ]


def test_every_line_of_a_tsv_is_a_row_whatever_its_line_end(checkpoints, tmp_path, capsys):
    """One text is empty, one has a lone carriage return, one a quote: each is one row."""
    texts = ["red cat", "", "on\rmat", '"blue']
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    given = ("predict", checkpoints["mobilebert-2"], "--task", "sst2", "--input")
    expected = run(capsys, *given, tmp_path / "rows.jsonl")
    assert len(expected.splitlines()) == 4
    for end in ("\n", "\r\n"):
        for mark in ("", "\ufeff"):
            (tmp_path / "rows.tsv").write_bytes((mark + end.join(["sentence", *texts, "", ""])).encode())
            assert run(capsys, *given, tmp_path / "rows.tsv") == expected


def test_predict_one_question(checkpoints, capsys):
    context = "red cat sat on blue mat ."
    given = ("predict", checkpoints["mobilebert-qa"], "--question", "who ?", "--context", context, "--task")
    first = json.loads(run(capsys, *given, "squad_v1.1"))
    assert first["prediction"] in context
    assert first["id"] == "0"
    second = json.loads(run(capsys, *given, "squad_v2.0"))
    assert second["prediction"] == first["prediction"]
    assert second["answer"] == ("" if second["null_odds"] > 0 else second["prediction"])


def test_the_lengths_in_a_tokenizer_file_do_not_matter(checkpoints, tmp_path, capsys):
    context = " ".join(["red cat sat on blue mat ."] * 5)
    given = ("--question", "who ?", "--context", context, "--task", "squad_v1.1")
    before = run(capsys, "predict", checkpoints["mobilebert-qa"], *given)
    shutil.copytree(checkpoints["mobilebert-qa"], tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model/tokenizer.json"))
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    assert run(capsys, "predict", tmp_path / "model", *given) == before


def test_checkpoints_that_are_refused(data, checkpoints, tmp_path, capsys):
    def line(model, task="sst2", text=("--text", "red")):
        return refused(capsys, "predict", model, "--task", task, *text)

    pair, question = ("--text", "red", "--text-pair", "cat"), ("--question", "who", "--context", "cat")
    assert "its head has 2 labels, mnli has 3" in line(checkpoints["mobilebert-2"], "mnli", pair)
    assert "its head has 3 labels, sst2 has 2" in line(checkpoints["mobilebert-3"])
    assert "its head has 1 labels, squad_v1.1 has 2" in line(checkpoints["mobilebert-1"], "squad_v1.1", question)
    assert "its checkpoint has no qa_outputs" in line(checkpoints["mobilebert-2"], "squad_v1.1", question)
    assert "its checkpoint has no classifier" in line(checkpoints["mobilebert-qa"])
    assert "its checkpoint has no classifier" in line(checkpoints["pretrained"])
    assert "its checkpoint has no classifier" in line(checkpoints["encoder"])
    assert "no such folder" in line(tmp_path / "absent")
    assert "not a checkpoint" in line(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints["mobilebert-2"], bare)
    (bare / "tokenizer.json").unlink()
    assert "no tokenizer" in line(bare)
    words = {token: code for code, token in enumerate([*VOCABULARY, "more"])}
    BertWordPieceTokenizer(words).save(str(bare / "tokenizer.json"))
    assert "the tokenizer has 17 tokens, the model 16" in line(bare)
    add_tokenizer(bare)
    weights = (bare / "model.safetensors").read_bytes()
    (bare / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "no safetensors file that can be read" in line(bare)
    (bare / "model.safetensors").unlink()
    torch.save({}, bare / "pytorch_model.bin")
    assert "no model.safetensors; pytorch_model.bin is a pickle, which is not read" in line(bare)
    (bare / "config.json").write_text("{")
    assert "config.json is not JSON" in line(bare)


def test_a_vocabulary_without_unk_is_refused(checkpoints, tmp_path, capsys):
    shutil.copytree(checkpoints["mobilebert-2"], tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "model/vocab.txt").write_text("\n".join(token for token in VOCABULARY if token != "[UNK]"))
    message = refused(capsys, "predict", tmp_path / "model", "--task", "sst2", "--text", "red")
    assert "the tokenizer does not encode every text" in message


def onnx_file(path, rows, **outputs):
    """Write an ONNX model that looks up `rows` vectors and return its path. An output is one number
    a row, one number a token, or two numbers a token."""
    path.parent.mkdir()
    helper, table = onnx.helper, np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["found"])]
    for name, kind in outputs.items():
        axes = {"row": [1], "token": [2]}.get(kind)
        given = ["found"] if axes is None else ["found", f"{name}_axes"]
        extra = {} if axes is None else {"keepdims": 0}
        if axes is not None:
            nodes.append(helper.make_node("Constant", [], [f"{name}_axes"], value_ints=axes))
        nodes.append(helper.make_node("Identity" if axes is None else "ReduceSum", given, [name], **extra))
    inputs = [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "sequence"])]
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, given, [onnx.numpy_helper.from_array(table, "table")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    add_tokenizer(path.parent)
    return path


def test_onnx_files_that_do_not_fit_the_task_are_refused(tmp_path, capsys):
    single, question = ("--task", "sst2", "--text", "red"), ("--task", "squad_v1.1", "--question", "who", "--context", "cat")
    right = onnx_file(tmp_path / "right" / "m.onnx", len(VOCABULARY), logits="row")
    assert json.loads(run(capsys, "predict", right, *single))["label"] == "positive"
    right = onnx_file(tmp_path / "answers" / "m.onnx", len(VOCABULARY), start_logits="token", end_logits="token")
    assert json.loads(run(capsys, "predict", right, *question))["prediction"] == "cat"

    few = onnx_file(tmp_path / "few" / "m.onnx", len(VOCABULARY) - 1, logits="row")
    assert "the tokenizer has 16 tokens, more than the model takes" in refused(capsys, "predict", few, *single)
    tokens = onnx_file(tmp_path / "tokens" / "m.onnx", len(VOCABULARY), logits="as they are")
    message = "gives logits of shape (1, 8, 2) for 1 x 8 tokens; sst2 needs (1, 2)"
    assert message in refused(capsys, "predict", tokens, *single)
    rows = onnx_file(tmp_path / "rows" / "m.onnx", len(VOCABULARY), start_logits="token", end_logits="row")
    message = "gives end_logits of shape (1, 2) for 1 x 8 tokens; squad_v1.1 needs (1, 8)"
    assert message in refused(capsys, "predict", rows, *question)
    assert "m.onnx: gives logits; squad_v1.1 needs" in refused(capsys, "predict", right.parents[1] / "right/m.onnx", *question)


def test_a_hub_name_without_network_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read once, at import
    message = refused(capsys, "predict", "nobody/nothing", "--task", "sst2", "--text", "red")
    assert "nobody/nothing: no checkpoint that can be loaded" in message


def test_rows_that_are_refused(data, checkpoints, tmp_path, capsys):
    model = checkpoints["mobilebert-2"]
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "head.tsv").write_text("sentence\n")
    (tmp_path / "other.tsv").write_text("text\nred\n")
    (tmp_path / "twice.tsv").write_text("index\tsentence\n1\tred\n1\tcat\n")
    (tmp_path / "bad.jsonl").write_text('{"sentence": "red"}\n{"sentence": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "number.jsonl").write_text('{"sentence": "red"}\n{"sentence": 3}\n')
    (tmp_path / "keys.jsonl").write_text('{"sentence": "red", "idx": 3}\n{"sentence": "cat"}\n')
    (tmp_path / "lists.jsonl").write_text('{"sentence": "red", "idx": [1]}\n')
    (tmp_path / "both.tsv").write_text("index\tidx\tsentence\n1\t1\tred\n")
    (tmp_path / "kinds.jsonl").write_text('{"sentence": "red", "idx": 3}\n{"sentence": "cat", "idx": "a"}\n')
    (tmp_path / "large.jsonl").write_text('{"sentence": "red", "idx": 9223372036854775808}\n')
    (tmp_path / "half.jsonl").write_text('{"sentence": "red"}\n{"sentence": "\\ud800"}\n')
    (tmp_path / "short.tsv").write_text("idx\tsentence\n1\tred\n2\n")
    (tmp_path / "squad.jsonl").write_text(
        "".join(json.dumps({"id": key, "question": "who", "context": "cat"}) + "\n" for key in (5, "5"))
    )
    for name, message in (
        ("empty.tsv", "is empty"),
        ("head.tsv", "no rows"),
        ("other.tsv", "no column sentence"),
        ("twice.tsv", "idx 1 is there twice"),
        ("bad.jsonl", "row 1 is not JSON"),
        ("list.jsonl", "must be a JSON object"),
        ("number.jsonl", "column sentence is not text in row 1"),
        ("keys.jsonl", "idx of row 1 is nan; allowed: text or an integer in every row"),
        ("lists.jsonl", "idx of row 0 is [1]; allowed: text or an integer"),
        ("both.tsv", "has both idx and index"),
        ("kinds.jsonl", "idx is text in some rows and an integer in others"),
        ("large.jsonl", "idx of row 0 is 9223372036854775808; allowed"),
        ("half.jsonl", "row 1 holds half of a surrogate pair"),
        ("short.tsv", "row 1 has 1 fields, its header 2"),
        ("rows.csv", "read from .tsv, .jsonl or .parquet"),
        ("absent.jsonl", "no such file"),
    ):
        assert message in refused(capsys, "predict", model, "--task", "sst2", "--input", tmp_path / name)
    one = ("predict", model, "--task", "sst2")
    assert "give --text, or a file" in refused(capsys, *one)
    assert "give --text, or a file" in refused(capsys, *one, "--text", "a", "--text-pair", "b")
    assert "text: not UTF-8" in refused(capsys, *one, "--text", "red \udcff")
    assert "give --question and --context" in refused(capsys, *one[:3], "squad_v1.1", "--text", "a")
    assert "not from both" in refused(capsys, *one, "--text", "a", "--input", tmp_path / "head.tsv")
    assert "not from both" in refused(capsys, *one, "--text", "", "--input", tmp_path / "head.tsv")
    squad = ("--task", "squad_v1.1", "--input", tmp_path / "squad.jsonl")
    assert "id 5 is there twice" in refused(capsys, "predict", checkpoints["mobilebert-qa"], *squad)
    for place in (tmp_path / "absent/o.parquet", tmp_path / "folder.parquet"):
        (tmp_path / "folder.parquet").mkdir(exist_ok=True)
        given = ("--task", "sst2", "--data", data, "--predictions", place)
        assert "cannot be written" in refused(capsys, "evaluate", "before/any-work", *given)
    assert "written as .parquet, .jsonl, .tsv" in refused(capsys, *one, "--text", "a", "--output", tmp_path / "p.json")
    given = ("evaluate", checkpoints["mobilebert-3"], "--task", "mnli", "--data", data, "--predictions", tmp_path / "p.tsv")
    assert "one .tsv holds one split" in refused(capsys, *given)
    assert not (tmp_path / "p.tsv").exists()
    run(capsys, *given, "--split", "validation_mismatched")
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == ROWS + 1
