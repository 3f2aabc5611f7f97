"""Bind jobs to GPUs with real processes and real locks, and a fake nvidia-smi."""

import os
import signal
import subprocess
import sys

import pytest

from mobilebert.jobs import gpus
from mobilebert.util.errors import UserError

HOLD = "from mobilebert.jobs import gpus; print(gpus.bind(), flush=True); input()"


class Machine:
    """Processes that each take a GPU of a machine with `gpus` GPUs, and hold it until they end."""

    def __init__(self, folder, gpus, first=0, **environment):
        lines = "".join(f"echo 'GPU {index}: NVIDIA H100 (UUID: GPU-{index + first})'\n" for index in range(gpus))
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
        (folder / "nvidia-smi").chmod(0o755)
        inherited = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK")}
        path = f"{folder}:{os.environ['PATH']}"
        self.environment = {**inherited, "PATH": path, **environment}
        self.locks = f"import pathlib; from mobilebert.jobs import gpus; gpus.FOLDER = pathlib.Path({str(folder / 'locks')!r})\n"
        self.processes = []

    def start(self, program=HOLD, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", self.locks + program],
            env={**self.environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def bound(self, **environment):
        process = self.start(**environment)
        return process, process.stdout.readline().strip()


@pytest.fixture
def machine(tmp_path):
    made = []

    def make(gpus, **options):
        made.append(Machine(tmp_path, gpus, **options))
        return made[-1]

    yield make
    for process in (process for item in made for process in item.processes):
        process.kill()
        process.communicate()


def test_jobs_take_different_devices_and_a_third_is_refused(machine):
    two = machine(2)
    (first, one), (_, other) = two.bound(), two.bound()
    assert {one, other} == {"0", "1"}
    third = two.start()
    _, error = third.communicate("")
    assert "no free GPU: 0, 1 held by other jobs" in error.splitlines()[-1]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert two.bound()[1] == one, "a killed job's device is free"


def test_the_locks_do_not_depend_on_where_a_job_keeps_its_files(machine, tmp_path):
    """Slurm names a missing runtime folder, and a temporary folder for each job."""
    one = machine(1, XDG_RUNTIME_DIR=str(tmp_path / "none"))
    assert one.bound(TMPDIR=str(tmp_path))[1] == "0"
    _, error = one.start(XDG_RUNTIME_DIR="/", TMPDIR="/").communicate("")
    assert "no free GPU: 0" in error
    assert gpus.FOLDER.parent.is_dir()


def test_a_lock_folder_that_is_a_link_is_refused(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.setattr(gpus, "FOLDER", tmp_path / "link")
    with pytest.raises(UserError, match="link: not a folder of yours"):
        gpus._folder()


def test_a_child_does_not_keep_its_parents_device(machine):
    one = machine(1)
    program = (
        "from subprocess import DEVNULL, Popen; from mobilebert.jobs import gpus; gpus.bind();"
        "Popen(['sleep', '20'], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL); print(1, flush=True)"
    )
    parent = one.start(program)
    assert parent.stdout.readline() == "1\n"
    parent.wait()
    assert one.bound()[1] == "0"


def test_only_the_bound_device_is_visible_before_torch_is_imported(machine):
    program = (
        "import os, sys; from mobilebert.jobs import gpus; gpus.bind();"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], 'torch' in sys.modules)"
    )
    assert machine(4).start(program).communicate("")[0] == "0 False\n"


def test_jobs_may_each_see_a_different_gpu_as_number_0(machine):
    """Slurm does this if it hides the devices of other jobs."""
    assert machine(1, first=0).bound(CUDA_VISIBLE_DEVICES="0")[1] == "0"
    assert machine(1, first=1).bound(CUDA_VISIBLE_DEVICES="0")[1] == "0"
    _, error = machine(1, first=1).start(CUDA_VISIBLE_DEVICES="GPU-1").communicate("")
    assert "no free GPU: GPU-1" in error, "one device under two names"


@pytest.mark.parametrize(
    ("listed", "bound"),
    [("3,1", "3"), ("GPU-1", "GPU-1"), ("MIG-GPU-5/1/0", "MIG-GPU-5/1/0"), ("", "None"), ("-1", "None"), ("NoDevFiles", "None")],
)
def test_cuda_visible_devices_decides_the_device(machine, listed, bound):
    assert machine(2).bound(CUDA_VISIBLE_DEVICES=listed)[1] == bound


def test_torchrun_and_a_machine_without_a_gpu_are_left_alone(machine):
    program = "import os; from mobilebert.jobs import gpus; print(gpus.bind(), os.environ.get('CUDA_VISIBLE_DEVICES'))"
    assert machine(2).start(program, LOCAL_RANK="1").communicate("")[0] == "None None\n"
    assert machine(0).start(program).communicate("")[0] == "None None\n"


@pytest.mark.parametrize(("device", "bound"), [("cuda", ["bound"]), ("cpu", [])])
def test_a_stage_of_a_gpu_study_binds_before_its_program_is_imported(monkeypatch, tmp_path, device, bound):
    from mobilebert.cli.main import main
    from mobilebert.jobs import gpus
    from mobilebert.jobs.record import Record
    from mobilebert.study.load import load_study

    calls = []
    monkeypatch.setattr(gpus, "bind", lambda: calls.append("bound"))
    monkeypatch.setattr(
        "mobilebert.jobs.execute.execute_job", lambda *arguments: Record.model_construct(stage="x", name="", status="ok")
    )
    study = load_study("smoke").model_copy(update={"device": device})
    monkeypatch.setattr("mobilebert.study.load.load_study", lambda name: study)
    for stage in (["pretrain", "ib-bert-large"], ["data"]):
        main([*stage, "--results", str(tmp_path)])
    assert calls == bound
