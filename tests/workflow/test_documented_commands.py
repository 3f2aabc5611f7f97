"""Every command of the documents runs, or is listed here with the reason why it does not."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from snakemake.cli import parse_args
from tokenizers import BertWordPieceTokenizer

from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertForSequenceClassification
from mobilebert.cli.main import main, parser
from mobilebert.data.sources import open_source
from mobilebert.jobs.record import sealed
from mobilebert.study.graph import build_graph, find_job
from mobilebert.study.load import load_study
from mobilebert.study.tasks import TASKS

ROOT = Path(__file__).parents[2]
MINI = Path(__file__).with_name("mini.yaml")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"docs/study.md"}  # by a program, so it may be missing in a working tree

# A command that is not run, word for word, and the reason. Its words are checked nevertheless.
STAGES = "takes a minute: test_smoke.py runs the stages"
RUNS = "needs runs: tests/unit/compare writes some by hand"
STORE = "needs an MLflow store:"
TRAINED = "needs a trained study: tests/unit/publishing/test_publish.py writes one by hand"
WIDE = "needs gcc, and hours: tests/unit/training/test_wide_products.py builds and loads the library"
BENCH = "needs a GPU: tests/bench/test_gpu_programs.py tries the program without one"
INSTALLS = "installs packages"
QUIET = "takes minutes and a quiet machine: tests/unit/deployment/test_latency.py times small models"
PHONE = "needs a phone: tests/unit/deployment/test_devices.py answers in its place"
CONVERTS = "needs a checkpoint: tests/unit/modeling/test_from_tensorflow.py has small ones"
NOT_RUN = {
    ". .venv/bin/activate": "changes the shell",
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make reproduce": INSTALLS,
    "conda activate mobilebert": "changes the shell",
    "conda env create -f environment.yml": INSTALLS,
    "pip install '.[workflow]'": INSTALLS,
    "pip install '.[tensorflow]'": INSTALLS,
    "mobilebert convert tf_model.h5 OUT": CONVERTS,
    "mobilebert convert mobilebert_variables.ckpt OUT --preset mobilebert": CONVERTS,
    "mobilebert convert mobilebert_variables.ckpt OUT --config bert_config.json": CONVERTS,
    "mobilebert convert ckpt-740000 OUT --config params.yaml": CONVERTS,
    "pip install --no-deps --editable .": INSTALLS,
    "pip install pre-commit pyrefly snakefmt": INSTALLS,
    "pre-commit install --hook-type pre-commit --hook-type pre-push": "changes the clone",
    "mlflow ui --backend-store-uri sqlite:///results/cpu/mlflow.db": "starts a server",
    "mobilebert track --study cpu": "makes an MLflow store, 8 seconds: tests/unit/reporting/test_tracking.py does",
    "mobilebert track --study cpu --live": "waits 30 seconds: tests/unit/reporting/test_live_tracking.py does",
    "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000": "changes the shell",
    "mobilebert track --study cpu --models": f"{STORE} tests/unit/publishing/test_registry.py does",
    "mobilebert report --from-mlflow runs:/ID --out page": f"{STORE} tests/unit/reporting/test_mlflow_reader.py does",
    "mobilebert compare runs:/BASE runs:/NEW --log": f"{STORE} tests/unit/compare/test_mlflow_run.py does",
    "mobilebert compare results/before results/after --log": f"{STORE} tests/unit/compare/test_mlflow_run.py does",
    "echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' | gcc -shared -fPIC -x c - -o avx512.so": WIDE,
    "LD_PRELOAD=$PWD/avx512.so snakemake --cores 2 --config study=evening": WIDE,
    "mobilebert report --study cpu": "needs records: the smoke study writes its own page",
    "mobilebert attention mobilebert-jkt --study cpu": "needs trained models: tests/unit/stages/test_attention.py has small ones",
    "mobilebert publish --study cpu": TRAINED,
    "mobilebert publish finetune/mobilebert/sst2 --study cpu --cards cards": TRAINED,
    "mobilebert publish finetune/mobilebert/sst2 --study cpu --owner me --push": TRAINED,
    "mobilebert submission cola=MODEL sst2=MODEL ... wnli=majority --data D --out glue.zip": (
        "needs all test sets: tests/unit/evaluation/test_submission.py has them"
    ),
    "mobilebert compare results/before results/after": RUNS,
    "mobilebert compare results/before results/after --html comparison.html": RUNS,
    "mobilebert compare paper results/after": RUNS,
    "mobilebert compare .benchmarks/*/0001_*.json .benchmarks/*/0002_*.json": (
        "needs two runs of make bench: tests/unit/compare/test_benchmarks.py has small ones"
    ),
    "mobilebert seeds 0-19 --study smoke": "takes a minute a seed: tests/unit/compare/test_gate.py has runs written by hand",
    "mobilebert seeds 101-105 --study smoke": "takes a minute a seed: tests/unit/compare/test_gate.py has runs written by hand",
    "mobilebert baseline reports/baselines/smoke.json --study smoke --seeds 0-19": RUNS,
    "mobilebert baseline reports/baselines/smoke.json --study smoke --seeds 0-19 --accept 'a better schedule'": RUNS,
    "mobilebert compare reports/baselines/smoke.json results/smoke --gate": RUNS,
    "mobilebert compare reports/baselines/smoke.json results/smoke-seed10[1-5] --gate --junit gate.xml": RUNS,
    "mobilebert report --records reports/cpu --out page": (
        "draws figures, 5 seconds: tests/unit/claims/test_committed_reports.py does"
    ),
    "python -m mobilebert data --study smoke": STAGES,
    "python -m mobilebert pretrain ib-bert-large --study smoke": STAGES,
    "python -m mobilebert transfer mobilebert --study smoke": STAGES,
    "python -m mobilebert distill mobilebert --study smoke": STAGES,
    "python -m mobilebert finetune mobilebert/sst2 --study smoke": STAGES,
    "torchrun --nproc-per-node 2 -m mobilebert pretrain ib-bert-large --study gpu": (
        "needs a GPU: tests/unit/training/test_parallel.py runs torchrun"
    ),
    "python tests/bench/gpu_training.py student --out student.json": BENCH,
    "python tests/bench/gpu_inference.py encoder --batch 32 --out inference.json": BENCH,
    "python tests/bench/gpu_finetuning.py prepare --data ../shared/data --examples examples.npz": BENCH,
    "python tests/bench/gpu_finetuning.py sst2 --examples examples.npz --out sst2.json": BENCH,
    "pip install --constraint constraints.txt --editable '.[workflow,deploy,openvino,litert]'": INSTALLS,
    "pip install --constraint constraints.txt --editable '.[workflow,deploy,openvino,litert,tensorflow]'": INSTALLS,
    "pip install --constraint constraints.txt --editable '.[workflow,deploy,openvino,litert,tensorflow,quanto]'": INSTALLS,
    "mobilebert int8 --study smoke": "needs records: tests/unit/deployment/test_int8_table.py writes some",
    "mobilebert latency mobilebert bert-base --engine onnxruntime": QUIET,
    "mobilebert latency mobilebert bert-base --engine onnxruntime-int8 --threads 1 --length 128 --batch 1 --profile": QUIET,
    "mobilebert latency ./my-checkpoint bert-base --engine pytorch-folded openvino --rounds 1024 --json": QUIET,
    "mobilebert latency bert-base distilbert tinybert-4l tinybert-6l minilm-6l minilm-12l mobilebert mobilebert-tiny "
    "--engine onnxruntime-fixed": QUIET,
    "mobilebert latency --study engines": QUIET,
    "mobilebert latency bert-base mobilebert --engine pytorch pytorch-folded pytorch-compiled --rounds 200": QUIET,
    "mobilebert latency bert-base mobilebert --engine onnxruntime onnxruntime-fixed --rounds 200": QUIET,
    "mobilebert latency bert-base mobilebert --engine onnxruntime-int8 onnxruntime-int8-fixed --rounds 200": QUIET,
    "mobilebert latency bert-base mobilebert --engine openvino openvino-fixed litert --rounds 200": QUIET,
    "mobilebert latency mobilebert.tflite bert-base.tflite --device android --benchmark-binary benchmark_model": PHONE,
    "mobilebert latency mobilebert.tflite --device android:SERIAL1 --device android:SERIAL2 "
    "--benchmark-binary benchmark_model --json": PHONE,
}
PYTHON_NOT_RUN = {  # the first line of a block of Python
    "from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertForSequenceClassification, fold": (
        "needs the hub, and 3 GB for two teachers: tests/unit/modeling builds small ones"
    ),
    "import keras": "needs TensorFlow: tests/tf/test_tensorflow_document.py runs it",
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "to", "remember"]


def fences(language: str) -> list[tuple[str, str]]:
    """Return (document, text) of every fenced block in a language."""
    found = []
    for document in DOCUMENTS:
        for kind, text in re.findall(r"^```(.*?)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S):
            assert kind in ("sh", "python", "yaml", "text"), f"{document}: a block of {kind or 'no language'}"
            if kind == language:
                found.append((document.name, text))
    return found


def commands() -> list[str]:
    """Return every command, without its comment, each once."""
    lines = (line for _, text in fences("sh") for line in text.replace("\\\n", " ").splitlines())
    bare = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines)
    return list(dict.fromkeys(filter(None, bare)))


COMMANDS = commands()


def of(program: str) -> list[str]:
    """Return the commands of a program that are to be run."""
    return [command for command in COMMANDS if command.split()[0] == program and command not in NOT_RUN]


def test_every_command_is_run_or_listed_with_its_reason():
    run = [*of("make"), *of("snakemake"), *of("mobilebert"), *of("pytest")]
    assert not {*COMMANDS} - {*run} - NOT_RUN.keys(), "new commands: run them here, or list them with the reason"
    assert not NOT_RUN.keys() - {*COMMANDS}, "listed, and in no document"


# --- make, pytest and the commands that are not run: only their words are checked


@pytest.mark.parametrize("command", [command for command in COMMANDS if "make" in shlex.split(command)])
def test_make_has_the_target(command):
    words = shlex.split(command)
    dry = ["make", "--dry-run", *words[words.index("make") + 1 :]]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", of("pytest"))
def test_pytest_names_files_that_exist(command):
    for word in shlex.split(command)[1:]:
        assert "/" not in word or (ROOT / word.partition("::")[0]).exists()


@pytest.mark.parametrize("command", NOT_RUN)
def test_a_command_that_is_not_run_has_words_that_its_program_knows(command):
    words = shlex.split(command.replace("...", " ".join(f"{task}=MODEL" for task in ("mrpc", "rte"))))
    if words[0] in ("mobilebert", "python", "torchrun") and "mobilebert" in words:
        options = parser().parse_args(words[words.index("mobilebert") + 1 :])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        return
    else:
        return
    if name := getattr(options, "name", None):
        assert find_job(build_graph(load_study(options.study)), options.command, name)


# --- Snakemake: dry runs of all commands in one process, which saves ten seconds


DRY_RUNS = """
import json, sys
from snakemake.cli import main
codes = []
for words in json.load(sys.stdin):
    try:
        codes.append(main(words))
    except SystemExit as end:
        codes.append(end.code)
    print(f"{words}: {codes[-1]}", file=sys.stderr)
print()
print(json.dumps(codes))
"""


@pytest.fixture(scope="module", autouse=True)
def dry_runs(tmp_path_factory):
    """Start the dry runs before the other tests; yield the process that runs them."""
    results = tmp_path_factory.mktemp("results")
    asked = [dry_run(shlex.split(command)[1:], results) for command in of("snakemake")]
    process = subprocess.Popen(
        [sys.executable, "-c", DRY_RUNS],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    process.stdin = None  # communicate() would write to it
    yield process
    process.kill()
    process.wait()


def dry_run(words: list[str], results: Path) -> list[str]:
    """Return the words of the command's dry run, with other results and a study for `my.yaml`."""
    _, options = parse_args(words)
    words = [word.replace("study=my.yaml", f"study={MINI}").replace("results/", f"{results}/", 1) for word in words]
    if not options.config:
        words += ["--config"]
    place = words.index("--config") + 1
    return ["--dry-run", "--quiet", "all", *words[:place], f"results={results}", *words[place:]]


# --- the commands for files and checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the files of the commands: MODEL, data in D, rows and predictions."""
    folder = tmp_path_factory.mktemp("documented")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 32, "embedding_size": 16}
    sizes |= {"intra_bottleneck_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MobileBertConfig(**sizes, max_position_embeddings=128)
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    for name, model in (("MODEL", MobileBertForSequenceClassification), ("HUB", MobileBertForPreTraining)):
        model(config).save_pretrained(folder / name)
        BertWordPieceTokenizer(vocabulary, lowercase=True).save(str(folder / name / "tokenizer.json"))
    source = open_source("synthetic")
    for task in ("rte", "squad_v1.1"):
        path = folder / "D" / TASKS[task].folder / "validation.parquet"
        path.parent.mkdir(parents=True)
        source.table(task, "validation").head(8).to_parquet(path)
    squad = source.table("squad_v1.1", "validation").head(8)
    answers = {key: texts["text"][0] for key, texts in zip(squad["id"], squad["answers"], strict=True)}
    (folder / "predictions.json.gz").write_bytes(gzip.compress(json.dumps(answers).encode()))
    idx = source.table("rte", "validation").head(8)["idx"]
    predicted = zip(idx, np.zeros(len(idx), int), strict=True)
    (folder / "predictions.tsv").write_text("idx\tprediction\n" + "".join(f"{key}\t{value}\n" for key, value in predicted))
    (folder / "rows.tsv").write_text("sentence\na film to remember\n")
    place = folder / "results/smoke/pretrain/ib-bert-large"
    place.mkdir(parents=True)
    record = {"schema": 1, "study": "smoke", "stage": "pretrain", "name": "ib-bert-large", "status": "ok", "fingerprint": "f"}
    (place / "result.json").write_text(json.dumps(sealed(record | {"config": {}, "inputs": {}})))
    (folder / "reports").symlink_to(ROOT / "reports")
    return folder


@pytest.mark.parametrize("command", of("mobilebert"))
def test_command_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out or "--output" in command or "state" in command


# --- Python, links and paths


@pytest.mark.parametrize(("document", "text"), fences("python"))
def test_python_runs(document, text, folder, tmp_path, monkeypatch):
    program = compile(text.replace("google/mobilebert-uncased", str(folder / "HUB")), document, "exec")
    if text.splitlines()[0] in PYTHON_NOT_RUN:
        return
    if "import evaluate" not in text:
        monkeypatch.chdir(tmp_path)
        exec(program, {})
        return
    # In a new process: `evaluate` reads the place of its cache at import.
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_to_files(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    found = [os.path.normpath(document.parent.relative_to(ROOT) / link) for link in links]
    found += re.findall(r"`((?:mobilebert|workflows|tests|profiles|reports)/[\w./-]+)`", text)
    named = [path for path in found if not re.search(r"NAME|_N\b", path)]  # the others are placeholders
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not {*missing} - GENERATED


def test_snakemake_plans_every_command(dry_runs):
    """Check the dry runs last: by now their process has ended, or nearly so."""
    out, err = dry_runs.communicate(timeout=120)
    assert dry_runs.returncode == 0, err
    codes = json.loads(out.splitlines()[-1])
    assert dict(zip(of("snakemake"), codes, strict=True)) == dict.fromkeys(of("snakemake"), 0), err
