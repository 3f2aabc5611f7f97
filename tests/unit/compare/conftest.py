"""A study with a baseline of 20 seeds, and 5 fresh seeds beside them."""

from pathlib import Path

import pytest
import yaml
from written import LOSS, RATIO, SCORE, values, write_run

from mobilebert.cli.main import main

SEEDS = range(1, 21)


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
