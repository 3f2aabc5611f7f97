"""Train K models of one shape as one stack: one kernel does the work of K.

Every trained weight has a leading dimension K, and `torch.func.vmap` runs the model's code. vmap
would split three operations into slow ones, or draw other numbers; they are replaced here:

- Dropout, also that of attention, is drawn model by model, from a generator with the model's seed
  and in the shape of the model's batch: a model gets the same masks in a stack as alone.
- A lookup is one lookup in the K tables laid end to end. Beyond a model's length it gives zeros:
  the trigram input sees zeros at the end of a batch. The attention mask hides these tokens from all
  other layers.
- Attention without dropout is one call of the fused kernel on K times the rows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from mobilebert.finetuning.task import inputs_of
from mobilebert.training.batches import Batch
from mobilebert.training.optim import AdamW, is_excluded

OUTPUTS = ("logits", "start_logits", "end_logits")


@dataclass
class Feed:
    """The batches of K models at a step.

    batch: tensors (B, ...) that all models share, or (K, B, ...), padded to the most rows and
        tokens.
    rows, lengths: of each model's batch. A padding row repeats the model's first row and has no
        weight in its loss.
    """

    batch: Batch
    rows: list[int]
    lengths: list[int]

    @property
    def is_shared(self) -> bool:
        """Return whether all models read the same batch."""
        return self.batch["input_ids"].dim() == 2

    def to(self, device: str) -> Feed:
        """Return the batches on a device."""
        return Feed({key: value.to(device, non_blocking=True) for key, value in self.batch.items()}, self.rows, self.lengths)

    def pin_memory(self) -> Feed:
        """Return the batches in pinned memory, which `to` copies without waiting."""
        return Feed({key: value.pin_memory() for key, value in self.batch.items()}, self.rows, self.lengths)

    @functools.cached_property
    def real_rows(self) -> torch.Tensor | None:
        """Return (K, B): 1 for a row of the model's batch, 0 for padding; None without padding."""
        return self._within(self.rows, self.batch["input_ids"].shape[-2])

    @functools.cached_property
    def inside(self) -> torch.Tensor | None:
        """Return (K, T): 1 for a token within the model's length, else 0; None without padding."""
        return self._within(self.lengths, self.batch["input_ids"].shape[-1])

    def _within(self, sizes: list[int], most: int) -> torch.Tensor | None:
        if min(sizes) == most:
            return None
        device = self.batch["input_ids"].device
        return (torch.arange(most, device=device) < torch.tensor(sizes, device=device)[:, None]).float()


def feed(batches: Sequence[Batch]) -> Feed:
    """Return the batches of K models at a step, padded to one shape."""
    rows = [len(batch["input_ids"]) for batch in batches]
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    stacked = {}
    for key in batches[0]:
        parts = []
        for batch, count, length in zip(batches, rows, lengths, strict=True):
            part = batch[key]
            if part.dim() == 2:
                part = F.pad(part, (0, max(lengths) - length))
            parts.append(torch.cat([part, part[:1].expand(max(rows) - count, *part.shape[1:])]))
        stacked[key] = torch.stack(parts)
    return Feed(stacked, rows, lengths)


class Draws:
    """One generator per model; it replaces the device's generator while that model draws."""

    def __init__(self, seeds: Sequence[int], device: str):
        self.seeds, self.device = seeds, torch.cuda if device == "cuda" else torch

    @functools.cached_property
    def states(self) -> list[torch.Tensor]:
        """Return the state of each model's generator, at first as its seed sets it."""
        found = []
        for seed in self.seeds:
            torch.manual_seed(seed)
            found.append(self.device.get_rng_state())
        return found

    @contextlib.contextmanager
    def of(self, index: int) -> Iterator[None]:
        """Let the code inside the block draw from a model's generator."""
        self.device.set_rng_state(self.states[index])
        yield
        self.states[index] = self.device.get_rng_state()


class Stack(nn.Module):
    """The trained weights of K models; `forward` returns the outputs of all of them.

    trained: names of the parameters that get a gradient. The others are those of the first model.

    Each embedding table is one parameter (K, rows, width). All other weights are in two parameters
    (K, numbers), one with weight decay and one without, so a few kernels clip and update them.
    `ended` (K, 3): the step, loss and gradient norm at which a model diverged, -1 if it has not;
    after that step its weights do not change.
    """

    def __init__(self, models: Sequence[nn.Module], trained: Sequence[str]):
        super().__init__()
        self._template = [models[0]]  # in a list: its weights are not this module's
        tables = {f"{name}.weight": module for name, module in models[0].named_modules() if isinstance(module, nn.Embedding)}
        self.tables = {name.replace(".", "/"): tables[name].padding_idx for name in trained if name in tables}
        self.members: dict[str, list[str]] = {}  # parameter of this module -> names in a model
        for name in trained:
            table = name.replace(".", "/")
            key = table if table in self.tables else "excluded" if is_excluded(name) else "decayed"
            self.members.setdefault(key, []).append(name)
        weights = [dict(model.named_parameters()) for model in models]
        self.shapes = {name: weights[0][name].shape for name in trained}
        for key, names in self.members.items():
            flat = torch.stack([torch.cat([own[name].detach().flatten() for name in names]) for own in weights])
            self.register_parameter(key, nn.Parameter(flat.unflatten(1, self.shapes[names[0]]) if key in self.tables else flat))
        device = next(models[0].parameters()).device
        self.register_buffer("ended", torch.full((len(models), 3), -1.0, dtype=torch.float64, device=device))

    ended: torch.Tensor

    def __len__(self) -> int:
        return len(self.ended)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return every trained weight (K, ...) by its name in a model."""
        found = {}
        for key, names in self.members.items():
            flat = getattr(self, key)
            if key in self.tables:
                found[names[0]] = flat
                continue
            pieces = flat.split([self.shapes[name].numel() for name in names], dim=1)
            found |= {name: piece.unflatten(1, self.shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return found

    def forward(self, fed: Feed, seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the model's OUTPUTS, (K, B, ...) each. seeds: of the models' dropout."""
        template = self._template[0]

        def one(weights: dict, inputs: dict) -> dict:
            out = functional_call(template, weights, (), inputs)
            return {key: out[key] for key in OUTPUTS if key in out}

        with _Together(fed, Draws(seeds, self.ended.device.type)):
            together = vmap(one, in_dims=(0, None if fed.is_shared else 0), randomness="error")
            return together(self.weights(), inputs_of(template, fed.batch))

    @torch.no_grad()
    def zero_padding_gradients(self) -> None:
        """Zero the gradient of the tables' padding rows, as a lookup with `padding_idx` does."""
        for key, row in self.tables.items():
            if row is not None:
                getattr(self, key).grad[:, row] = 0

    @torch.no_grad()
    def copy_to(self, model: nn.Module, index: int) -> None:
        """Copy the weights of one model of the stack into `model`."""
        own = dict(model.named_parameters())
        for name, value in self.weights().items():
            own[name].copy_(value[index])


def optimizer_of(stack: Stack, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW with a tensor (K,) as learning rate."""
    groups = [
        {"params": [getattr(stack, key)], "weight_decay": 0.0 if all(map(is_excluded, names)) else weight_decay}
        for key, names in stack.members.items()
    ]
    return _AdamW(groups, torch.zeros(len(stack)))


class _AdamW(AdamW):
    def _apply(self, parameters, update, rate, group):
        for parameter, change in zip(parameters, update, strict=True):
            parameter.addcmul_(change, rate.view(-1, *[1] * (parameter.dim() - 1)), value=-1)


# --- the operations that vmap must not run


class _Physical(torch.autograd.Function):
    """Call `function` on the tensors beneath vmap, (K, ...) each; it returns (K, ...).

    Autograd records the operations that `function` calls.
    """

    @staticmethod
    def forward(function, *tensors):
        raise NotImplementedError  # called only if no tensor has the dimension K

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, function, *tensors):
        whole = [
            tensor.expand(info.batch_size, *tensor.shape) if place is None else tensor.movedim(place, 0)
            for tensor, place in zip(tensors, in_dims[1:], strict=True)
        ]
        return function(*whole), 0


class _Together(TorchFunctionMode):
    """The replaced lookups, dropout and attention of a stack on `fed`, drawn from `draws`."""

    def __init__(self, fed: Feed, draws: Draws):
        super().__init__()
        self.fed, self.draws = fed, draws
        self.rows, self.length = fed.batch["input_ids"].shape[-2:]

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is F.embedding:
            return self.embedding(*arguments, **options)
        if function is F.dropout:
            return self.dropout(*arguments, **options)
        if function is F.scaled_dot_product_attention:
            return self.attention(*arguments, **options)
        return function(*arguments, **options)

    def embedding(self, ids, weight, padding_idx=None, **options):
        """Look up in all tables at once; `Stack.zero_padding_gradients` handles the padding row."""

        def lookup(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            count, rows = weight.shape[:2]
            first = torch.arange(0, count * rows, rows, device=ids.device)
            found = F.embedding(ids + first.view(-1, *[1] * (ids.dim() - 1)), weight.flatten(0, 1))
            inside = self.fed.inside
            return found if inside is None or ids.dim() != 3 else found * inside[:, None, :, None]

        return _Physical.apply(lookup, ids, weight)

    def dropout(self, x, p=0.5, training=True, inplace=False):
        """Drop out model by model."""
        if not (training and p):
            return x

        tokens = {3: (1,), 4: (2, 3)}.get(x.dim(), ())  # hidden states, attention probabilities; a pooled vector has none

        def drop(x: torch.Tensor) -> torch.Tensor:
            return self.one_by_one(lambda own: F.dropout(own, p), [tokens], x)

        return _Physical.apply(drop, x)

    def attention(self, query, key, value, attn_mask=None, dropout_p=0.0, **options):
        """Attend in one call for all models, or model by model if dropout is drawn."""
        given, tokens = [query, key, value], [(2,)] * 3
        if attn_mask is not None:
            given, tokens = [*given, attn_mask], [*tokens, (2, 3)]

        def attend(*tensors: torch.Tensor) -> torch.Tensor:
            if dropout_p:
                call = functools.partial(F.scaled_dot_product_attention, dropout_p=dropout_p, **options)
                return self.one_by_one(call, tokens, *tensors)
            flat: Any = [x.expand(-1, self.rows, *x.shape[2:]).flatten(0, 1) for x in tensors]
            return F.scaled_dot_product_attention(*flat, **options).unflatten(0, (-1, self.rows))

        return _Physical.apply(attend, *given)

    def one_by_one(self, function: Callable[..., torch.Tensor], tokens: list[tuple], *tensors: torch.Tensor) -> torch.Tensor:
        """Call `function` for each model and return the results, stacked (K, B, ...).

        tensors: (K, B, ...). Each model's are cut to the model's rows and, in their dimensions
        `tokens`, to its length. A result is padded with zeros to the size of the first tensor.
        """
        found = []
        for index, (rows, length) in enumerate(zip(self.fed.rows, self.fed.lengths, strict=True)):
            own = [x[index] for x in tensors]
            shape = own[0].shape
            if (rows, length) != (self.rows, self.length):
                own = [_cut(x, rows, length, places) for x, places in zip(own, tokens, strict=True)]
            with self.draws.of(index):
                out = function(*own)
            missing = [(0, full - now) for full, now in zip(shape, out.shape, strict=True)]
            found.append(F.pad(out, [size for pair in reversed(missing) for size in pair]) if out.shape != shape else out)
        return torch.stack(found)


def _cut(x: torch.Tensor, rows: int, length: int, tokens: tuple[int, ...]) -> torch.Tensor:
    x = x[:rows]
    for place in tokens:
        x = x.narrow(place, 0, min(length, x.shape[place]))  # a mask has size 1 in the dimension of queries
    return x
