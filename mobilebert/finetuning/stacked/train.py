"""Fine-tune several trials of one shape as a stack: a step trains all of them.

Each trial has a separate batch, learning rate, dropout, clipping and end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.data.examples import Examples
from mobilebert.finetuning.search import Trial
from mobilebert.finetuning.stacked.model import Feed, Stack, feed, optimizer_of
from mobilebert.finetuning.task import BagOfEmbeddings, make_plan
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.cost import cost
from mobilebert.modeling.encoder import MobileBertPreTrainedModel
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.study.tasks import TASKS
from mobilebert.training import checkpoint
from mobilebert.training.batches import ahead, digest
from mobilebert.training.loop import CURVE_POINTS
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import Diverged
from mobilebert.util.progress import Speed, bar, peak_flops

# Five float32 numbers a weight: itself, its gradient twice (autograd's pieces and the whole), two
# moments.
WEIGHT_BYTES = 4 * 5
USABLE = 0.8  # of a device's memory; the rest is for dropout masks, padding, kernels' work space, fragmentation


def most(architecture: Mapping, batch_size: int, length: int, memory: int) -> int:
    """Return how many trials of a model fit into `memory` bytes at once, at least 1.

    Return 1 if the model's cost is not known.
    """
    if architecture["model_type"] not in ("mobilebert", "bert"):
        return 1
    known = cost(architecture, length)
    each = WEIGHT_BYTES * known.parameters + known.saved_bytes_per_token * batch_size * length
    return max(1, int(USABLE * memory / each))


@dataclass
class Member:
    """One trial of a stack: its name (also of its curves), its task and its peak learning rate."""

    name: str
    task: TrainingPlan
    learning_rate: float


def losses(task_name: str, out: Mapping[str, torch.Tensor], fed: Feed) -> torch.Tensor:
    """Return `finetuning.task.loss` of each model of a stack, (K,)."""
    task = TASKS[task_name]

    def target(name: str) -> torch.Tensor:
        found = fed.batch[name]
        return found.expand(len(fed.rows), -1) if fed.is_shared else found

    def crossed(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float().flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)

    if task.is_squad:
        inside = fed.inside
        spans = [
            crossed(logits if inside is None else logits.masked_fill(inside[:, None] == 0, -math.inf), target(f"{end}_positions"))
            for end, logits in (("start", out["start_logits"]), ("end", out["end_logits"]))
        ]
        rows = (spans[0] + spans[1]) / 2
    elif task.is_regression:
        rows = (out["logits"].float()[..., 0] - target("labels")).square()
    else:
        rows = crossed(out["logits"], target("labels"))
    real = fed.real_rows
    return rows.mean(1) if real is None else (rows * real).sum(1) / real.sum(1)


def stack_of(models: Sequence[nn.Module], members: Sequence[Member], task_name: str, device: str) -> Stack | None:
    """Return the models as a stack, with the weights that get a gradient on the first batch.

    Return None if vmap cannot run the model (its control flow depends on the data), or if models of
    another family have separate batches: we cannot tell which dimension holds the tokens, to cut
    them for dropout. The first batch is tried before any training.
    """
    first = _feed(members, 0, device)
    if not (first.is_shared or isinstance(models[0], MobileBertPreTrainedModel | BagOfEmbeddings)):
        return None
    parameters = dict(models[0].named_parameters())
    learnt = [name for name, value in parameters.items() if value.requires_grad]
    alone = {key: value.to(device) for key, value in members[0].task.batch(0).items()}
    loss = members[0].task.loss(alone, 0)["loss"]
    gradients = torch.autograd.grad(loss, [parameters[name] for name in learnt], allow_unused=True)
    stack = Stack(models, [name for name, value in zip(learnt, gradients, strict=True) if value is not None])
    try:
        losses(task_name, stack(first, [0] * len(models)), first)
    except RuntimeError as error:
        if not str(error).startswith(("vmap:", "Batching rule")):
            raise
        return None
    return stack


def _feed(members: Sequence[Member], step: int, device: str) -> Feed:
    batches = {}
    for member in members:
        if member.task.seed not in batches:
            batches[member.task.seed] = member.task.batch(step)
    if len(batches) == 1:
        batch = batches[members[0].task.seed]
        rows, length = batch["input_ids"].shape
        found = Feed(batch, [rows] * len(members), [length] * len(members))
    else:
        found = feed([batches[member.task.seed] for member in members])
    return found.pin_memory() if device == "cuda" else found


def fit(
    context: JobContext,
    trials: Sequence[Trial],
    new: Callable[[Trial], nn.Module],
    examples_of: Callable[[Trial], Examples],
    setting: FinetuneConfig,
    device: str,
) -> Callable[[Trial], nn.Module] | None:
    """Train trials that differ in learning rate and seed alone.

    Return a function that returns the trained model of a trial or raises Diverged. Return None,
    before any step, if the models cannot be stacked.
    new: returns a trial's model before training, which depends on its seed alone.
    """
    models = {trial.seed: new(trial) for trial in trials}
    members = []
    for trial in trials:
        task = make_plan(examples_of(trial), models[trial.seed], setting.model_copy(update=trial.setting), trial.seed)
        members.append(Member(trial.name, task, trial.learning_rate))
    stack = stack_of([models[trial.seed] for trial in trials], members, setting.task, device)
    if stack is None:
        return None
    train(context, stack, members, setting.task, setting.weight_decay, device)

    def trained(trial: Trial) -> nn.Module:
        place = trials.index(trial)
        if problem := reason(stack, members, place):
            raise Diverged(problem)
        model = new(trial)
        stack.copy_to(model, place)
        return model

    return trained


def key_of(members: Sequence[str]) -> str:
    """Return the name of a stack's saved state, which is different for another set of trials."""
    return f"stack-{hashlib.sha256(' '.join(members).encode()).hexdigest()[:12]}"


def train(context: JobContext, stack: Stack, members: Sequence[Member], task_name: str, weight_decay: float, device: str) -> None:
    """Train every model of the stack to the end, from the stack's last saved state if there is one.

    The members' tasks differ in seed and learning rate alone. The curves and details that
    `loop.train` writes to `context` are written for each member under its name. If a member's loss
    or gradient is not finite, its weights do not change from then on, and the others are not
    affected: see `stack.ended` and `reason`.
    """
    first, names = members[0].task, [member.name for member in members]
    key = key_of(names)
    path, fingerprint = context.state / f"{key}.safetensors", f"{context.job.fingerprint}:{key}"
    optimizer = optimizer_of(stack, weight_decay)
    start, used = checkpoint.load(path, stack, optimizer, fingerprint)
    for name in names:
        context.resume(name, start)
    speed, pace = Speed(peak_flops(device)), checkpoint.Pace()
    going = (stack.ended[:, 0] < 0).tolist()
    with bar(first.steps, f"{context.job.id} {len(members)} runs", start) as progress:
        steps = range(start, first.steps) if any(going) else ()
        for step, fed in enumerate(speed.waiting(ahead(lambda step: _feed(members, step, device), steps)), start):
            seeds = [(member.task.seed * 1_000_003 + step) % 2**63 for member in members]  # as in `loop.train`
            fed = fed.to(device)
            with torch.autocast(device, torch.bfloat16, enabled=first.precision == "bf16"):
                found = losses(task_name, stack(fed, seeds), fed)
            found.sum().backward()
            stack.zero_padding_gradients()
            norms = _norms(stack)
            values, lengths = torch.stack([found.detach().float(), norms]).tolist()  # the only wait for the device in a step
            for index, (value, length) in enumerate(zip(values, lengths, strict=True)):
                if going[index] and not (math.isfinite(value) and math.isfinite(length)):
                    going[index] = False
                    stack.ended[index] = torch.tensor([step, value, length])
            _clip(stack, norms, first.clip_norm, going)
            rates = [member.learning_rate * member.task.rate(step) * on for member, on in zip(members, going, strict=True)]
            rates = torch.tensor(rates, device=device)
            for group in optimizer.param_groups:
                group["lr"] = rates
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rows, length = fed.batch["input_ids"].shape[-2:]
            per_token = first.flops_per_token
            flops = None if per_token is None else len(members) * rows * length * per_token(step, length)
            speed.step(rows * length, flops)  # the tokens of one trial, as if trained alone; the FLOPs of all, for MFU
            progress.update()
            over = step + 1 == first.steps or not any(going)
            if step % max(1, first.steps // CURVE_POINTS) == 0 or over:
                points = {f"{name}_loss": value for name, value, on in zip(names, values, going, strict=True) if on}
                context.log(step, **points)
                progress.set_postfix_str(f"{len(points)} going on, {speed}", refresh=False)
            # Save after the last step of a short stack too: scoring all of its trials takes long,
            # and a kill meanwhile would lose each of them.
            if over or (step + 1) % first.checkpoint_every == 0 or pace.is_due():
                with pace.saving():
                    checkpoint.save(path, stack, optimizer, step + 1, fingerprint, first.steps, used + speed.seconds)
            if over:
                break
    for name, on in zip(names, going, strict=True):
        if on:
            figures = speed.figures() if speed.steps else {}
            context.details |= {f"{name}_{key}": value for key, value in figures.items()}
            context.details |= {f"{name}_steps": first.steps, f"{name}_split": {"processes": 1, "accumulate": 1}}


def reason(stack: Stack, members: Sequence[Member], index: int) -> str | None:
    """Return why a member of a trained stack has diverged; None if it has not."""
    step, value, length = stack.ended[index].tolist()
    if step < 0:
        return None
    task = members[index].task
    return (
        f"loss {value}, gradient norm {length} at step {int(step)} of {task.steps}, batch {digest(task.batch(int(step)))}; "
        f"beside {len(members) - 1} other runs"
    )


@torch.no_grad()
def _norms(stack: Stack) -> torch.Tensor:
    """Return the norm of each model's gradient, (K,)."""
    gradients = (parameter.grad for parameter in stack.parameters())
    return torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients if gradient is not None]).norm(dim=0)


@torch.no_grad()
def _clip(stack: Stack, norms: torch.Tensor, most: float, going: Sequence[bool]) -> None:
    """Clip each model's gradient to norm `most`, as `clip_grad_norm_` does.

    Zero the gradient of a model that has ended: scaling does not make it finite.
    """
    scale = (most / (norms + 1e-6)).clamp(max=1.0)
    for parameter in stack.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))
        for index, on in enumerate(going):
            if not on:
                parameter.grad[index] = 0
