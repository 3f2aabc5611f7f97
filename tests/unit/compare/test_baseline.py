"""Baselines, fresh seeds and the key `gate` of a study."""

import json
from pathlib import Path

import pytest
import yaml
from written import LOSS, SCORE, rewrite, values, write_run

from mobilebert.cli.main import main
from mobilebert.compare import seeds as seeded
from mobilebert.compare.gate import direction
from mobilebert.study.load import load_study, studies

# --- baselines


def test_a_baseline_is_replaced_only_with_a_reason_which_it_keeps(place, capsys):
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20"]) == 2
    assert capsys.readouterr().err == "mobilebert: base.json: exists; --accept REASON replaces it\n"
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20", "--accept", "a reason"]) == 0
    assert [item["reason"] for item in json.loads(Path("base.json").read_text())["history"]] == ["first", "a reason"]


def test_a_changed_metric_changes_one_line_of_a_baseline(place):
    before = Path("base.json").read_text().splitlines()
    rewrite(place / "results/mine-seed3/pretrain/ib-bert-large/result.json", metrics={"heldout_mlm_loss": 3.0001})
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20", "--accept", "new"]) == 0
    after = Path("base.json").read_text().splitlines()
    changed = [line for line in after if line not in before]
    assert [line.split(":")[0].strip() for line in changed if "3.0001" in line] == ['"heldout_mlm_loss"']
    assert len(changed) <= 4  # the metric, the reason, its day and the checksum


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--seeds", "1-9"],
            "mine: seeds in results: 9; a baseline needs 10, better 20; run more: mobilebert seeds 1-20 --study mine.yaml",
        ),
        (["--seeds", "1-30"], "results/mine-seed21: no such folder"),
    ],
)
def test_a_baseline_that_cannot_be_made_is_one_line(place, capsys, words, said):
    capsys.readouterr()
    assert main(["baseline", "other.json", "--study", "mine.yaml", *words]) == 2
    assert capsys.readouterr().err == f"mobilebert: {said}\n"
    assert not Path("other.json").exists()


def test_a_bimodal_metric_is_refused(place, capsys):
    for seed in (2, 5, 7):
        write_run(place / f"results/mine-seed{seed}", seed=seed, **values(seed) | {"accuracy": 0.5 + seed / 1000})
    assert main(["baseline", "other.json", "--study", "mine.yaml", "--seeds", "1-20"]) == 2
    assert f"gate.metrics: {SCORE}: bimodal: 3 seeds near 0.5047, 17 near 0.8998" in capsys.readouterr().err


def test_seeds_of_two_experiments_are_refused(place, capsys):
    write_run(place / "results/mine-seed4", seed=4, rate=0.5, **values(4))
    assert main(["baseline", "other.json", "--study", "mine.yaml", "--seeds", "1-20"]) == 2
    line = "mine: results/mine-seed4 has another configuration or other data than results/mine-seed1 and 18 more"
    assert line in capsys.readouterr().err


def test_a_baseline_edited_by_hand_is_refused(place, capsys):
    path = Path("base.json")
    path.write_text(path.read_text().replace('"fresh": 5', '"fresh": 1'))
    assert main(["compare", "base.json", "results/mine-seed101", "--gate"]) == 2
    error = capsys.readouterr().err
    assert "base.json: edited by hand; restore it (git checkout base.json), or delete it and make it again: " in error
    assert error.endswith(": mobilebert baseline base.json --study mine\n")
    path.unlink()
    assert main(["baseline", "base.json", "--study", "mine.yaml"]) == 0  # the advice works


@pytest.mark.parametrize(
    ("content", "problem"),
    [("[]", "a group of keys is allowed, not []"), ("{}", "study: Field required"), ("{", "not JSON: ")],
)
def test_a_file_that_is_no_baseline_says_what_it_lacks(place, capsys, content, problem):
    Path("odd.json").write_text(content)
    assert main(["compare", "odd.json", "results/mine-seed101"]) == 2
    start = "not a baseline of schema 1: " if "JSON" not in problem else ""
    assert capsys.readouterr().err.startswith(f"mobilebert: odd.json: {start}{problem}")


def test_an_empty_reason_is_refused(place, capsys):
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20", "--accept", " "]) == 2
    assert capsys.readouterr().err == "mobilebert: baseline: --accept needs a reason, which the file keeps\n"


def test_a_baseline_of_another_study_is_not_replaced(place, capsys):
    Path("mine.yaml").rename("other.yaml")
    before = Path("base.json").read_bytes()
    assert main(["baseline", "base.json", "--study", "other.yaml", "--seeds", "1-20", "--accept", "a reason"]) == 2
    assert capsys.readouterr().err.startswith("mobilebert: base.json: a baseline of the study mine, not of other; ")
    assert Path("base.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 100_000, "NaN", '{"schema": 1}'])
def test_a_file_that_is_no_baseline_is_one_line(place, capsys, text):
    Path("other.json").write_text(text)
    assert main(["compare", "other.json", "results/mine-seed101", "--gate"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mobilebert: other.json: not ")
    assert error.count("\n") == 1


def test_a_baseline_with_nan_is_one_line(place, capsys):
    text = Path("base.json").read_text()
    start = text.index("[", text.index('"heldout_mlm_loss"')) + 1
    Path("base.json").write_text(f"{text[:start]}NaN,{text[text.index(',', start) + 1 :]}")
    assert main(["compare", "base.json", "results/mine-seed101", "--gate"]) == 2
    assert capsys.readouterr().err.startswith("mobilebert: base.json: not JSON: ")


# --- fresh seeds


def test_a_seeds_study_changes_its_seeds_alone(tmp_path):
    study = load_study("small-tasks")
    content = seeded.seeded(study, 7)
    file = tmp_path / f"{seeded.name_of(study, 7)}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    made = load_study(file)
    assert made.seed == 7
    assert made.finetune.seeds == (35, 36, 37, 38, 39)
    same = {"seed", "finetune", "expect"}
    assert made.model_dump(exclude=same) == study.model_dump(exclude=same)
    assert made.finetune.model_dump(exclude={"seeds"}) == study.finetune.model_dump(exclude={"seeds"})
    assert made.data.seed == study.data.seed


def test_seeds_runs_snakemake_for_the_gated_records_and_stops_at_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Snakefile").touch()
    Path("mine.yaml").write_text(yaml.safe_dump({"description": "d", "gate": {"metrics": [SCORE, LOSS]}}))
    ran = []

    class Done:
        def __init__(self, words, check):
            ran.append(words[3:])
            self.returncode = 3 * (len(ran) == 2)

    monkeypatch.setattr(seeded.subprocess, "run", Done)
    assert main(["seeds", "4-9", "--study", "mine.yaml", "--cores", "2"]) == 3
    assert ran == [
        [
            *("--cores", "2"),
            f"results/mine-seed{seed}/finetune/mobilebert/sst2/result.json",
            f"results/mine-seed{seed}/pretrain/ib-bert-large/result.json",
            *("--config", f"study=results/.seeds/mine-seed{seed}.yaml", "results=results"),
        ]
        for seed in (4, 5)
    ]


@pytest.mark.parametrize("words", ["0-", "5-1", "a", "1-5000"])
def test_a_range_that_is_none_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(["seeds", words])
    assert "is no range of at most 1000 seeds" in capsys.readouterr().err


# --- the study's key


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"metrics": ["finetune/mobilebert/sst2:acuracy"]}, "gate.metrics.0: finetune/mobilebert/sst2 has no metric 'acuracy'"),
        ({"metrics": ["finetune/mobilebert/nope:accuracy"]}, "names no record of this study"),
        ({"metrics": ["latency:mobilebert/pytorch:p50_ms"]}, "a timing is divided by another of the same run"),
        ({"metrics": [f"{SCORE} / {LOSS}"]}, "a timing is divided by another of the same run"),
        ({"metrics": [SCORE, SCORE]}, "at most 10 metrics, each once"),
        ({"metrics": ["data, latency:vocab_size"]}, "a gate reads one record"),
        ({"ignore": ["nope"]}, "gate.ignore.0: unknown record 'nope'"),
        ({"fresh": 0}, "gate.fresh"),
    ],
)
def test_a_wrong_gate_is_one_line(tmp_path, capsys, gate, said):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"description": "d", "gate": gate}))
    assert main(["plan", str(file)]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_every_study_of_this_repository_gates_metrics_with_a_better_way():
    gated_metrics = [metric for name in studies() for metric in load_study(name).gate.metrics]
    assert gated_metrics
    assert all(direction(metric) in ("higher", "lower") for metric in gated_metrics)
