"""Faults that a recording refuses or gets wrong, and that the tests of graphs must see."""

import contextlib

import pytest
import torch
from graph_workloads import KINDS, ROWS, STEPS, agree, batch, trained, workload
from recording import tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

from mobilebert.pretraining import objective
from mobilebert.training.accelerated import cuda_graphs
from mobilebert.training.batches import fill_up
from mobilebert.training.distributed.processes import World
from mobilebert.training.distributed.sharding import Shards
from mobilebert.training.stepper import Stepper
from mobilebert.util.errors import Diverged

torch.set_num_threads(1)
FAULTS = {
    "a number read": lambda found, batch: found | {"loss": found["loss"] * (found["loss"].item() > 0)},
    "a branch": lambda found, batch: found if found["loss"] > 0 else found | {"loss": -found["loss"]},
    "a shape": lambda found, batch: found | {"nsp": found["nsp"] + 0 * batch["input_ids"].nonzero().sum()},
    "a way over the host": lambda found, batch: found | {"loss": found["loss"].cpu().to(found["loss"].device)},
    "a tensor of the host": lambda found, batch: found | {"loss": found["loss"] * torch.tensor([1.0])},
}


def faulty(monkeypatch, fault):
    plain = objective.loss
    monkeypatch.setattr(objective, "loss", lambda model, batch: FAULTS[fault](plain(model, batch), batch))


def rates_in_python(monkeypatch):
    plain = Stepper.gradients

    def gradients(self, parts, rows, place, saves=False):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.02 * self.plan.rate(place)
        return plain(self, parts, rows, place, saves)

    monkeypatch.setattr(Stepper, "gradients", gradients)


@pytest.mark.parametrize("fault", list(FAULTS)[:3])
def test_the_recorder_refuses_a_value_that_the_host_needs(tmp_path, recorder, monkeypatch, fault):
    faulty(monkeypatch, fault)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        trained(tmp_path, "pretrain", graph=True)


@pytest.mark.parametrize(
    "fault", [rates_in_python, lambda patch: patch.setattr(cuda_graphs, "WARM_UP", 0)], ids=["rate", "moments"]
)
def test_the_comparison_fails_for_values_that_a_graph_would_freeze(tmp_path, recorder, monkeypatch, fault):
    """A recorded Python rate never changes; moments created in a recording restart at replay."""
    wide = {"optimizer": "lamb", "dtype": torch.float64}
    expected = trained(tmp_path / "steps", "pretrain", **wide)
    fault(monkeypatch)
    with pytest.raises((Diverged, AssertionError)):
        agree(trained(tmp_path / "graphs", "pretrain", graph=True, **wide), expected)


class DeviceOnly(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_of((args, kwargs, out)):
            assert tensor.device.type == "meta", f"{func}: a tensor of the host"
        return out


def on_meta(monkeypatch, kind, optimizer):
    """Run a step without a mask, and one with a mask in the last stage, if there are any."""
    supported = torch.utils._foreach_utils._get_foreach_kernels_supported_devices
    monkeypatch.setattr(torch.utils._foreach_utils, "_get_foreach_kernels_supported_devices", lambda: [*supported(), "meta"])
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # the device "meta" has none
    monkeypatch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
    _, made, task = workload(kind, optimizer, "meta")
    shards = Shards([p for group in made.param_groups for p in group["params"]], World())
    step = Stepper(task, made, shards, "meta")
    for place, number in ((0, 0), (STEPS - 1, 1)):
        task.prepare(place)
        part = {key: value.to("meta") for key, value in fill_up(batch(number), 3).items()}
        for group in made.param_groups:
            group["lr"] = torch.zeros((), device="meta")
        with DeviceOnly():
            names, values = step.gradients([part], ROWS, place)
            step.update()
        assert values.shape == (len(names) + 1,)


@pytest.mark.parametrize(("kind", "optimizer"), KINDS.items())
def test_a_step_uses_only_tensors_of_the_device(monkeypatch, kind, optimizer):
    on_meta(monkeypatch, kind, optimizer)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_device_check_fails_for_tensors_of_the_host(monkeypatch, fault):
    faulty(monkeypatch, fault)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        on_meta(monkeypatch, "pretrain", "lamb")
