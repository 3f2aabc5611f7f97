"""Every study is planned without data, network or GPU; wrong data are refused at once."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mobilebert.cli.main import main
from mobilebert.data import preflight
from mobilebert.data.sources import open_source
from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

STUDIES = ("smoke", "cpu", "evening", "gpu", "learning", "small-tasks", "released", "paper", "weekend", "engines", "int8")


@pytest.mark.parametrize("study", STUDIES)
def test_dry_run(workflow, study, tmp_path):
    run = workflow.run(study, tmp_path, "--dry-run")
    assert run.returncode == 0, run.stderr
    assert {"learning": "distill", "engines": "latency"}.get(study, "finetune") in run.stdout + run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("study", STUDIES)
def test_plan_prints_every_job(study):
    from mobilebert.reporting.plan import plan

    loaded = load_study(study)
    graph = build_graph(loaded)
    text = plan(loaded, graph, "h100")
    assert all(key in text for key in jobs_in_scope(loaded, graph))


def test_lint(workflow):
    run = workflow.snakemake("--lint")
    assert run.returncode == 0, run.stderr


def test_help_is_instant_and_light():
    code = (
        "import sys; from mobilebert.cli.main import parser; parser().format_help(); print({'torch', 'pandas'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["study=smoky"], "unknown study 'smoky'"),
        (["study=smoke", "stduy=cpu"], "unknown key stduy; allowed: study, results"),
        (["results=a{x}"], "--results: 'a{x}': the path must not contain '{'"),
        (["results=1e3"], "results=1000.0 is read as a number or list; write ./1000.0"),
        (["study=mine"], "mine: expect.0: finetune/mobilebert/sst2 has no metric 'acuracy'"),
    ],
)
def test_snakemake_refuses_with_exit_code_2(workflow, settings, wanted, tmp_path):
    if settings[0] == "study=mine":
        mistyped = workflow.mini.read_text().replace("sst2:accuracy", "sst2:acuracy")
        (tmp_path / "mine.yaml").write_text(mistyped)
        settings = [f"study={tmp_path}/mine.yaml"]
    run = workflow.snakemake("--cores", "1", "--config", *settings)
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if line.startswith("mobilebert: ")] == [run.stderr.splitlines()[-1]]
    assert wanted in run.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a local data folder, written from the generator."""
    folder = tmp_path_factory.mktemp("data")
    source = open_source("synthetic")
    for task in TASKS:
        for split in source.splits(task):
            path = folder / TASKS[task].folder / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            source.table(task, split).to_parquet(path, index=False)
    (folder / "corpus").mkdir()
    (folder / "corpus/books.txt").write_text("\n\n".join(source.documents()))
    words = sorted({word for text in source.documents() for word in text.replace(".", " ").split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *words]) + "\n")
    sign(folder)
    return folder


def sign(folder):
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"):
        lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}")
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


@pytest.fixture
def study_on(workflow, tmp_path):
    def make(folder, **data):
        content = yaml.safe_load(workflow.mini.read_text())
        sums = folder / "SHA256SUMS"
        pin = file_sha256(sums) if sums.is_file() else "0" * 64
        content["data"] = {"source": f"local:{folder}", "heldout_share": 0.1, "sums": pin, **data}
        for part in ("pretrain", "transfer", "distill"):
            content[part]["learning_rate"] = 0.003
        content["finetune"]["learning_rate"] = 0.001
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return make


def copy(prepared, tmp_path):
    import shutil

    return shutil.copytree(prepared, tmp_path / "data")


def refused(study_file):
    with pytest.raises(UserError) as caught:
        preflight.check(load_study(study_file), prepared=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_program_checks_what_snakemake_does_before_any_work(prepared, study_on, tmp_path, capsys):
    """The folder is not the study's: programs that need data refuse. Latency needs none."""
    study, options = study_on(prepared, sums="0" * 64), ["--results", str(tmp_path / "results")]
    for command in (["data"], ["pretrain", "ib-bert-large"], ["finetune", "mobilebert/sst2"]):
        assert main([*command, "--study", str(study), *options]) == 2
        line = capsys.readouterr().err
        assert line.startswith("mobilebert: mine: data.sums: ")
        assert line.count("\n") == 1
    assert not (tmp_path / "results").exists()
    graph = build_graph(load_study(study))
    preflight.before_work(load_study(study), tmp_path, graph, ["latency"])
    with pytest.raises(UserError, match=r"data\.sums"):
        preflight.before_work(load_study(study), tmp_path, graph, graph)


ODD = ["-x", "~/x", "a{x}", "a}", "a?", "a#b", "a%20b", "a\nb", "a\tb", "a\u2028b", "file", "file/below", "taken", "x" * 300]


@pytest.mark.parametrize("results", ODD)
@pytest.mark.parametrize("command", [["latency"], ["table", "7"], ["report"]])
def test_a_results_path_that_a_program_would_misread_is_refused(workflow, tmp_path, monkeypatch, capsys, results, command):
    for file in ("file", "taken/mini"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / "mini.yaml").write_text(workflow.mini.read_text())
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--study", "mini.yaml", f"--results={results}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mobilebert: --results: ")
    assert err.count("\n") == 1
    assert len(err) < 300
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mini.yaml", "taken"}


def test_a_results_path_of_plain_letters_spaces_and_quotes_is_taken(tmp_path):
    for results in ("results", "a b", "it's", "a/b.c_d-e", "ä", ".", "..", "$HOME", tmp_path):
        preflight.check_results(Path(results), "mini")


def test_good_data_passes(prepared, study_on):
    preflight.check(load_study(study_on(prepared)), prepared=False)


def test_missing_folder_stops_snakemake(workflow, study_on, tmp_path):
    run = workflow.run(study_on(tmp_path / "absent"), tmp_path / "results")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == f"mobilebert: mine: data.source: no folder {tmp_path / 'absent'}"
    assert not (tmp_path / "results/mine/data").exists()


def test_other_data_than_the_studys_are_refused(prepared, study_on):
    assert "data.sums" in refused(study_on(prepared, sums="0" * 64))


def test_an_expectation_on_a_missing_set_is_refused(prepared, study_on, tmp_path):
    """MNLI's second set may be absent; then there would be nothing to judge after the run."""
    folder = copy(prepared, tmp_path)
    content = yaml.safe_load(study_on(folder).read_text())
    content["run"]["mobilebert"] = ["mnli", "sst2"]
    content["expect"][0]["metric"] = "finetune/mobilebert/mnli:mismatched_accuracy"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    preflight.check(load_study(tmp_path / "mine.yaml"), prepared=False)
    (folder / "glue/mnli/validation_mismatched.parquet").unlink()
    sign(folder)
    content["data"]["sums"] = file_sha256(folder / "SHA256SUMS")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert "no glue/mnli/validation_mismatched.parquet, which the study mine needs" in refused(tmp_path / "mine.yaml")


def test_one_flipped_byte_of_the_data_is_refused(prepared, study_on, tmp_path):
    folder = copy(prepared, tmp_path)
    file = folder / "glue/sst2/train.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    text = refused(study_on(folder))
    assert "glue/sst2/train.parquet" in text
    assert hashlib.sha256(content).hexdigest() in text


@pytest.mark.parametrize(
    ("break_it", "wanted"),
    [
        (lambda frame: frame.drop(columns="sentence"), ["sentence"]),
        (lambda frame: frame.assign(label=[7] * len(frame)), ["label", "7"]),
        (lambda frame: frame.iloc[:0], ["empty"]),
    ],
)
def test_wrong_tables_are_refused(prepared, study_on, tmp_path, break_it, wanted):
    folder = copy(prepared, tmp_path)
    file = folder / "glue/sst2/validation.parquet"
    break_it(pd.read_parquet(file)).to_parquet(file, index=False)
    sign(folder)
    text = refused(study_on(folder))
    assert all(word in text for word in ["sst2/validation.parquet", *wanted])


def test_a_gpu_study_names_the_machine_that_has_none(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    code = (
        "from mobilebert.study.load import load_study; from mobilebert.training.device import device_of\n"
        "try: device_of(load_study('gpu'))\nexcept Exception as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "device: the study gpu trains on an NVIDIA GPU and this machine shows none; study cpu needs none\n"
