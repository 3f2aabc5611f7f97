"""Simulate 8-bit products while a model learns: values take the steps of a grid of integers.

The released code does it for the input and the weights of every matrix product, and for the
attention scores. Gradients pass as if nothing had been rounded ("straight through"), but not where
a value lies outside the grid.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.deployment.requirements import CLIPPED
from mobilebert.modeling.folding import foldable
from mobilebert.modeling.layers import MobileBertSelfAttention
from mobilebert.util.errors import UserError

DECAY = 0.999  # of the moving average of an activation's range, as released
# Released: -127 to 127. Here half of it, as in the other int8 files: without VNNI, sums of two
# products could overflow 16 bits (see `quantize.quantize_int8`).
LARGEST_WEIGHT = 64
LARGEST_ENTRY = 127  # of a table that is looked up: nothing is summed
LEAST_SCORE, LARGEST_SCORE = -6.0, 60.0  # of attention, as released; the first is also that of padded keys
SMALLEST_SCALE = 1e-12  # of weights or activations that are all zero


class _Quantize(torch.autograd.Function):
    """Round to a grid and back. In an ONNX file this is QuantizeLinear and DequantizeLinear."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        limits, zero = torch.iinfo(zero_point.dtype), zero_point.to(x.dtype)
        steps = torch.round(x / scale) + zero  # halves go to the even step, as in QuantizeLinear
        ctx.save_for_backward((steps >= limits.min) & (steps <= limits.max))
        return (steps.clamp(limits.min, limits.max) - zero) * scale

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None

    @staticmethod
    def symbolic(g, x, scale, zero_point):
        steps = g.op("QuantizeLinear", x, scale, zero_point, axis_i=-1)
        return g.op("DequantizeLinear", steps, scale, zero_point, axis_i=-1).setType(x.type())


def quantized(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Return x rounded to scale * (step - zero_point), for the steps of zero_point's integer type.

    scale, zero_point: () for one grid, or (width,) for a grid for each entry of the last axis.
    The gradient of x is that of the result; it is 0 where the step is outside the type.
    """
    found: Any = _Quantize.apply(x, scale, zero_point)
    return found


class Grid(nn.Module):
    """The grid of an activation: 256 steps (uint8) from the lowest to the highest value.

    In training both ends follow those of the batches, as a moving average without a bias to its
    start. Zero is always a step. least: fixes the lowest value. most: the highest that is allowed.
    """

    low: torch.Tensor
    high: torch.Tensor
    batches: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, least: float | None = None, most: float | None = None):
        super().__init__()
        self.least, self.most = least, most
        for name in ("low", "high", "batches"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x on the grid. In training the grid takes account of x first."""
        if self.training:
            self._follow(x.detach())
        return quantized(x, self.scale, self.zero_point)

    def _follow(self, x: torch.Tensor) -> None:
        low, high = x.aminmax()
        if self.least is not None:
            low = torch.full_like(low, self.least)
        self.batches += 1
        share = (1 - DECAY) / (1 - DECAY**self.batches)  # 1 for the first batch
        self.low += share * (low.clamp(max=0) - self.low)
        self.high += share * (high.clamp(0, self.most) - self.high)
        self.scale.copy_(((self.high - self.low) / 255).clamp(min=SMALLEST_SCALE))
        self.zero_point.copy_(torch.round(-self.low / self.scale).clamp(0, 255))


class QuantizedLinear(nn.Linear):
    """A linear layer whose input and weights lie on grids; the weights' has a scale a column."""

    weight_scale: torch.Tensor
    weight_zero: torch.Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.grid = linear.weight, linear.bias, Grid()
        self.register_buffer("weight_scale", torch.ones(self.out_features))
        self.register_buffer("weight_zero", torch.zeros(self.out_features, dtype=torch.int8))
        self.measure()

    def measure(self) -> None:
        """Set the scales to those of the present weights."""
        largest = self.weight.detach().abs().amax(1)
        self.weight_scale.copy_((largest / LARGEST_WEIGHT).clamp(min=SMALLEST_SCALE))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return x W + b.

        Product and sum are two operations, and the product has three dimensions: ONNX Runtime does
        not run a Gemm, nor what it joins to one, in 8 bits.
        """
        if self.training:
            self.measure()
        weight = quantized(self.weight.t(), self.weight_scale, self.weight_zero)
        is_flat = input.dim() == 2
        product = torch.matmul(self.grid(input[None] if is_flat else input), weight)
        return (product[0] if is_flat else product) + self.bias


class QuantizedEmbedding(nn.Embedding):
    """A table on one grid."""

    weight_scale: torch.Tensor
    weight_zero: torch.Tensor

    def __init__(self, table: nn.Embedding):
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        self.weight = table.weight
        self.register_buffer("weight_scale", torch.ones(()))
        self.register_buffer("weight_zero", torch.zeros((), dtype=torch.int8))
        self.measure()

    def measure(self) -> None:
        """Set the scale to that of the present weights."""
        self.weight_scale.copy_((self.weight.detach().abs().amax() / LARGEST_ENTRY).clamp(min=SMALLEST_SCALE))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the rows of the table."""
        if self.training:
            self.measure()
        return F.embedding(input, quantized(self.weight, self.weight_scale, self.weight_zero), self.padding_idx)


class QuantizedSelfAttention(MobileBertSelfAttention):
    """Attention whose scores lie on a grid from -6 to at most 60; padded keys score -6."""

    def __init__(self, config):
        super().__init__(config)
        self.grid = Grid(LEAST_SCORE, LARGEST_SCORE)

    def forward(
        self,
        query_key_input: torch.Tensor,
        value_input: torch.Tensor,
        attention_mask: torch.Tensor | None,
        with_probabilities: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return context and probabilities, as `MobileBertSelfAttention`."""
        query, key = (self._split(linear(query_key_input)) for linear in (self.query, self.key))
        value = self._split(self.value(value_input))
        if attention_mask is not None:
            key = key.masked_fill((attention_mask == LEAST_SCORE).transpose(-1, -2), 0)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = self.grid(scores).softmax(dim=-1)
        context = F.dropout(probabilities, self.dropout.p, training=self.training) @ value
        return context.transpose(1, 2).flatten(2), probabilities if with_probabilities else None


def aware(model: Any) -> Any:
    """Return a model with the same weights that learns on the grids of 8-bit integers.

    Its activation is relu6 and its mask value "-6", as in the released configuration. Raises
    UserError for other models than MobileBERT's with NoNorm and relu or relu6.
    """
    if not foldable(model):
        raise UserError(f"{type(model).__name__}: quantization-aware training is for models of this package with no_norm")
    if model.config.hidden_act not in CLIPPED:
        raise UserError(f"hidden_act: quantization-aware training is for {' and '.join(CLIPPED)}, not {model.config.hidden_act}")
    config = copy.deepcopy(model.config)
    config.hidden_act, config.mask_value = "relu6", "-6"
    kind: Any = type(model)
    found: Any = kind(config)
    found.load_state_dict(model.state_dict())
    body: Any = getattr(found, "mobilebert", found)
    for layer in body.encoder.layer:
        attention = QuantizedSelfAttention(config)
        attention.load_state_dict(layer.attention.self.state_dict(), strict=False)  # which has no grid
        layer.attention.self = attention
    for module in list(found.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, QuantizedLinear(child))
            elif type(child) is nn.Embedding:
                setattr(module, name, QuantizedEmbedding(child))
    return found.to(model.device).train(model.training)


def settle(model: nn.Module) -> None:
    """Set the scales of all weights to those of the weights as they are after the last step."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            module.measure()
