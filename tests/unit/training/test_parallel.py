"""A single process is a group of one; torchrun is refused for other stages.

Tests of two processes are in workflow/test_training_programs.py.
"""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mobilebert.training.distributed import processes
from mobilebert.util.errors import UserError


def test_a_single_process_leads_and_keeps_its_numbers():
    group, tensors = processes.world(), [torch.arange(3.0), torch.ones(2, 2)]
    group.sum(tensors)
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert torch.equal(tensors[0], torch.arange(3.0))
    assert group.agree(2.5) == 2.5


@pytest.mark.parametrize("stage", ["data", "finetune", "report"])
def test_stages_of_a_single_process_are_refused(stage):
    with pytest.raises(UserError, match=f"^{stage}: runs in one process; torchrun is for pretrain, transfer, distill"):
        processes.execute(SimpleNamespace(stage=stage), "smoke", None, {}, None, "cpu")


START = """
import sys
import torch
import torch.distributed as dist
from pathlib import Path
from torch import nn
from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.training import checkpoint, optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import UserError

dist.init_process_group("gloo")
rank = dist.get_rank()
for case in ("alike", "step", "weights"):
    torch.manual_seed(rank if case == "weights" else 0)
    model = nn.Linear(3, 1)
    optimizer = optim.make(model, "adamw", 0.1, 0.0)
    run = JobContext(Job("pretrain", case, {}, (), "f" * 64), "study", Path(sys.argv[1], str(rank)), {})
    run.state.mkdir(parents=True)
    if case == "step" and rank:
        checkpoint.save(run.state / "train.safetensors", model, optimizer, 1, "f" * 64 + ":train")
    batch = lambda step: {"input_ids": torch.ones(2, 3), "whole": torch.tensor([4, 0, 0])}
    loss = lambda batch, step: {"loss": model(batch["input_ids"]).square().mean()}
    try:
        train(run, model.eval(), optimizer, TrainingPlan(2, batch, loss, lambda step: 1.0, 0))
        print(case, "trained", run.details["train_split"]["processes"])
    except UserError as error:
        print(case, "refused" if "do not see the same results folder" in str(error) else error)
"""


def test_processes_with_different_states_or_weights_are_all_refused(tmp_path):
    """Each process has a results folder of its own: one finds a state, the other does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        known = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-c", START, str(tmp_path)], env=known | {"RANK": str(rank)}, **pipes)
        for rank in range(2)
    ]
    try:
        for process in started:
            out, err = process.communicate(timeout=90)
            assert out.splitlines() == ["alike trained 2", "step refused", "weights refused"], err
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize(("key", "value"), [("RANK", None), ("RANK", "one"), ("MASTER_PORT", "port"), ("MASTER_ADDR", None)])
def test_processes_that_cannot_be_joined_are_a_one_line_error(monkeypatch, key, value):
    known = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | {key: value}
    for name, text in known.items():
        monkeypatch.delenv(name, raising=False) if text is None else monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=r"^the processes cannot be joined \(.*\); start them with torchrun$"):
        processes.execute(SimpleNamespace(stage="pretrain"), "smoke", None, {}, None, "cpu")


@pytest.mark.parametrize("place", ["_lead", "_follow"])
def test_a_process_whose_partner_has_ended_says_so_in_one_line(monkeypatch, place):
    """Otherwise the error were gloo's or NCCL's, with a traceback. Other errors are not hidden."""
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:15521."
    errors = [RuntimeError("a bug"), torch.distributed.DistBackendError("NCCL error"), RuntimeError(lost)]

    def ends(*_):
        raise errors.pop()

    monkeypatch.setattr(processes, place, ends)
    monkeypatch.setattr(processes, "world", lambda: processes.World(int(place == "_follow"), 2))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^another torchrun process failed; see its output$"):
            processes.execute(SimpleNamespace(stage="pretrain"), "smoke", None, {}, None, "cpu")
    with pytest.raises(RuntimeError, match="a bug"):
        processes.execute(SimpleNamespace(stage="pretrain"), "smoke", None, {}, None, "cpu")


def test_a_gpu_study_without_a_gpu_is_a_one_line_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device: the study gpu trains on an NVIDIA GPU and this machine shows none"):
        processes.execute(SimpleNamespace(stage="pretrain"), "gpu", None, {}, None, "cuda")
