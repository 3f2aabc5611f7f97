"""The optimizer's state sharded over processes gives one process's weights and file, to the bit."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from mobilebert.training.distributed.processes import World
from mobilebert.training.distributed.sharding import Shards

# This program trains one model in groups of forked processes. The gradients are sums of small
# whole numbers, exact in any order, and do not depend on the weights: two groups differ in the
# update alone.
PROGRAM = """
import os, socket, sys
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.training.distributed.processes import world

import torch._dynamo  # an optimizer imports it; the forked processes inherit the import

SHAPES = {"a": (8, 16), "b": (16, 4), "LayerNorm": (16,), "bias": (4,), "late": (9,), "never": (5, 5)}

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

def batch(step):
    group, rows = world(), torch.randint(-9, 10, (4, 128), generator=torch.Generator().manual_seed(step)).float()
    own = rows[4 * group.rank // group.size : 4 * (group.rank + 1) // group.size]
    return {"input_ids": own, "whole": torch.tensor([4, 0, 0])}

def case(folder, steps, stop=None):
    run, model = JobContext(Job("pretrain", "case", {}, (), "f" * 64), "study", folder, {}), Model()
    run.state.mkdir(parents=True, exist_ok=True)
    optimizer = optim.make(model, "lamb", 0.1, 0.01)
    counts = []

    def loss(batch, step):
        if step == stop:
            raise KeyboardInterrupt
        counts.append(sum(len(state) for state in optimizer.state.values()))
        total = 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                total = total + (batch["input_ids"][:, : parameter.numel()] @ parameter.flatten()).mean()
        return {"loss": total}

    def prepare(step):
        model.never.requires_grad_(False)
        model.late.requires_grad_(step > 3)

    try:
        task = TrainingPlan(steps, batch, loss, lambda step: 1 / (step + 1), 0, prepare, checkpoint_every=2, save_last=True)
        train(run, model.eval(), optimizer, task)
    except KeyboardInterrupt:
        pass
    return {**model.state_dict(), "moments": torch.tensor(max(counts))}

def spawn(size, folder, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                torch.set_num_threads(1)
                if size > 1:
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
                    dist.init_process_group("gloo")
                save_file(case(folder, *arguments), folder / f"end{size}-{rank}.safetensors")
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert not any([os.waitpid(pid, 0)[1] for pid in pids])

for name, worlds in {"1": [1], "2": [2], "4": [4], "2-1": [2, 1], "1-4": [1, 4], "4-2": [4, 2]}.items():
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    for place, size in enumerate(worlds):
        spawn(size, folder, 8, 5 if place + 1 < len(worlds) else None)
"""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    found = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    return folder


def state(folder):
    (path,) = folder.rglob("train.safetensors")
    with safe_open(path, "pt") as stream:
        facts = stream.metadata()
    return load_file(path), {key: value for key, value in facts.items() if key not in ("seconds", "crc32")}


@pytest.mark.parametrize("name", ["2", "4", "2-1", "1-4", "4-2"])
def test_any_number_of_processes_writes_and_resumes_the_same_file(worlds, name):
    """Case 2-1: two processes stop at step 5, and one resumes from their state after step 4."""
    (expected, facts), (found, others) = state(worlds / "1"), state(worlds / name)
    assert others == facts
    assert (
        found.keys()
        == expected.keys()
        == {
            *(f"model.{one}" for one in ("a", "b", "LayerNorm", "bias", "late", "never")),
            *(f"optimizer.{key}.{one}" for key in "mv" for one in ("a", "b", "LayerNorm", "bias", "late")),
        }
    )
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    ends = [load_file(path) for path in sorted((worlds / name).glob(f"end{name[-1]}-*"))]
    assert len(ends) == int(name[-1])
    # Two moments of each of the five tensors that learn; each tensor's are in one process.
    assert sum(end.pop("moments").item() for end in ends) == 10
    for end in ends:
        assert all(torch.equal(end[key], expected[f"model.{key}"]) for key in end)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 6))
def test_shares_differ_by_the_largest_tensor_at_most(sizes, processes):
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    shards = [Shards(parameters, World(rank, processes)) for rank in range(processes)]
    assert all(other.owner == shards[0].owner for other in shards)
    assert shards[0].owner.keys() == set(parameters)
    kept = [sum(p.numel() for p in parameters if shards[0].owner[p] == rank) for rank in range(processes)]
    assert max(kept) - min(kept) <= max(sizes)


def test_the_teachers_moments_are_shared_out_evenly():
    """The largest tensor has 4.2M of 293M parameters: sixteen shares are within a tenth."""
    from mobilebert import MobileBertConfig, MobileBertForPreTraining

    with torch.device("meta"):
        teacher = MobileBertForPreTraining(MobileBertConfig.from_preset("ib-bert-large"))
    parameters = list(teacher.parameters())
    for processes in (2, 8, 16):
        owner = Shards(parameters, World(0, processes)).owner
        kept = [sum(p.numel() for p in parameters if owner[p] == rank) for rank in range(processes)]
        assert max(kept) < 1.1 * sum(kept) / processes
