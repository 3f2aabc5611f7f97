"""The plan: FLOPs and hours of a small study by hand, and of the paper's own schedule."""

import pytest

from mobilebert.cli.main import main
from mobilebert.modeling.cost import cost
from mobilebert.modeling.presets import preset
from mobilebert.reporting.plan import DEVICES, Device, plan, this_machine
from mobilebert.study.graph import build_graph
from mobilebert.study.recipe import Finetune, Pretrain
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError
from mobilebert.util.machine import cores

PAPER = Study(schema=1, description="the paper")


@pytest.fixture(autouse=True)
def one_code_hash(monkeypatch):
    """Skip the code's hash: a plan does not depend on it, and it takes longer than the plan."""
    monkeypatch.setattr("mobilebert.study.code_hash.code_hash", lambda stage: "")


def rows(study, device="h100"):
    lines = plan(study, build_graph(study), device).splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("job "))
    return {parts[0]: parts[1:] for parts in (line.split() for line in lines[head + 1 :])}


def test_tokens_and_flops_of_pre_training_bert_base():
    """10 steps take 4 x 128 tokens each. Forward FLOPs a token are 2 x (12 x (4 x 768^2 + 2 x 768 x
    3072 + 2 x 128 x 768)) for the encoder and, for 15 % of the tokens, 2 x (768^2 + 768 x 30522)
    for the head; training takes three times that."""
    settings = Pretrain(steps=10, warmup_steps=1, batch_size=4, length=128)
    study = Study(schema=1, description="d", pretrain=settings, run={"bert-base": ()}, quantize={})
    tokens, flops, hours = rows(study)["pretrain/bert-base"][:3]
    encoder = 2 * 12 * (4 * 768**2 + 2 * 768 * 3072 + 2 * 128 * 768)
    expected = 5120 * 3 * (encoder + 0.15 * 2 * (768**2 + 768 * 30522))
    assert float(tokens) == 5120
    assert float(flops) == pytest.approx(expected, rel=0.005)
    assert hours == "<0.0001"


def test_fine_tuning_counts_seeds_epochs_and_rows():
    """RTE: 2,490 training rows, 277 for validation, length 128, 3 epochs, 2 seeds."""
    study = Study(
        schema=1, description="d", finetune=Finetune(search="none", seeds=(0, 1)), run={"mobilebert": ("rte",)}, quantize={}
    )
    assert float(rows(study)["finetune/mobilebert/rte"][0]) == pytest.approx(2 * 128 * (3 * 2490 + 277), rel=0.005)
    limited = Finetune(search="none", seeds=(0,), train_rows=100, eval_rows=10)
    study = Study(schema=1, description="d", finetune=limited, run={"mobilebert": ("rte",)}, quantize={})
    assert float(rows(study)["finetune/mobilebert/rte"][0]) == pytest.approx(128 * (3 * 100 + 10), rel=0.005)


def test_the_teachers_forward_pass_is_counted():
    found = rows(PAPER)
    bare = rows(Study(schema=1, description="d", run={"mobilebert-bare": ()}, quantize={}))
    student, distilled = float(bare["pretrain/mobilebert-bare"][1]), float(found["distill/mobilebert"][1])
    teacher = float(found["pretrain/ib-bert-large"][1]) / 3  # its training is three forward passes on as many tokens
    assert distilled == pytest.approx(student + teacher, rel=0.01)


def test_hours_follow_the_devices_peak():
    h100, a100 = rows(PAPER), rows(PAPER, "a100")
    hours = [float(found["pretrain/ib-bert-large"][2].replace(",", "")) for found in (h100, a100)]
    assert hours[1] / hours[0] == pytest.approx(DEVICES["h100"].fp32 / DEVICES["a100"].fp32, rel=0.01)
    flops = float(h100["pretrain/ib-bert-large"][1])
    assert hours[0] == pytest.approx(flops / 67e12 / DEVICES["h100"].wide / 3600, rel=0.01)


def test_the_total_is_the_sum_and_the_jobs_are_counted():
    found = rows(PAPER)
    total = found.pop("total")
    assert float(total[1]) == pytest.approx(sum(float(row[1]) for row in found.values() if row[1] != "–"), rel=0.01)
    text = plan(PAPER, build_graph(PAPER), "h100")
    assert f"{len(found)} jobs; estimates" in text


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(UserError, match=r"unknown device 'tpu'; allowed: cpu-2-cores"):
        plan(PAPER, build_graph(PAPER), "tpu")


def test_a_cpu_study_is_planned_for_this_machine(monkeypatch):
    """Wide blocks reach half of the measured peak, narrow ones a quarter; BERT_BASE is wide."""
    monkeypatch.setattr("mobilebert.reporting.plan.this_machine", lambda: Device(0.25, 0.25, 0.5, 0.25, "a stand-in"))
    settings = Pretrain(steps=200_000, warmup_steps=1, batch_size=4, length=128)
    study = Study(schema=1, description="d", device="cpu", pretrain=settings, run={"bert-base": ()}, quantize={})
    found = rows(study, None)["pretrain/bert-base"]
    assert float(found[2]) == pytest.approx(float(found[1]) / 0.25e12 / 0.5 / 3600, rel=0.02)
    text = plan(study, build_graph(study))
    assert text.startswith("study study: ")
    assert "estimates for cpu, not measurements; rough: " in text
    assert "0.25 in fp32 (a stand-in)" in text
    assert "estimates for h100" in plan(PAPER, build_graph(PAPER))


def test_the_measured_peak_is_that_of_the_machines_products(monkeypatch):
    """Each reading advances the clock by 0.05 s, the time of a product of 2 x 1024^3 FLOPs."""
    now = iter(step / 20 for step in range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    found = this_machine()
    assert found.fp32 == found.bf16 == pytest.approx(2 * 1024**3 / 0.05 / 1e12)
    assert next(now) < 0.6
    assert f"on {cores()} cores" in found.origin


@pytest.mark.parametrize("arguments", [["smoke"], ["--study", "smoke"], ["--study=smoke"], []])
def test_plan_takes_its_study_as_every_command_does(capsys, arguments):
    assert main(["plan", *arguments, "--device", "h100"]) == 0
    assert capsys.readouterr().out.startswith("study smoke: 41 jobs; estimates for h100")
    assert main(["plan", "smoke", "--study", "cpu"]) == 2
    assert capsys.readouterr().err == "mobilebert: plan: two studies, smoke and --study cpu; one is allowed\n"


def test_memory_of_training():
    """Pre-training IB-BERT_LARGE takes 16 bytes a parameter; distillation adds 4 for each parameter
    of the teacher to the student's 16."""
    found = rows(PAPER)
    student, teacher = cost(preset("mobilebert"), 512), cost(preset("ib-bert-large"), 512)
    assert float(found["pretrain/ib-bert-large"][3]) == pytest.approx(16 * teacher.parameters / 2**30, abs=5e-4)
    expected = (16 * student.parameters + 4 * teacher.parameters) / 2**30
    for stage in ("distill", "transfer"):
        state, per_token = found[f"{stage}/mobilebert"][3:]
        assert float(state) == pytest.approx(expected, abs=5e-4)
        assert float(per_token) == pytest.approx(student.saved_bytes_per_token / 2**20, abs=5e-4)
    assert found["latency"][3:] == found["data"][3:] == ["–", "–"]
    assert len(found["total"]) == 3
    half = Study(schema=1, description="d", pretrain=Pretrain(precision="bf16"))
    both = [float(rows(study)["pretrain/ib-bert-large"][4]) for study in (PAPER, half)]
    assert both[0] == pytest.approx(2 * both[1], abs=2e-3)


def test_a_time_budget_sets_the_hours_and_limits_the_tokens():
    without = rows(PAPER)["pretrain/ib-bert-large"]
    study = PAPER.model_copy(update={"pretrain": PAPER.pretrain.model_copy(update={"max_minutes": 600.0})})
    tokens, flops, hours = rows(study)["pretrain/ib-bert-large"][:3]
    assert float(hours) == 10
    share = 10 / float(without[2].replace(",", ""))
    assert [float(tokens), float(flops)] == pytest.approx([float(x) * share for x in without[:2]], rel=0.02)
