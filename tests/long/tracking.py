"""Kill an MLflow server at random moments while a study is tracked: nothing may be lost.

Afterwards the server gives back the files, the tables and the page, and serves a registered model.

python tests/long/tracking.py KILLS [--seed SEED]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ["HF_HUB_OFFLINE"] = "1"

import pandas as pd
import requests
import torch
from mlflow_runs import STUDY, graph_of, job, write_record
from tokenizers import BertWordPieceTokenizer

from mobilebert.evaluation.checkpoints import load_checkpoint
from mobilebert.modeling import MobileBertConfig, tasks
from mobilebert.publishing.checkpoint import checkpoints
from mobilebert.publishing.registry import register
from mobilebert.reporting.store import VARIABLE
from mobilebert.reporting.tracking import ingest
from mobilebert.stages.report import from_mlflow, from_records
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

PATIENCE_S = 120
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "to", "remember"]
DATA = job("data", "", "00000000", source="synthetic")
SERVED = job("finetune", "mobilebert/sst2", "11111111", task="sst2", length=16)


class Server:
    """An MLflow server on a port of its own, whose database and files outlive it."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", f"{self.folder}/files"]
        command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", *store]
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return
            time.sleep(0.2)
        raise SystemExit(f"the server does not start; see {log.name}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def write_study(results: Path):
    """Write the records of 20 jobs, a model that predicts, and return the graph and the records."""
    names = [f"mobilebert-seed-{seed}/{task}" for seed in range(1, 7) for task in ("mrpc", "rte", "cola")]
    jobs = [DATA, SERVED, *(job("finetune", name, f"{place:08d}", task=name[-4:]) for place, name in enumerate(names, 20))]
    split = {"tasks/sst2/train.parquet": {"sha256": "ab" * 32, "bytes": 3}}
    found = {DATA.id: write_record(results, DATA, artefacts=split)}
    curves = {"loss": [[step, 1.0 / (step + 1)] for step in range(50)]}
    for item in jobs[2:]:
        found[item.id] = write_record(results, item, metrics={"accuracy": 0.5}, curves=curves, inputs={"data": DATA.fingerprint})
    files = write_model(results / "study" / SERVED.id / "model")
    artefacts = {
        f"model/{file.name}": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": 1 << 30} for file in files
    }
    found[SERVED.id] = write_record(results, SERVED, artefacts=artefacts, metrics={"accuracy": 0.75})
    return graph_of(*jobs), found


def write_model(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 32, "embedding_size": 16}
    sizes |= {"intra_bottleneck_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tasks.MobileBertForSequenceClassification(MobileBertConfig(**sizes)).save_pretrained(folder)
    BertWordPieceTokenizer({word: place for place, word in enumerate(WORDS)}).save(str(folder / "tokenizer.json"))
    return sorted(folder.iterdir())


def runs_in(uri: str) -> dict[str, tuple]:
    """Return what the store says of each run, with its files and the points of its curve."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    found = {}
    for run in client.search_runs([experiment], max_results=1000):
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
        points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "curves/loss")]
        files = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        sets = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
        name = tags.get("job", "parent")
        assert name not in found, f"{name} is there twice"
        found[name] = (run.info.status, run.info.run_name, run.data.metrics, run.data.params, tags, points, files, sets)
    return found


@contextlib.contextmanager
def killed_at(server: Server, number: int, before: bool):
    """Kill the server at a request of this process: before it is sent, or before it is answered."""
    send, count = requests.Session.send, itertools.count(1)

    def sent(*arguments, **options):
        place = next(count)
        if place == number and before:
            server.kill()
        answer = send(*arguments, **options)
        if place == number:
            server.kill()
            raise requests.ConnectionError("the server was killed")
        return answer

    requests.Session.send = sent
    try:
        yield
    finally:
        requests.Session.send = send


def track(uri: str, results: Path, graph, found) -> dict[str, int]:
    os.environ[VARIABLE] = uri
    return ingest(results, STUDY, graph, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments (default: drawn)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        graph, found = write_study(folder / "results")
        server = Server(folder)
        try:
            server.start()
            check(server, folder, graph, found, options.kills, moments)
        finally:
            server.kill()


def check(server: Server, folder: Path, graph, found, kills: int, moments: random.Random) -> None:
    results, lost = folder / "results", 0
    for _ in range(kills):
        request, before = moments.randrange(1, 60), moments.random() < 0.5
        with killed_at(server, request, before), contextlib.suppress(UserError):
            track(server.uri, results, graph, found)
            lost -= 1
        lost += 1
        server.kill()
        server.start()
    print(f"{kills} kills, {lost} of them while the study was tracked", flush=True)
    track(server.uri, results, graph, found)
    assert track(server.uri, results, graph, found) == {"added": 0, "completed": 0, "there": len(found)}
    served = runs_in(server.uri)

    alone = f"sqlite:///{folder}/alone.db"  # a store that nobody kills
    from mlflow import MlflowClient

    MlflowClient(alone).create_experiment("study", artifact_location=(folder / "alone").as_uri())
    track(alone, results, graph, found)
    assert runs_in(alone) == served
    print(f"{len(served)} runs, equal to those of a store that was never killed", flush=True)

    os.environ[VARIABLE] = server.uri
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    (parent,) = client.search_runs([experiment], "tags.configuration LIKE '%'")
    from_mlflow(parent.info.run_id, folder / "from server")
    (folder / "study.yaml").write_text("schema: 1\ndescription: a study of three jobs\n")
    copy = folder / "from files" / f"mlflow-{parent.info.run_id[:8]}"  # at the same place, for the links of the page
    shutil.copytree(results / "study", copy)
    from_records(copy, folder / "from files", str(folder / "study.yaml"))
    for name in ("tables.md", "index.html"):
        assert (folder / "from server" / name).read_bytes() == (folder / "from files" / name).read_bytes()
    print("tables and page from the server are those from files", flush=True)

    chosen = [item for item in checkpoints(results, found) if item.record.id == SERVED.id]
    assert register(results / "study", "study", chosen, print) == {"registered": 1, "there": 0}
    shutil.rmtree(results)  # the server alone serves it
    import mlflow

    rows = pd.DataFrame({"sentence": ["a film to remember", "to film"]})
    answers = mlflow.pyfunc.load_model("models:/study-mobilebert-sst2@current").predict(rows)
    again = write_model(folder / "again")[0].parent
    wanted = load_checkpoint(str(again), TASKS["sst2"]).predict(rows, "rows")
    pd.testing.assert_frame_equal(answers[list(wanted)], wanted)
    assert list(answers["label"]) == [TASKS["sst2"].labels[code] for code in wanted["prediction"]]
    print("the registered model predicts as its checkpoint does", flush=True)


if __name__ == "__main__":
    main()
