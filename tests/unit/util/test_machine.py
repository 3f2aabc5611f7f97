"""The programs run without calls that only Linux has; one module makes these calls."""

import os
import re
from pathlib import Path

import pytest

from mobilebert.cli.main import main, parser
from mobilebert.jobs.context import machine_facts
from mobilebert.util import machine

ROOT = Path(__file__).parents[3]
MINI = Path(__file__).parents[2] / "workflow" / "mini.yaml"


@pytest.fixture
def mac(monkeypatch):
    """Remove what macOS lacks: the cores of one process, and /proc."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for name in ("open", "read_text", "read_bytes"):
        kept = getattr(Path, name)

        def without_proc(self, *arguments, kept=kept, **options):
            if str(self).startswith("/proc"):
                raise FileNotFoundError(2, "No such file or directory", str(self))
            return kept(self, *arguments, **options)

        monkeypatch.setattr(Path, name, without_proc)


def test_a_process_that_is_pinned_has_fewer_cores_than_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == 16
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_the_command_line_and_records_need_no_affinity(mac, capsys):
    assert parser().parse_args(["predict", "m", "--task", "sst2"]).threads == os.cpu_count()
    assert machine_facts()["cores"] == os.cpu_count()
    assert main(["plan", "--study", "smoke", "--device", "h100"]) == 0
    assert "pretrain/ib-bert-large" in capsys.readouterr().out


def test_data_training_and_scoring_run_without_affinity(mac, tmp_path):
    study = tmp_path / "mine.yaml"
    text = MINI.read_text().replace("steps: 40, warmup_steps: 8", "steps: 2, warmup_steps: 1")
    study.write_text(text.replace("[0, 1]", "[0]").replace("  epochs: 1", "  epochs: 1\n  train_rows: 16\n  eval_rows: 16"))
    options = ["--study", str(study), "--results", str(tmp_path / "results")]
    for command in (["data"], ["pretrain", "ib-bert-large"], ["finetune", "bag-of-embeddings/sst2"]):
        assert main([*command, *options]) == 0


def test_nothing_else_asks_the_system_for_its_cores():
    """Only `machine.cores` reads affinity; latency counts the whole machine's ticks."""
    found = {
        str(path.relative_to(ROOT))
        for path in [*ROOT.glob("mobilebert/**/*.py"), *ROOT.glob("workflows/**/*.smk"), ROOT / "Snakefile"]
        if re.search(r"sched_getaffinity|cpu_count", path.read_text())
    }
    assert found == {"mobilebert/util/machine.py", "mobilebert/deployment/latency.py"}
    assert "sched_" not in (ROOT / "mobilebert/deployment/latency.py").read_text()
    assert re.search(r"nproc 2>/dev/null \|\| getconf", (ROOT / "Makefile").read_text())
