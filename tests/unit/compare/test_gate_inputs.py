"""The gate on runs that it must not count: known timings, files, unsealed records."""

import json

import pytest
from written import LOSS, RATIO, rewrite, values, write, write_run

from mobilebert.cli.main import main

FRESH = [f"results/mine-seed{seed}" for seed in range(101, 106)]
OWN = [f"results/mine-seed{seed}" for seed in range(1, 8)]


def gate_rows(capsys, *words) -> tuple[int, dict[str, dict]]:
    """Return the exit code, and what -> row of the gate."""
    capsys.readouterr()
    code = main(["compare", "base.json", *words, "--gate", "--json"])
    return code, {row["what"]: row for row in json.loads(capsys.readouterr().out)["gate"]}


def test_the_baselines_own_timings_do_not_hide_slower_ones(place, capsys):
    for seed in range(101, 106):
        write_run(place / f"results/mine-seed{seed}", seed=seed, **values(seed) | {"ratio": 2.3 + seed / 1e5})
    for runs in (FRESH, [*OWN, *FRESH]):
        code, rows = gate_rows(capsys, *runs)
        assert (code, rows[RATIO]["verdict"], rows[RATIO]["reason"]) == (1, "worse", "the median of 5 against that of 20")


def test_a_timing_counts_once_however_many_runs_have_it(place, capsys):
    for loss in (3.1, 3.2):
        write_run(place / f"again-{loss}", seed=101, **values(101) | {"loss": loss})
    _, rows = gate_rows(capsys, *FRESH[:3], "again-3.1", "again-3.2")
    assert rows[RATIO]["reason"] == "the median of 3 against that of 20"


def test_equal_times_show_their_medians(place, capsys):
    _, own = gate_rows(capsys, "results/mine-seed1")
    _, fresh = gate_rows(capsys, *FRESH)
    assert own[RATIO]["verdict"] == "same"
    assert own[RATIO]["base"] == fresh[RATIO]["base"]


def test_a_further_record_without_a_checksum_counts_as_edited(place, capsys):
    path = place / FRESH[0] / "distill/mobilebert/result.json"
    write(place / FRESH[0], "distill/mobilebert", {"seed": 0}, {"heldout_mlm_loss": 1.0})
    assert gate_rows(capsys, *FRESH)[0] == 0
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}))
    code, rows = gate_rows(capsys, *FRESH)
    assert (code, rows["distill/mobilebert"]["verdict"]) == (1, "edited")


@pytest.mark.parametrize("others", [[], FRESH])
def test_a_file_is_no_run_to_judge(place, capsys, others):
    (place / "copy.json").write_bytes((place / "base.json").read_bytes())
    assert main(["compare", "base.json", "copy.json", *others, "--gate"]) == 2
    assert capsys.readouterr().err.startswith("mobilebert: copy.json: --gate judges runs;")


def test_an_absent_baseline_is_no_such_file(place, capsys):
    assert main(["compare", "no.json", *FRESH, "--gate"]) == 2
    assert capsys.readouterr().err == "mobilebert: no.json: no such file or folder\n"


def test_the_command_that_helps_is_not_cut_off(place, capsys):
    rewrite(place / "results/mine-seed3/pretrain/ib-bert-large/result.json", metrics={"heldout_mlm_loss": 3.0001})
    assert main(["compare", "base.json", "results/mine-seed3", "--gate"]) == 1
    lines = capsys.readouterr().out.splitlines()
    place_of = next(place for place, line in enumerate(lines) if line.startswith(f"missing: {LOSS}"))
    assert lines[place_of + 1].endswith("mobilebert seeds FIRST-LAST --study mine)")
    assert all(len(line) <= 120 for line in lines)
