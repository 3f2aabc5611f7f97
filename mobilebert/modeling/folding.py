"""Fold a NoNorm model's norms into its weights, exactly: 17 kernels a block in inference, not 34.

NoNorm is affine, so nothing of it need be left at run time. A residual stream x, the one inside a
block and the one between blocks, is kept in coordinates z, with one scale and one shift a channel:

    x = s * z + t

Layers that read x take s and t into their weights: W x + b = (W s) z + (b + W t). A sub-layer with
its norm, g * (W y + b + x) + c, only adds to z, by one matrix product that starts from z:

    g * (W y + b + s z + t) + c  =  s' z' + t'
    with   s' = g s,   t' = g * (b + t) + c,   z' = z + (W / s) y

The products that read the same input become one: those of the bottlenecks and value, then those of
query and key. Query and key through their shared bottleneck stay two products: as one they would
need 4 % more FLOPs in all. The attention scale goes into the query. All products are formed in
float64. Weights are kept as (inputs, outputs), the layout of the product.
"""

import copy
from collections.abc import Iterable
from types import MethodType
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertEncoder, MobileBertLayer, MobileBertModel, MobileBertPreTrainedModel
from mobilebert.modeling.inplace import activate, untouched
from mobilebert.modeling.layers import ACTIVATIONS, NoNorm
from mobilebert.util.errors import UserError

# If a channel's scale would be larger than this, or smaller than its inverse, all channels start
# again at 1, for one multiplication: a NoNorm weight near zero is then a factor, never a divisor.
# Within the range float32 and bfloat16 lose nothing, because a scale moves the exponent alone.
LARGEST_SCALE = 2.0**20
# The same for the stream between blocks. The norms of 24 blocks may multiply to scales that differ
# by 1e5 between channels, but an int8 tensor has one range for all its channels.
LARGEST_BETWEEN = 4.0


class Affine(nn.Module):
    """x W + b for x (tokens, inputs), in one kernel; b is the bias or the residual stream."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    keep: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, keep: torch.Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("bias", bias)
        self.register_buffer("keep", keep)

    def forward(self, x: torch.Tensor, stream: torch.Tensor | None = None) -> torch.Tensor:
        """Return x W + b; with a stream, x W + stream, scaled by `keep` before if that is set."""
        if stream is None:
            stream = self.bias
        elif self.keep is not None:
            stream = stream * self.keep
        assert stream is not None
        return torch.addmm(stream, x, self.weight)


class Stream:
    """Scale and shift of a residual stream while the layers that use it are folded one by one.

    Both are (width,) in float64.
    largest: the scales stay between this and its inverse.
    """

    def __init__(self, width: int, device: torch.device, largest: float = LARGEST_SCALE):
        self.largest = largest
        self.scale = torch.ones(width, dtype=torch.float64, device=device)
        self.shift = torch.zeros(width, dtype=torch.float64, device=device)

    def read(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias, which are for x, for the stream's z."""
        return weight * self.scale, bias + weight @ self.shift

    def write(self, linear: nn.Linear, norm: NoNorm | nn.LayerNorm, y: "Stream | None" = None) -> Affine:
        """Return the folded form of norm(linear(y) + stream), whose result is the new stream.

        y: the stream that `linear` reads; None if it reads plain values.
        """
        weight, bias = _exact(linear) if y is None else y.read(*_exact(linear))
        gain, offset = _exact(norm)
        scale = gain * self.scale
        starts_again = not (1 / self.largest <= scale.abs().min() and scale.abs().max() <= self.largest)
        kept = torch.ones_like(scale) if starts_again else scale
        self.scale, self.shift = kept, gain * (bias + self.shift) + offset
        folded = _affine(linear, weight * (gain / kept)[:, None], None)
        if starts_again:
            folded.keep = (scale / kept).to(linear.weight.dtype)
        return folded


def _exact(module: nn.Linear | NoNorm | nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return module.weight.detach().double(), module.bias.detach().double()


def _affine(like: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    dtype = like.weight.dtype
    return Affine(weight.to(dtype), None if bias is None else bias.to(dtype))


def _joined(products: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    weights, biases = zip(*products, strict=True)
    return torch.cat(weights), torch.cat(biases)


class FoldedLayer(nn.Module):
    """A block with its norms folded, called like `MobileBertLayer`.

    between: the stream between blocks; the layer reads it, writes to it and changes its scale and
        shift.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, layer: MobileBertLayer, hidden_act: str, between: Stream):
        super().__init__()
        attention = layer.attention.self
        self.heads, self.width, self.replaces_scores = attention.heads, attention.query.out_features, attention.replaces_scores
        products = [_exact(linear) for linear in (attention.query, attention.key, attention.value)]
        root = (self.width // self.heads) ** -0.5
        products[0] = tuple(root * part for part in products[0])
        bottleneck = layer.bottleneck
        self.residual = None  # a separate product only if query, key and value read its result
        self.query_key = None  # the same for query and key, which may read a shared bottleneck
        if bottleneck is not None:
            into = _after(*_exact(bottleneck.input.dense), bottleneck.input.LayerNorm)
            if bottleneck.use_bottleneck_attention:
                # Not joined: three matrices of (512, 128) in place of (128, 128) would be 30 % more
                # FLOPs for TINY.
                self.residual = _affine(attention.query, *between.read(*into))
            else:
                if bottleneck.attention is not None:
                    self.query_key = _affine(attention.query, *_joined(products[:2]))
                    products[:2] = [_after(*_exact(bottleneck.attention.dense), bottleneck.attention.LayerNorm)]
                products.append(into)
        if self.residual is None:
            products = [between.read(*product) for product in products]
        self.projections = _affine(attention.query, *_joined(products))
        self.activation = ACTIVATIONS[hidden_act]()

        stream = between if bottleneck is None else Stream(self.width, attention.query.weight.device)
        self.attention = stream.write(layer.attention.output.dense, layer.attention.output.LayerNorm)
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        ffns: list[Any] = [*layer.ffn, layer]
        for ffn in ffns:
            up = ffn.intermediate.dense
            self.up.append(_affine(up, *stream.read(*_exact(up))))
            self.down.append(stream.write(ffn.output.dense, ffn.output.LayerNorm))
        self.output = None
        if bottleneck is not None:
            out = layer.output.bottleneck
            assert out is not None
            self.output = between.write(out.dense, out.LayerNorm, stream)
        dtype = attention.query.weight.dtype
        self.register_buffer("scale", between.scale.to(dtype))
        self.register_buffer("shift", between.shift.to(dtype))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, with_probabilities: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the stream (batch, tokens, hidden_size), and attention probabilities or None."""
        batch, tokens = hidden_states.shape[:2]
        block_input = x = hidden_states.reshape(batch * tokens, -1)
        if self.residual is not None:
            x = self.residual(block_input)
        parts = self.projections(x).split(self.width, dim=-1)
        if self.query_key is not None:
            parts = (*self.query_key(parts[0]).split(self.width, dim=-1), *parts[1:])
        query, key, value = (part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts[:3])
        if len(parts) > 3:
            x = parts[3]
        if self.replaces_scores and attention_mask is not None:
            key = key.masked_fill((attention_mask == -6).transpose(-1, -2), 0)  # see MobileBertSelfAttention
        probabilities = None
        if with_probabilities:
            scores = query @ key.transpose(-1, -2)
            probabilities = (scores if attention_mask is None else scores + attention_mask).softmax(dim=-1)
            context = probabilities @ value
        else:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=1.0)
        x = self.attention(context.transpose(1, 2).reshape(batch * tokens, self.width), x)
        for up, down in zip(self.up, self.down, strict=True):
            x = down(activate(self.activation, up(x), up, made_by=Affine), x)
        if self.output is not None:
            x = self.output(x, block_input)
        return x.view(batch, tokens, -1), probabilities


class FoldedEncoder(MobileBertEncoder):
    """Folded blocks, one after the other."""

    def __init__(self, layers: Any, config: MobileBertConfig):
        nn.Module.__init__(self)
        between = Stream(config.hidden_size, next(layers.parameters()).device, LARGEST_BETWEEN)
        self.layer = nn.ModuleList(FoldedLayer(layer, config.hidden_act, between) for layer in layers)

    def state(self, stream: torch.Tensor, blocks: int) -> torch.Tensor:
        """Return the hidden state, as the model that was folded has it."""
        if not blocks:
            return stream
        last: Any = self.layer[blocks - 1]
        return torch.addcmul(last.shift, stream, last.scale)


def _after(weight: torch.Tensor, bias: torch.Tensor, norm: NoNorm | nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    gain, offset = _exact(norm)
    return weight * gain[:, None], bias * gain + offset


def foldable(model: nn.Module) -> TypeGuard[MobileBertPreTrainedModel]:
    """Return whether `fold` takes the model: a class of this package, NoNorm, not folded yet."""
    base = getattr(model, "mobilebert", model)
    return (
        isinstance(base, MobileBertModel)
        and base.config.normalization_type == "no_norm"
        and not isinstance(base.encoder.layer[0], FoldedLayer)
    )


def fold(model: MobileBertPreTrainedModel) -> MobileBertPreTrainedModel:
    """Return a faster copy of `model`, with folded blocks; outputs are equal up to rounding.

    The copy takes the same arguments. It is in evaluation mode and for inference only: its blocks
    have no gradients and no dropout. A hook on a block sees the stream before its scale and shift;
    hidden states have both. Its `train()` and `save_pretrained` raise UserError; save the original
    model.

    Raises UserError for a model that is not `foldable` (LayerNorm is not affine), and for an
    encoder with adapters, quantized layers or hooks, which the fold would lose.
    """
    if not foldable(model):
        raise UserError(f"fold: {type(model).__name__} is not a MobileBERT model with no_norm, or is folded already")
    base: Any = getattr(model, "mobilebert", model)
    layers = base.encoder.layer
    _check_untouched(base.encoder, model.config)
    base.encoder.layer = nn.ModuleList()  # so that the blocks, which are replaced, are not copied
    try:
        folded = copy.deepcopy(model)
    finally:
        base.encoder.layer = layers
    with torch.no_grad():
        encoder = FoldedEncoder(layers, model.config)
    body: Any = getattr(folded, "mobilebert", folded)
    body.encoder = encoder
    folded.save_pretrained = _refuse_saving
    folded.train = MethodType(_train, folded)
    return folded.requires_grad_(False).eval()


def _check_untouched(encoder: MobileBertEncoder, config: MobileBertConfig) -> None:
    with torch.device("meta"):
        expected = dict(MobileBertLayer(config).named_modules())
    _check_plain("encoder", encoder, MobileBertEncoder)
    for index, layer in enumerate(encoder.layer):
        found = dict(layer.named_modules())
        for name, module in expected.items():
            _check_plain(f"encoder.layer.{index}.{name}", found.get(name), type(module))


def _check_plain(name: str, found: nn.Module | None, wanted: type) -> None:
    if found is None or not untouched(found, wanted):
        kind = "missing" if found is None else type(found).__name__
        raise UserError(
            f"fold: {name} is no plain {wanted.__name__} (it is {kind}, or has hooks); "
            "merge adapters, remove hooks and parametrizations, and fold before quantization"
        )


def _train(folded: MobileBertPreTrainedModel, mode: bool = True) -> MobileBertPreTrainedModel:
    if mode:
        raise UserError("train: a folded model only evaluates; train the model it was folded from")
    return type(folded).train(folded, False)


def _refuse_saving(*args, **kwargs):
    raise UserError("save_pretrained: a folded model has no checkpoint format; save the model it was folded from")
