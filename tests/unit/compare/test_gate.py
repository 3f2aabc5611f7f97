"""The gate: its rule at the boundaries and by simulation, and planted regressions."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy import stats
from written import LOSS, RATIO, SCORE, rewrite, values, write, write_run

from mobilebert.cli.main import main
from mobilebert.compare.rule import ALPHA, judge_fresh, judge_times, two_groups, unfit

TIMES = [
    0.76,
    0.88,
    0.99,
    *[1.07] * 2,
    *[1.08] * 2,
    *[1.09] * 2,
    *[1.1] * 5,
    *[1.11] * 8,
    *[1.12] * 7,
    *[1.13] * 3,
    1.14,
    1.18,
    1.23,
]


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


@pytest.mark.parametrize(
    ("fresh", "verdict"),
    [
        ([1.1] * 5, "worse"),
        ([1.099] * 5, "pass"),
        ([0.834] * 5, "pass"),
        ([0.833] * 5, "suspicious"),
        ([1.0, 1.01, 1.02, 1.6, 1.7], "pass"),  # two disturbed timings
        ([1.2, 1.21, 1.22, 0.7, 0.8], "worse"),
        ([1.199] * 4, "pass"),
        ([1.2], "worse"),
        ([0.5], "pass"),
    ],
)
def test_times_are_judged_by_their_medians(fresh, verdict):
    assert judge_times([1.0] * 12 + [0.7, 1.3] * 4, fresh, 5) == verdict


def test_a_fifth_more_time_is_found_among_real_timings():
    """TIMES are the ratios of 35 runs of `smoke` on one machine, some of them disturbed."""
    rng, base = np.random.default_rng(3), [1.08] * 6 + [1.1] * 7 + [1.11] * 5 + [1.13, 1.16]
    draws = [rng.choice(TIMES, 5, replace=False) for _ in range(400)]
    assert sum(judge_times(base, draw.tolist(), 5) != "pass" for draw in draws) <= 4
    assert sum(judge_times(base, (1.2 * draw).tolist(), 5) == "worse" for draw in draws) >= 396


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
        ([0.5] * 20, "its seeds have only the values 0.5, which are no spread to judge by"),
        ([0.96] * 18 + [0.955, 0.965], "its seeds have only the values 0.955, 0.96, 0.965, which are no spread to judge by"),
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


def test_a_fresh_seed_counts_once(place, capsys):
    for ratio, folder in enumerate(("again-1", "again-2")):  # a time is never the same
        write_run(place / folder, seed=101, **values(101) | {"ratio": 2 + ratio / 100})
    code, rows = gated(capsys, *fresh(101, 103), "again-1", "again-2")
    assert (code, rows[LOSS]) == (1, "missing")


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
    code, rows = gated(capsys, *fresh())
    assert (code, rows[RATIO]) == (1, "missing")  # what is missing fails, whatever else was compared
    ignoring("latency")
    code, rows = gated(capsys, *fresh())
    assert (code, rows[SCORE], rows[LOSS], rows[RATIO]) == (2, "not comparable", "not comparable", "ignored")


def test_an_edit_fails_even_if_nothing_else_can_be_compared(place, capsys):
    for folder in fresh():
        for job in ("finetune/mobilebert/sst2", "pretrain/ib-bert-large", "latency"):
            rewrite(place / folder / job / "result.json", seal=False, reason="edited")
    code, rows = gated(capsys, *fresh())
    assert (code, rows) == (1, dict.fromkeys((SCORE, LOSS, RATIO), "edited"))


def test_a_missing_record_fails_even_behind_no_gated_metric(place, capsys):
    (place / "results/mine-seed103/data/result.json").unlink()
    code, rows = gated(capsys, *fresh())
    assert (code, rows["data"]) == (1, "missing")


def test_a_metric_edited_by_hand_fails(place, capsys):
    path = place / "results/mine-seed103/finetune/mobilebert/sst2/result.json"
    rewrite(path, seal=False, metrics={"accuracy": 0.9})
    code, rows = gated(capsys, *fresh())
    assert (code, rows[SCORE]) == (1, "edited")


def test_a_record_without_its_checksum_counts_as_edited(place, capsys):
    for key, what in (("finetune/mobilebert/sst2", SCORE), ("data", "data")):
        path = place / "results/mine-seed103" / key / "result.json"
        content = path.read_text()
        path.write_text(json.dumps({name: value for name, value in json.loads(content).items() if name != "checksum"}))
        code, rows = gated(capsys, *fresh())
        assert (code, rows[what]) == (1, "edited")
        path.write_text(content)


def test_data_that_no_record_names_are_not_comparable(place, capsys):
    for folder in fresh():
        rewrite(place / folder / "data/result.json", details={})
    code, rows = gated(capsys, *fresh())
    assert (code, rows[SCORE], rows["data"]) == (1, "not comparable", "not comparable")


def ignoring(*jobs) -> None:
    """Make the baseline again, of a study that ignores jobs."""
    study = yaml.safe_load(Path("mine.yaml").read_text())
    study["gate"]["ignore"] = [*jobs]
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    assert main(["baseline", "base.json", "--study", "mine.yaml", "--seeds", "1-20", "--accept", "it may differ"]) == 0


def test_another_experiment_fails_behind_no_gated_metric_unless_the_study_ignores_it(place, capsys):
    for folder in (*fresh(), *(f"results/mine-seed{seed}" for seed in range(1, 21))):
        steps = 100 if folder in fresh() else 200
        write(place / folder, "distill/mobilebert", {"seed": 0, "steps": steps}, {"heldout_mlm_loss": 1.0})
        rewrite(place / folder / "latency/result.json", config={"length": steps})
    for jobs, wanted, verdict in (((), 1, "not comparable"), (("distill/mobilebert", "latency"), 0, "ignored")):
        ignoring(*jobs)
        code, rows = gated(capsys, *fresh())
        assert (code, rows["distill/mobilebert"], rows[RATIO], rows[LOSS]) == (wanted, verdict, verdict, "pass")


def test_a_ratio_of_times_is_compared_on_the_same_processor_alone(place, capsys):
    for folder in fresh():
        rewrite(place / folder / "latency/result.json", details={"processor": {"cpu": "another", "isa": "avx2"}})
    code, rows = gated(capsys, *fresh())
    assert (code, rows[RATIO], rows[LOSS]) == (1, "not comparable", "pass")
    assert main(["compare", "base.json", *fresh(), "--gate"]) == 1
    assert "(on another avx2, the baseline" in capsys.readouterr().out
    ignoring("latency")
    code, rows = gated(capsys, *fresh())
    assert (code, rows[RATIO]) == (0, "ignored")


def test_a_void_timing_fails_unless_the_study_ignores_it(place, capsys):
    for folder in fresh():
        rewrite(place / folder / "latency/result.json", status="void", reason="busy")
    assert gated(capsys, *fresh())[1][RATIO] == "missing"
    ignoring("latency")
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


def test_a_summary_that_cannot_be_written_costs_no_verdict(place, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "no folder/summary.md"))
    assert main(["compare", "base.json", *fresh(), "--gate"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "gate: 3 hold, 0 do not"
    assert "no folder/summary.md: cannot be written (No such file or directory)" in printed.err


def test_a_name_of_odd_characters_leaves_the_xml_valid(place):
    name = "base\x01\udcff<.json"
    shutil.copy("base.json", name)
    assert main(["compare", name, *fresh(), "--gate", "--junit", "gate.xml"]) == 0
    assert ElementTree.parse("gate.xml").getroot()[0].attrib["name"] == "gate of base<.json"


def test_the_gate_step_of_the_example_passes_by_fresh_seeds_and_fails_without(place, monkeypatch):
    """Run the step in a shell. `mobilebert seeds` would train, so the seeds are there."""
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
    missing = {**environment, "BASELINE": "no.json"}
    done = subprocess.run(["bash", "-e", "-c", step], env=missing, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
