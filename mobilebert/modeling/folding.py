"""Fold a NoNorm model's norms into its weights, exactly: 17 kernels a block in inference, not 34.

NoNorm is affine, so nothing of it need be left at run time. Inside a block the residual stream x is
kept in coordinates z, with one scale and one shift a channel:

    x = s * z + t

Layers that read x take s and t into their weights: W x + b = (W s) z + (b + W t). A sub-layer with
its norm, g * (W y + b + x) + c, only adds to z, by one matrix product that starts from z:

    g * (W y + b + s z + t) + c  =  s' z' + t'
    with   s' = g s,   t' = g * (b + t) + c,   z' = z + (W / s) y

The products of query, key, value and input bottleneck read the same block input and become one.
Query and key through their shared bottleneck are two linear maps in a row, so they become one. The
attention scale goes into the query. All products are formed in float64. Weights are kept as
(inputs, outputs), the layout of the product.
"""

import copy
from types import MethodType
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertLayer, MobileBertModel, MobileBertPreTrainedModel
from mobilebert.modeling.inplace import activate, untouched
from mobilebert.modeling.layers import ACTIVATIONS, NoNorm
from mobilebert.util.errors import UserError

# A channel whose scale would be larger than this, or smaller than its inverse, starts again at 1,
# for one multiplication: a NoNorm weight near zero is then a factor, never a divisor. Within the
# range float32 and bfloat16 lose nothing, because a scale moves the exponent alone.
LARGEST_SCALE = 2.0**20


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
    """Scale and shift of a block's residual stream while its sub-layers are folded one by one.

    Both are (width,) in float64.
    """

    def __init__(self, width: int, device: torch.device):
        self.scale = torch.ones(width, dtype=torch.float64, device=device)
        self.shift = torch.zeros(width, dtype=torch.float64, device=device)

    def read(self, linear: nn.Linear) -> Affine:
        """Return the folded form of `linear`, which reads the stream."""
        weight, bias = _exact(linear)
        return _affine(linear, weight * self.scale, bias + weight @ self.shift)

    def write(self, linear: nn.Linear, norm: NoNorm | nn.LayerNorm) -> Affine:
        """Return the folded form of norm(linear(y) + stream), whose result is the new stream."""
        weight, bias = _exact(linear)
        gain, offset = _exact(norm)
        scale = gain * self.scale
        far = (scale.abs() > LARGEST_SCALE) | (scale.abs() < 1 / LARGEST_SCALE)
        kept = torch.where(far, torch.ones_like(scale), scale)
        self.scale, self.shift = kept, gain * (bias + self.shift) + offset
        folded = _affine(linear, weight * (gain / kept)[:, None], None)
        if far.any():
            folded.keep = (scale / kept).to(linear.weight.dtype)
        return folded


def _exact(module: nn.Linear | NoNorm | nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return module.weight.detach().double(), module.bias.detach().double()


def _affine(like: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    dtype = like.weight.dtype
    return Affine(weight.to(dtype), None if bias is None else bias.to(dtype))


class FoldedLayer(nn.Module):
    """A block with its norms folded, called like `MobileBertLayer`."""

    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(self, layer: MobileBertLayer, hidden_act: str):
        super().__init__()
        attention = layer.attention.self
        self.heads, self.width, self.replaces_scores = attention.heads, attention.query.out_features, attention.replaces_scores
        products = [_exact(linear) for linear in (attention.query, attention.key, attention.value)]
        root = (self.width // self.heads) ** -0.5
        products[0] = tuple(root * part for part in products[0])
        bottleneck = layer.bottleneck
        self.residual = None  # a separate product only if query, key and value read its result
        if bottleneck is not None:
            into = _after(*_exact(bottleneck.input.dense), bottleneck.input.LayerNorm)
            if bottleneck.use_bottleneck_attention:
                # Not joined: three matrices of (512, 128) in place of (128, 128) would be 30 % more
                # FLOPs for TINY.
                self.residual = _affine(attention.query, *into)
            else:
                if bottleneck.attention is not None:
                    shared, shift = _after(*_exact(bottleneck.attention.dense), bottleneck.attention.LayerNorm)
                    products[:2] = [(weight @ shared, bias + weight @ shift) for weight, bias in products[:2]]
                products.append(into)
        weights, biases = zip(*products, strict=True)
        self.projections = _affine(attention.query, torch.cat(weights), torch.cat(biases))
        self.activation = ACTIVATIONS[hidden_act]()

        stream = Stream(self.width, attention.query.weight.device)
        self.attention = stream.write(layer.attention.output.dense, layer.attention.output.LayerNorm)
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        ffns: list[Any] = [*layer.ffn, layer]
        for ffn in ffns:
            self.up.append(stream.read(ffn.intermediate.dense))
            self.down.append(stream.write(ffn.output.dense, ffn.output.LayerNorm))
        dtype = attention.query.weight.dtype
        if bottleneck is None:
            self.output, gain, offset = None, stream.scale, stream.shift
        else:
            out = layer.output.bottleneck
            assert out is not None
            weight, bias = _exact(out.dense)
            self.output = _affine(out.dense, weight * stream.scale, None)
            gain, offset = _exact(out.LayerNorm)
            offset = offset + gain * (bias + weight @ stream.shift)
        # The stream between blocks has no scale or shift, so that hidden states equal the model's:
        # this costs one kernel a block.
        self.register_buffer("gain", gain.to(dtype))
        self.register_buffer("offset", offset.to(dtype))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, with_probabilities: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output (batch, tokens, hidden_size), and attention probabilities or None."""
        batch, tokens = hidden_states.shape[:2]
        block_input = x = hidden_states.reshape(batch * tokens, -1)
        if self.residual is not None:
            x = self.residual(block_input)
        projected = self.projections(x)
        split = projected[:, : 3 * self.width].view(batch, tokens, 3, self.heads, self.width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        if projected.shape[1] > 3 * self.width:
            x = projected[:, 3 * self.width :]
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
        return torch.addcmul(self.offset, x, self.gain).view(batch, tokens, -1), probabilities


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
    have no gradients and no dropout. Its `train()` and `save_pretrained` raise UserError; save the
    original model.

    Raises UserError for a model that is not `foldable` (LayerNorm is not affine), and for blocks
    with adapters, quantized layers or hooks, which the fold would lose.
    """
    if not foldable(model):
        raise UserError(f"fold: {type(model).__name__} is not a MobileBERT model with no_norm, or is folded already")
    base: Any = getattr(model, "mobilebert", model)
    layers = base.encoder.layer
    _check_untouched(layers, model.config)
    base.encoder.layer = nn.ModuleList()  # so that the blocks, which are replaced, are not copied
    try:
        folded = copy.deepcopy(model)
    finally:
        base.encoder.layer = layers
    with torch.no_grad():
        blocks = nn.ModuleList(FoldedLayer(layer, model.config.hidden_act) for layer in layers)
    body: Any = getattr(folded, "mobilebert", folded)
    body.encoder.layer = blocks
    folded.save_pretrained = _refuse_saving
    folded.train = MethodType(_train, folded)
    return folded.requires_grad_(False).eval()


def _check_untouched(layers: nn.ModuleList, config: MobileBertConfig) -> None:
    with torch.device("meta"):
        expected = dict(MobileBertLayer(config).named_modules())
    for index, layer in enumerate(layers):
        found = dict(layer.named_modules())
        for name, module in expected.items():
            if name not in found or not untouched(found[name], type(module)):
                kind = type(found[name]).__name__ if name in found else "missing"
                raise UserError(
                    f"fold: encoder.layer.{index}.{name} is no plain {type(module).__name__} (it is {kind}, or has hooks); "
                    "merge adapters, remove hooks and parametrizations, and fold before quantization"
                )


def _train(folded: MobileBertPreTrainedModel, mode: bool = True) -> MobileBertPreTrainedModel:
    if mode:
        raise UserError("train: a folded model only evaluates; train the model it was folded from")
    return type(folded).train(folded, False)


def _refuse_saving(*args, **kwargs):
    raise UserError("save_pretrained: a folded model has no checkpoint format; save the model it was folded from")
