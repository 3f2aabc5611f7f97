"""The gate: its rule at the boundaries and by simulation, and planted regressions."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy import stats
from written import rewrite, write_run

from mobilebert.cli.main import main
from mobilebert.compare import seeds as seeded
from mobilebert.compare.rule import ALPHA, judge_fresh, two_groups, unfit
from mobilebert.study.load import load_study

SCORE = "finetune/mobilebert/sst2:accuracy"
LOSS = "pretrain/ib-bert-large:heldout_mlm_loss"
RATIO = "latency:mobilebert/pytorch:p50_ms / latency:bert-base/pytorch:p50_ms"
SEEDS = range(1, 21)


def values(seed: int) -> dict:
    """Return the metrics of a seed of the unchanged experiment."""
    draws = np.random.default_rng(seed).normal(size=3)
    return {"accuracy": 0.9 + 0.01 * draws[0], "loss": 3 + 0.02 * draws[1], "ratio": 2 + 0.02 * draws[2]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with a study, 20 of its seeds, a baseline of them and 5 fresh seeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    study = {"description": "d", "data": {"source": "synthetic"}, "latency": {"models": ["bert-base", "mobilebert"]}}
    study["gate"] = {"metrics": [SCORE, LOSS, RATIO]}
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    for seed in [*SEEDS, *range(101, 106)]:
        write_run(tmp_path / f"results/mine-seed{seed}", seed=seed, **values(seed))
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20"]) == 0
    return tmp_path


def fresh(first=101, last=105) -> list[str]:
    return [f"results/mine-seed{seed}" for seed in range(first, last + 1)]


def gated(capsys, *words) -> tuple[int, dict[str, str]]:
    """Return the exit code, and what -> verdict of the gate's rows."""
    capsys.readouterr()
    code = main(["compare", "base.json", *words, "--gate", "--json"])
    return code, {row["what"]: row["verdict"] for row in json.loads(capsys.readouterr().out)["gate"]}


# --- the rule


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize(("count", "fresh_count", "metrics"), [(20, 5, 10), (20, 5, 1), (12, 3, 4)])
def test_the_interval_ends_where_scipys_prediction_interval_does(better, count, fresh_count, metrics):
    base = np.random.default_rng(count).normal(5, 2, count)
    t = stats.t.isf(ALPHA / metrics, count - 1)
    margin = t * base.std(ddof=1) * math.sqrt(1 / count + 1 / fresh_count)
    sign = 1 if better == "higher" else -1
    for share, verdict in ((-1.001, "worse"), (-0.999, "pass"), (0.999, "pass"), (1.001, "suspicious")):
        new = [base.mean() + sign * share * margin] * fresh_count
        assert judge_fresh(base.tolist(), new, metrics, better) == verdict


def test_false_alarms_of_ten_metrics_are_as_rare_as_the_rule_says():
    """The rule allows 1 % of 400 gates; 5 of 200 is the most that a user should meet."""
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(400):
        draws = rng.normal(size=(10, 25)).tolist()
        alarms += any(judge_fresh(row[:20], row[20:], 10, "higher") != "pass" for row in draws)
    assert alarms <= 10


def test_three_standard_deviations_are_caught_by_five_fresh_seeds():
    rng = np.random.default_rng(8)
    draws = rng.normal(size=(400, 25))
    draws[:, 20:] -= 3
    caught = sum(judge_fresh(row[:20], row[20:], 10, "higher") == "worse" for row in draws.tolist())
    assert caught >= 0.95 * 400


def test_a_ratio_of_times_that_grew_by_a_fifth_is_worse_whatever_its_spread():
    base = [1.0, 3.0] * 10
    assert judge_fresh(base, [2.4] * 5, 10, "lower", timing=True) == "worse"
    assert judge_fresh(base, [2.39] * 5, 10, "lower", timing=True) == "pass"
    assert judge_fresh(base, [2.4] * 5, 10, "lower") == "pass"


def test_two_groups_are_found_and_one_is_not():
    rng = np.random.default_rng(9)
    one = sum(two_groups(rng.normal(1, 0.2, 20).tolist()) is not None for _ in range(500))
    assert one <= 5
    for failed in (1, 3, 10):
        low, high = two_groups([*rng.normal(0.5, 0.01, failed), *rng.normal(0.95, 0.01, 20 - failed)])
        assert (len(low), len(high)) == (failed, 20 - failed)
    assert two_groups([1.0] * 19 + [0.995]) is None  # neighbouring values of a share of 200 rows


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([0.9, 0.8, 0.85], "3 seeds have a value, 10 are needed"),
        ([0.5] * 20, "all seeds have the value 0.5, so their spread is unknown"),
        ([0.9, 0.91] * 8 + [0.5] * 4, "bimodal: 4 seeds near 0.5, 16 near 0.905"),
    ],
)
def test_a_metric_that_cannot_be_a_gate_says_why(found, reason):
    assert unfit(found) == reason


# --- runs against a baseline


def test_fresh_seeds_of_the_same_experiment_pass(place, capsys):
    code, rows = gated(capsys, *fresh())
    assert (code, rows) == (0, {SCORE: "pass", LOSS: "pass", RATIO: "pass"})


def test_a_seed_of_the_baseline_that_is_equal_to_the_digit_needs_no_fresh_ones(place, capsys):
    code, rows = gated(capsys, "results/mine-seed3")
    assert (code, rows) == (0, dict.fromkeys((SCORE, LOSS, RATIO), "same"))


def test_a_changed_digit_needs_fresh_seeds(place, capsys):
    rewrite(place / "results/mine-seed3/pretrain/ib-bert-large/result.json", metrics={"heldout_mlm_loss": 3.0001})
    code, rows = gated(capsys, "results/mine-seed3")
    assert (code, rows[LOSS], rows[SCORE]) == (1, "missing", "same")
    code, rows = gated(capsys, "results/mine-seed3", *fresh())
    assert (code, rows[LOSS]) == (0, "pass")


def test_a_missing_seed_fails(place, capsys):
    code, rows = gated(capsys, *fresh(101, 104))
    assert (code, rows[SCORE], rows[LOSS]) == (1, "missing", "missing")


@pytest.mark.parametrize(
    ("metric", "worse", "better"),
    [
        (SCORE, {"accuracy": 0.86}, {"accuracy": 0.94}),
        (LOSS, {"loss": 3.1}, {"loss": 2.9}),
        (RATIO, {"ratio": 2.4}, {"ratio": 1.6}),
    ],
)
def test_a_planted_change_is_caught_in_both_directions(place, capsys, metric, worse, better):
    for change, verdict in ((worse, "worse"), (better, "suspicious")):
        for seed in range(101, 106):
            write_run(place / f"results/mine-seed{seed}", seed=seed, **values(seed) | change)
        code, rows = gated(capsys, *fresh())
        assert (code, rows[metric]) == (1, verdict)
        assert [row for row in rows.values() if row not in (verdict, "pass")] == []


def test_other_data_are_not_comparable_and_leave_nothing_to_judge(place, capsys):
    for folder in fresh():
        rewrite(place / folder / "data/result.json", details={"files": {"synthetic/sst2": "other"}})
    code, rows = gated(capsys, *fresh())
    assert (code, rows[SCORE], rows[LOSS], rows[RATIO]) == (1, "not comparable", "not comparable", "pass")


def test_nothing_comparable_is_exit_code_2(place, capsys):
    for folder in fresh():
        rewrite(place / folder / "data/result.json", details={"files": {"synthetic/sst2": "other"}})
        (place / folder / "latency/result.json").unlink()
    assert gated(capsys, *fresh())[0] == 2


def test_a_missing_record_fails_even_behind_no_gated_metric(place, capsys):
    (place / "results/mine-seed103/data/result.json").unlink()
    code, rows = gated(capsys, *fresh())
    assert (code, rows["data"]) == (1, "missing")


def test_a_metric_edited_by_hand_fails(place, capsys):
    path = place / "results/mine-seed103/finetune/mobilebert/sst2/result.json"
    rewrite(path, seal=False, metrics={"accuracy": 0.9})
    code, rows = gated(capsys, *fresh())
    assert (code, rows[SCORE]) == (1, "edited")


def test_a_void_timing_fails_unless_the_study_ignores_it(place, capsys):
    for folder in fresh():
        rewrite(place / folder / "latency/result.json", status="void", reason="busy")
    assert gated(capsys, *fresh())[1][RATIO] == "missing"
    study = yaml.safe_load(Path("mine.yaml").read_text())
    study["gate"]["ignore"] = ["latency"]
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20", "--accept", "the machine is busy"]) == 0
    code, rows = gated(capsys, *fresh())
    assert (code, rows[RATIO]) == (0, "ignored")


def test_verdicts_are_written_for_ci(place, capsys, monkeypatch):
    for seed in range(101, 106):
        write_run(place / f"results/mine-seed{seed}", seed=seed, **values(seed) | {"loss": 9.0})
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary.md"))
    assert main(["compare", "base.json", *fresh(), "--gate", "--junit", "gate.xml", "--html", "gate.html"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "gate: 2 hold, 1 do not"
    suite = ElementTree.parse("gate.xml").getroot()[0]
    assert suite.attrib | {"name": ""} == {"name": "", "tests": "3", "failures": "1", "errors": "0", "skipped": "0"}
    (failed,) = [case for case in suite if case.find("failure") is not None]
    assert failed.attrib["name"] == LOSS
    assert failed.find("failure").attrib["type"] == "worse"
    assert "| worse | pretrain/ib-bert-large:heldout\\_mlm\\_loss | 2.9" in Path("summary.md").read_text()
    assert 'class="worse"' in Path("gate.html").read_text()


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
            "mine: 9 seeds in results, a baseline needs 10, better 20; run more: mobilebert seeds 1-20 --study mine.yaml",
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
    assert main(["compare", "base.json", *fresh(), "--gate"]) == 2
    assert "base.json: edited by hand; make it again: mobilebert baseline base.json --study mine" in capsys.readouterr().err


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
    from mobilebert.compare.gate import direction
    from mobilebert.study.load import studies

    gated_metrics = [metric for name in studies() for metric in load_study(name).gate.metrics]
    assert gated_metrics
    assert all(direction(metric) in ("higher", "lower") for metric in gated_metrics)


def test_the_gate_step_of_the_example_passes_by_fresh_seeds_and_fails_without(place, monkeypatch):
    """Run the step's own words in a shell. `mobilebert seeds` would train, so the seeds are there."""
    root = Path(__file__).parents[3]
    steps = yaml.safe_load((root / "examples/gate.yaml").read_text())["jobs"]["gate"]["steps"]
    (step,) = [step["run"] for step in steps if step.get("name") == "compare with the baseline"]
    program = place / ".venv/bin/mobilebert"
    program.parent.mkdir(parents=True)
    line = f'[ "$1" = seeds ] || exec {sys.executable} -m mobilebert "$@"'
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    for seed in range(101, 106):
        (place / f"results/mine-seed{seed}").rename(place / f"results/smoke-seed{seed}")
    write_run(place / "results/smoke", seed=1, **values(1) | {"loss": 3.0001})
    environment = {**os.environ, "BASELINE": "base.json", "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-e", "-c", step], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gate: ") == 2
    assert Path("gate.xml").is_file()
    write_run(place / "results/smoke-seed103", seed=103, **values(103) | {"loss": 4.0})
    assert subprocess.run(["bash", "-e", "-c", step], env=environment, capture_output=True, check=False).returncode == 1
