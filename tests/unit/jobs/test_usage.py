"""A training's use of its machine is sampled beside it."""

import sys
import time
from types import SimpleNamespace

import pytest

from mobilebert.jobs import usage
from mobilebert.jobs.execute import execute_job
from mobilebert.study.job import Graph, Job

MEMINFO = "MemTotal: 4096 kB\nMemFree: 10 kB\nMemAvailable: 1024 kB\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that sets the ticks of the machine; its memory is set."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/statm").write_text("9 2 3")
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(usage, "PROC", tmp_path)
    monkeypatch.setattr(usage.os, "sysconf", lambda _: 1 << 20)

    def ticks(user, idle):
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1")

    ticks(100, 1000)
    return ticks


def test_a_short_training_has_one_sample_over_all_of_it(machine):
    found = {}
    with usage.sampled(found):
        machine(175, 1025)
    assert {name: value for name, ((_, value),) in found.items()} == {
        "cpu_utilization_percentage": 75.0,
        "system_memory_usage_megabytes": 3.1,  # 3,072 KiB
        "system_memory_usage_percentage": 75.0,
        "process_memory_usage_megabytes": 2.1,
    }


def test_a_long_training_keeps_a_bounded_number_of_samples_from_start_to_end(machine, monkeypatch):
    monkeypatch.setattr(usage, "MOST", 8)
    found = {}
    with usage.sampled(found, interval=0.002):
        time.sleep(0.3)
    times = [seconds for seconds, _ in found["system_memory_usage_megabytes"]]
    assert 4 <= len(times) <= 10
    assert times == sorted(times)
    assert times[-1] >= 0.3


def test_a_machine_without_these_files_has_no_values(tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "PROC", tmp_path)
    found = {}
    with usage.sampled(found):
        pass
    assert found == {}


def test_gpus_that_torch_uses_are_asked(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$*" in *--id=3*) echo "3, 40, 1024, [N/A]";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert found_with_torch(monkeypatch, initialized=False) == {}
    assert found_with_torch(monkeypatch, initialized=True) == {
        "gpu_3_utilization_percentage": 40.0,
        "gpu_3_memory_usage_megabytes": 1073.741824,  # nvidia-smi prints MiB
    }


def found_with_torch(monkeypatch, initialized):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: initialized)))
        return usage._gpus()


@pytest.mark.parametrize(("stage", "is_training"), [("finetune", True), ("quantize", False)])
def test_the_record_of_a_training_has_the_samples(tmp_path, stage, is_training):
    job = Job(stage, "mobilebert/rte", {}, (), "a" * 64)
    graph = Graph()
    graph[job.id] = job
    assert bool(execute_job(job, "study", tmp_path, graph, lambda context: None).usage) == is_training
