"""Steps replayed from recorded graphs.

On the CPU a recorder stands in for CUDA and repeats the same operations on the same memory.
"""

import contextlib
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import Recorder, tensors_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.distillation.objective import distillation_loss, teacher_guide
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, layer_of
from mobilebert.jobs.context import JobContext
from mobilebert.pretraining import objective
from mobilebert.stages import transfer
from mobilebert.study.graph import build_graph
from mobilebert.study.job import Job
from mobilebert.study.load import load_study
from mobilebert.study.stage_config import DistillConfig, LayerwiseConfig
from mobilebert.training import loop, optim
from mobilebert.training.accelerated import cuda_graphs
from mobilebert.training.accelerated.cuda_graphs import WARM_UP
from mobilebert.training.batches import digest, fill_up, split
from mobilebert.training.distributed.processes import World
from mobilebert.training.distributed.sharding import Shards
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.training.stepper import Stepper
from mobilebert.util.errors import Diverged, UserError

torch.set_num_threads(1)
LENGTH, ROWS, LAYERS = 12, 4, 2
SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 12,
    "max_position_embeddings": LENGTH,
}
STUDENT = {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2}
TEACHER = {"embedding_size": 8, "intra_bottleneck_size": 12, "num_feedforward_networks": 1, "normalization_type": "layer_norm"}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
STEPS = 20
KINDS = {
    "pretrain": "lamb",
    "dropout": "adamw",
    "bert": "lamb",
    "pkt": "lamb",
    "frozen": "adamw",
    "jkt": "lamb",
    "distill": "lamb",
    "released": "adamw",
    "akt": "adamw",
}


def batch(step):
    """Return rows of 12 tokens, padded at every other step, with 1 to 3 masked tokens each."""
    generator = torch.Generator().manual_seed(step)
    real = torch.randint(5, LENGTH, (ROWS,), generator=generator) if step % 2 else torch.full((ROWS,), LENGTH)
    ids = torch.randint(1, 31, (ROWS, LENGTH), generator=generator)
    chosen = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    for row, count in enumerate(torch.randint(1, 4, (ROWS,), generator=generator).tolist()):
        chosen[row, 1 : 1 + count] = True
    positions = chosen.flatten().nonzero().flatten()
    found = {
        "input_ids": ids,
        "token_type_ids": torch.randint(2, (ROWS, LENGTH), generator=generator),
        "attention_mask": (torch.arange(LENGTH) < real[:, None]).long(),
        "masked_positions": positions,
        "masked_labels": ids.flatten()[positions],
        "next_sentence_label": torch.randint(2, (ROWS,), generator=generator),
    }
    if found["attention_mask"].all():
        del found["attention_mask"]
    return found


def stopped(steps):
    """Return batches that raise KeyboardInterrupt at the first of `steps`, then at the next."""

    def batch_at(step):
        if step in steps[:1]:
            del steps[0]
            raise KeyboardInterrupt
        return batch(step)

    return batch_at


def model(seed, **fields):
    torch.manual_seed(seed)
    return MobileBertForPreTraining(MobileBertConfig(**SIZES | fields)).eval()


def workload(kind, optimizer="lamb", device="cpu", dtype=torch.float32, **changes):
    """Return a student, its optimizer and its task."""
    recipe = "released" if kind == "released" else "paper"
    options = DistillConfig.model_construct(recipe=recipe, alpha=0.3, temperature=1.0)
    lessons = {"losses": ("fmt", "at"), "factors": None, "steps": STEPS, "warmup_steps": 2, "recipe": recipe}
    group, more = (lambda name: None), {}
    if kind == "bert":
        torch.manual_seed(1)
        student = objective.new_model({"model_type": "bert", **SIZES}).eval().to(device, dtype)
    else:
        student = model(1, **STUDENT, **(DROPOUT if kind == "dropout" else {})).to(device, dtype).train(kind == "dropout")
    if kind in ("pretrain", "dropout", "bert"):
        more["loss"] = lambda batch, step: objective.loss(student, batch)
    else:
        teacher = model(2, **TEACHER).to(device, dtype).requires_grad_(False)
        copy_outside_encoder(student, teacher)
    if kind in ("pkt", "frozen", "jkt"):
        strategy = {"strategy": "jkt" if kind == "jkt" else "pkt", "lower_layers": 0.0 if kind == "frozen" else 0.1}
        lesson, group = Transfer(student, teacher, LayerwiseConfig(**lessons | strategy)), layer_of
        more = {"loss": lesson.loss, "rate": lesson.rate, "stage": lesson.stage}
    elif kind in ("distill", "released", "akt"):
        lesson = Transfer(student, teacher, LayerwiseConfig.model_construct(**lessons, strategy="akt")) if kind == "akt" else None
        more["loss"] = lambda batch, step: distillation_loss(
            student, teacher_guide(teacher, batch, options, lesson), batch, options, lesson
        )
    made = optim.make(student, optimizer, 0.02, 0.01, group=group)
    if "stage" in more:
        more["prepare"] = lesson.prepare(made)
    task = {
        "steps": STEPS,
        "batch": batch,
        "rate": lambda step: 1 / (1 + step),
        "seed": 3,
        "checkpoint_every": 5,
        "predictions": 3,
    }
    return student, made, TrainingPlan(**task | more | changes)


def run_in(folder):
    run = JobContext(Job("pretrain", "toy", {}, (), "f" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


def trained(folder, kind, optimizer="lamb", device="cpu", **changes):
    """Return the job's context, the student's weights and those it began with."""
    student, made, task = workload(kind, optimizer, device, **changes)
    before, run = weights(student), run_in(folder)
    train(run, student, made, task, device=device)
    return run, weights(student), before


def weights(model):
    return torch.cat([parameter.detach().flatten().double().cpu() for parameter in model.parameters()])


def agree(found, expected, tolerance=1e-9):
    """Check that both trainings learnt something and have equal weights and equal curves."""
    (run, after, before), (whole, other, _) = found, expected
    assert (other - before).norm() > 0.1 * before.norm()
    assert (after - other).norm() < tolerance * other.norm()
    assert run.curves.keys() == whole.curves.keys()
    for key, points in whole.curves.items():
        (steps, values), (others, expected) = zip(*run.curves[key], strict=True), zip(*points, strict=True)
        assert steps == others
        assert values == pytest.approx(expected, rel=max(1e-5, 10 * tolerance))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Capture", Recorder)
    monkeypatch.setattr(Recorder, "log", [])
    return Recorder


@pytest.mark.parametrize(("kind", "optimizer"), KINDS.items())
def test_graphs_learn_the_same_as_eager_steps(tmp_path, recorder, kind, optimizer):
    """In float64: an update may divide by mere rounding, so float32 toys soon drift apart."""
    wide = {"optimizer": optimizer, "dtype": torch.float64}
    agree(trained(tmp_path / "graphs", kind, graph=True, **wide), trained(tmp_path / "steps", kind, **wide))
    stages = LAYERS if kind in ("pkt", "frozen") else 1
    assert recorder.log.count("record") == 2 * 2 * stages  # gradients and update, with a mask and without one
    assert recorder.log.count("warm") == 2 * 2 * stages * WARM_UP
    assert recorder.log.count("warm") + recorder.log.count("replay") == 2 * STEPS


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dropout", {"precision": "bf16", "steps": 12}),
        ("pkt", {}),
        ("distill", {"accumulate": 2, "steps": 12}),
    ],
)
def test_replayed_steps_equal_warm_up_steps_to_the_bit(tmp_path, recorder, monkeypatch, kind, changes):
    """After a kill a process warms up with other steps than before; the result is the same."""
    run, found, _ = trained(tmp_path / "graphs", kind, graph=True, **changes)
    assert "replay" in recorder.log
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graphs, "WARM_UP", STEPS)
        recorder.log.clear()
        whole, expected, _ = trained(tmp_path / "steps", kind, graph=True, **changes)
        assert set(recorder.log) == {"warm"}
    assert torch.equal(found, expected)
    assert run.curves == whole.curves
    stops = stopped([4, 9])  # before the first state, and between replays
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken", kind, graph=True, **changes, batch=stops)
    run, found, _ = trained(tmp_path / "broken", kind, graph=True, **changes)
    assert torch.equal(found, expected)
    assert run.curves == whole.curves


def test_micro_batches_from_graphs_learn_the_same_as_eager_steps(tmp_path, recorder):
    wide = {"optimizer": "lamb", "dtype": torch.float64, "accumulate": 3}
    agree(trained(tmp_path / "graphs", "distill", graph=True, **wide), trained(tmp_path / "steps", "distill", **wide))


def test_a_training_resumes_with_or_without_graphs(tmp_path, recorder):
    wide = {"optimizer": "lamb", "dtype": torch.float64}
    expected = trained(tmp_path / "whole", "pkt", **wide)

    for last, graph in ((9, True), (16, False)):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken", "pkt", graph=graph, batch=stopped([last]), **wide)
    agree(trained(tmp_path / "broken", "pkt", graph=True, **wide), expected)


def test_a_rare_shape_is_not_recorded(tmp_path, recorder):
    """It does not disturb the others either: three batches of two rows among those of four."""

    def some_short(step):
        found = batch(1 + 2 * step)
        if step not in (2, 9, 15):
            return found
        last = int((found["masked_positions"] < 2 * LENGTH).sum())
        return {key: value[: last if key.startswith("masked_") else 2] for key, value in found.items()}

    wide = {"optimizer": "lamb", "dtype": torch.float64, "batch": some_short}
    agree(trained(tmp_path / "graphs", "distill", graph=True, **wide), trained(tmp_path / "steps", "distill", **wide))
    assert recorder.log.count("record") == 2
    assert recorder.log.count("warm") == 2 * (WARM_UP + 3)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_a_replayed_step_that_is_not_finite_is_named_and_changes_no_weight(tmp_path, recorder, graph, poisoned):
    """The error names the unpadded batch by its hash, and the last state, as without graphs."""
    student, made, task = workload("pretrain")
    seen, last = {}, 15
    weight = student.mobilebert.embeddings.word_embeddings.weight
    factor = nn.Parameter(torch.zeros(()))  # the value of its root is finite, the slope is not
    made.add_param_group({"params": [factor]})

    def loss(batch, step):
        found = objective.loss(student, batch)
        bad = (batch["input_ids"] == 0).any().float()  # 1 in the one batch that has a [PAD]
        scale = 1 + (1 - bad).log() * 0 if poisoned == "loss" else 1
        extra = torch.where(bad > 0, factor, factor + 1).sqrt() * 0 if poisoned == "gradient" else 0
        return found | {"loss": found["loss"] * scale + extra}

    def batch_at(step):
        found = batch(step)
        if step == last:
            found["input_ids"][0, 0] = 0
        return found

    def prepare(step):
        seen[step] = weight.detach().clone()

    task = replace(task, loss=loss, batch=batch_at, prepare=prepare, graph=graph)
    run = run_in(tmp_path)
    with pytest.raises(Diverged) as caught:
        train(run, student, made, task)
    name = "train.safetensors"
    assert re.fullmatch(
        rf"loss .*, gradient norm .* at step {last} of {STEPS}, batch {digest(batch_at(last))}; "
        rf"last good state: {last} steps, {run.state / name}",
        str(caught.value),
    )
    assert "nan" in str(caught.value)
    assert torch.equal(weight, seen[last])
    assert torch.isfinite(weights(student)).all()


def test_rates_are_numbers_again_at_the_end(tmp_path, recorder):
    student, made, task = workload("pkt", graph=True)
    train(run_in(tmp_path), student, made, task)
    assert {group["lr"] for group in made.param_groups} == {0.02}


def test_the_transfer_program_tells_the_loop_its_masked_positions_and_stages(monkeypatch):
    """A row masks at most 15 % of 512 tokens; stages are the depths of progressive transfer."""
    study = load_study("paper")
    study = study.model_copy(update={"transfer": study.transfer.model_copy(update={"graph": True})})
    job = build_graph(study)["transfer/mobilebert"]
    job = replace(job, config={**job.config, "steps": STEPS})
    seen, run = [], SimpleNamespace(job=job, settings=job.settings, details={})
    monkeypatch.setattr(objective, "batches", lambda *arguments: None)
    monkeypatch.setattr(objective, "new_model", lambda architecture: model(1, **STUDENT))
    monkeypatch.setattr(transfer, "corpus_of", lambda run: None)
    monkeypatch.setattr(transfer, "device_of", lambda study: "cpu")
    monkeypatch.setattr(transfer, "teacher_of", lambda *arguments: model(2, **TEACHER))
    monkeypatch.setattr(transfer, "jobs_sharing_teacher", lambda run, study: contextlib.nullcontext([]))
    monkeypatch.setattr(
        transfer, "train_together", lambda run, others, prepare, device: seen.append(prepare(run, None)[2]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        transfer.main(run, study)
    assert (seen[0].graph, seen[0].predictions) == (True, 77)
    assert [seen[0].stage(place) for place in (0, 9, 10, 19)] == [1, 1, 2, 2]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "world", lambda: World(0, 2))
    with pytest.raises(UserError, match=r"^graph: true works in one process only, but torchrun started 2; set graph: false$"):
        trained(tmp_path, "pretrain", graph=True)


# --- masked positions that fill up


@settings(max_examples=25, deadline=None)
@given(
    step=st.integers(0, 10**6),
    parts=st.integers(1, 3),
    predictions=st.integers(3, 7),
    kind=st.sampled_from(["pretrain", "bert", "distill", "released"]),
)
def test_masked_positions_that_fill_up_change_no_loss_and_no_gradient(step, parts, predictions, kind):
    student, _, task = workload(kind, dtype=torch.float64)

    def learn(part):
        student.zero_grad()
        found = task.loss(part, 0)
        found["loss"].backward()
        return {key: value.item() for key, value in found.items()}, torch.cat([p.grad.flatten() for p in student.parameters()])

    for part in split(batch(step), parts):
        full = fill_up(part, predictions)
        assert len(full["masked_positions"]) == len(full["masked_labels"]) == predictions * len(part["input_ids"])
        (losses, gradients), (expected, others) = learn(full), learn(part)
        assert losses == pytest.approx(expected, rel=1e-6)
        assert (gradients - others).norm() <= 1e-6 * others.norm()


def test_micro_batches_without_or_with_more_masked_positions_are_not_filled_up():
    found = batch(0)
    plain = {"input_ids": found["input_ids"]}
    assert fill_up(plain, 3) is plain
    assert len(found["masked_positions"]) > ROWS
    assert fill_up(found, 1) is found


# --- faults that a recording refuses or gets wrong: the tests above must see them

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


# --- a step uses no tensor of the host: on the device "meta" tensors have no values to read


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


# --- the device itself


def test_capture_calls_torch_as_its_notes_prescribe(monkeypatch):
    """Warm-up on a side stream between two waits; recording on that stream, from one pool, strict
    only with its own thread."""
    said = []

    class Stream:
        def wait_stream(self, other):
            said.append((names[self], "waits for", names[other]))

    side, current = Stream(), Stream()
    names = {side: "side", current: "current"}

    @contextlib.contextmanager
    def within(name, *given, **options):
        said.append((name, *given, options))
        yield
        said.append(("end", name))

    class Graph:
        def replay(self):
            said.append("replay")

    for name, value in {
        "synchronize": lambda: said.append("synchronize"),
        "Stream": lambda: side,
        "current_stream": lambda: current,
        "graph_pool_handle": lambda: "pool",
        "stream": lambda stream: within(names[stream]),
        "CUDAGraph": Graph,
        "graph": lambda graph, **options: within(type(graph).__name__, **options),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    capture = cuda_graphs.Capture()
    assert capture.warm(lambda: said.append("work") or 1) == 1
    replay = capture.record(lambda: said.append("work") or [2])
    assert replay() is replay()
    warm = [("side", "waits for", "current"), ("side", {}), "work", ("end", "side"), ("current", "waits for", "side")]
    options = {"pool": "pool", "stream": side, "capture_error_mode": "thread_local"}
    assert said == ["synchronize", *warm, ("Graph", options), "work", ("end", "Graph"), "replay", "replay"]


def test_the_stages_share_one_side_stream(tmp_path, monkeypatch):
    """cuBLAS keeps a workspace for every stream; the pool of a finished stage is dropped."""
    made = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "synchronize": lambda: None,
        "Stream": lambda: made.append("stream") or stream,
        "current_stream": lambda: stream,
        "graph_pool_handle": lambda: made.append("pool"),
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda_graphs, "WARM_UP", STEPS)
    trained(tmp_path, "pkt", graph=True)
    assert made.count("stream") == 1
    assert made.count("pool") >= LAYERS


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@GPU
@pytest.mark.parametrize("kind", ["pretrain", "dropout", "bert", "pkt", "akt"])
def test_on_a_gpu_graphs_learn_the_same_as_eager_steps(tmp_path, kind):
    """Also after a stop in the middle. Only the order of sums differs; losses are float32."""
    wide = {"optimizer": "lamb", "dtype": torch.float64, "device": "cuda"}
    expected = trained(tmp_path / "steps", kind, **wide)
    agree(trained(tmp_path / "graphs", kind, graph=True, **wide), expected, 1e-5)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", kind, graph=True, batch=stopped([14]), **wide)
    agree(trained(tmp_path / "broken", kind, graph=True, **wide), expected, 1e-5)


@GPU
def test_on_a_gpu_compiled_blocks_are_recorded(tmp_path):
    """In bfloat16 the losses agree to its rounding."""
    options = {"device": "cuda", "precision": "bf16", "compile": True, "accumulate": 2, "steps": 10}
    runs = [trained(tmp_path / str(graph), "pretrain", graph=graph, **options)[0] for graph in (False, True)]
    first, second = ([value for _, value in run.curves["train_loss"]] for run in runs)
    assert second == pytest.approx(first, rel=0.02)
