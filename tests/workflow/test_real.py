"""Run a short study on real data, if there is any."""

import pandas as pd
import yaml

from mobilebert.jobs.freshness import current_records
from mobilebert.jobs.record import read_record
from mobilebert.reporting.formats import markdown
from mobilebert.reporting.tables import fill
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.util.files import file_sha256


def test_real_data_from_corpus_to_score(workflow, real_data, tmp_path):
    content = yaml.safe_load(workflow.mini.read_text())
    content["data"] = {"source": f"local:{real_data}", "documents": 200, "heldout_share": 0.05}
    content["data"]["sums"] = file_sha256(real_data / "SHA256SUMS")
    for part in ("pretrain", "transfer", "distill"):
        content[part] |= {"learning_rate": 0.003, "steps": 10, "warmup_steps": 1}
    content["finetune"] |= {"learning_rate": 0.001, "seeds": [0], "eval_rows": 50, "train_rows": 100}
    content["run"] = {"mobilebert": ["mrpc", "squad_v2.0"]}
    content["quantize"], content["expect"] = {"mobilebert": ["mrpc"]}, []
    file = tmp_path / "real.yaml"
    file.write_text(yaml.safe_dump(content))
    out = tmp_path / "results/real"
    jobs = ("finetune/mobilebert/mrpc", "finetune/mobilebert/squad_v2.0", "quantize/mobilebert/mrpc")
    run = workflow.run(file, tmp_path / "results", *(f"{out}/{job}/result.json" for job in jobs))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    data = read_record(out / "data/result.json")
    assert data.metrics["vocab_size"] == 30_522
    assert data.details["rows"]["squad_v2.0"]["validation"] == 11_873
    assert data.details["files"]["glue/mrpc/train.parquet"] in (real_data / "SHA256SUMS").read_text()
    mrpc = read_record(out / "finetune/mobilebert/mrpc/result.json")
    assert any("100 of 3,668 rows" in label for label in mrpc.labels)
    assert mrpc.details["rows"] == {"validation": 50}
    assert len(pd.read_parquet(out / "finetune/mobilebert/squad_v2.0/predictions.parquet")) == 50
    study = load_study(str(file))
    records = current_records(tmp_path / "results", study.name, build_graph(study))
    assert "subset" in markdown(fill(study, records))
