"""Run a block's feed-forward networks as one Triton kernel, forward and backward, on a Hopper GPU.

The networks of a block are called its stack. The kernel is opt-in (`enable`, or `fused: true` of a
training section). It computes the same as the loop over modules in `MobileBertLayer`, except for
rounding: products are bf16, the stream between the networks stays in float32, and a result is
rounded only when it enters the next product. A stack with an adapter, a hook or float32 weights
runs through its modules; `serves` decides at each call.

Arithmetic for 4 networks of 128 -> 512 -> 128, 32,768 tokens, autocast to bf16, on an H100 with 989
TFLOP/s and 3.35 TB/s:

- A product of a network is 2 x 128 x 512 = 131 kFLOP a token. The stack's 8 are 1.05 MFLOP a token,
  34 GFLOP: 35 us at least.
- The modules move 7,680 bytes a token and network: x cast to bf16 768, up 1,280, relu 2,048, down
  1,280, residual 1,280, norm 1,024. That is 1.0 GB: 300 us if none of it stays in the 50 MB of L2.
  The kernel reads x and writes y, 34 MB, and keeps the networks' inputs for backward, 34 MB in
  bf16: 20 us. So the limit is no longer the memory but the tensor cores.
- A program of 128 tokens reads all weights, 1.05 MB in bf16, from L2: 268 MB for 256 programs. Half
  the tile would read twice that; twice the tile's float32 stream does not fit the registers.
- For backward the modules hold 235 MB (x and the hidden units in bf16, the norm's input in
  float32), the kernel 34 MB. Keeping only the stack's input would save 25 MB for six more products;
  the weights' gradients read the inputs from memory anyway.
- Backward computes the hidden units and their gradients twice: 3 products for x and 4 for the
  weights, although 5 would do. The two extra, 34 GFLOP, are 35 us at least. Writing both results
  and reading them again, for the library's products, is 537 MB: 160 us.
- A weight's gradient is the sum of SPLITS partial sums in float32, each over a fixed share of the
  tokens, added in a fixed order, so equal inputs give equal bits. Atomic additions would not. 8
  partial sums are 17 MB.
"""

from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.inplace import plain
from mobilebert.modeling.layers import FFNLayer, FFNOutput, MobileBertIntermediate, MobileBertOutput, NoNorm
from mobilebert.util.errors import UserError

DEVICE, CAPABILITY = "cuda", 9  # tile sizes are chosen for Hopper: its registers, its shared memory, its matrix instructions
NAMES = ("weight", "bias")
CEILINGS = {nn.ReLU: 0.0, nn.ReLU6: 6.0}  # supported activations -> largest output; 0 is no limit
WIDTHS = (16, 32, 64, 128)  # a matrix instruction takes 16 at least, and a tile of a wider stream does not fit the registers
# TILE tokens and CHUNK hidden units at a time, weights fetched two chunks ahead: the largest sizes
# without a spilled register (compiled for sm_90 by Triton 3.6 and 3.9). In the forward kernel only
# the inner loop is pipelined (STAGES). If the outer one is too (num_stages), ptxas unrolls it and
# spills registers.
FORWARD = {"TILE": 128, "CHUNK": 64, "STAGES": 3, "num_warps": 8, "num_stages": 1}
OF_INPUT = {"TILE": 128, "CHUNK": 64, "num_warps": 8, "num_stages": 3}
OF_WEIGHTS = {"TILE": 64, "CHUNK": 128, "num_warps": 8, "num_stages": 3}
SevenTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
PROGRAMS = 128  # for the weights' gradients; each fills the registers of one of an H100's 132 processors


def enable(model: nn.Module) -> None:
    """Change `model` so that every block runs its feed-forward networks as one kernel if it can.

    Raises UserError if there is no Hopper GPU, no Triton, or no stack that the kernel takes: a
    MobileBERT with bottlenecks, no_norm and relu or relu6, `intra_bottleneck_size` a power of two
    from 16 to 128 and `intermediate_size` 16, 32, 64 or a multiple of 128.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != CAPABILITY:
        raise UserError("fused: the kernel needs an NVIDIA Hopper GPU (compute capability 9.0), and this machine has none")
    if find_spec("triton") is None:
        raise UserError("fused: the package triton is not installed; install PyTorch for CUDA, which includes it")
    blocks: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
    blocks = blocks.encoder.layer if isinstance(model.config, MobileBertConfig) else []
    if not blocks or not all(hasattr(block, "fused") and _is_stack(block) for block in blocks):
        raise UserError(
            f"fused: {type(model).__name__} has no feed-forward networks that the kernel takes: bottlenecks, no_norm, relu or "
            f"relu6, intra_bottleneck_size 16, 32, 64 or 128, intermediate_size 16, 32, 64 or a multiple of 128"
        )
    for block in blocks:
        block.fused = True


def serves(block: Any, x: torch.Tensor) -> bool:
    """Return whether the kernel may replace a block's stack for x.

    It may on the GPU, for bf16 products, if the stack has plain modules alone and no hooks.
    """
    if x.device.type != DEVICE or x.numel() == 0 or not _is_stack(block):
        return False
    return _product_dtype(block.intermediate.dense.weight) == torch.bfloat16


def _product_dtype(weight: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else weight.dtype


def _is_stack(block: Any) -> bool:
    activation, output = type(block.intermediate.activation), block.output
    if activation not in CEILINGS or output.bottleneck is None:
        return False
    if not (plain(output, MobileBertOutput) and plain(output.dropout, nn.Identity)):
        return False
    if not all(plain(ffn, FFNLayer) and plain(ffn.output, FFNOutput) for ffn in block.ffn):
        return False
    for network in [*block.ffn, block]:
        first, second = network.intermediate, network.output
        if not (plain(first, MobileBertIntermediate) and plain(first.dense, nn.Linear) and plain(first.activation, activation)):
            return False
        if not (plain(second.dense, nn.Linear) and plain(second.LayerNorm, NoNorm)):
            return False
    width, inner = block.intermediate.dense.in_features, block.intermediate.dense.out_features
    return width in WIDTHS and (inner % 128 == 0 or inner in WIDTHS)


def feed_forward(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the output of the stack of `block`, with the shape and the dtype that modules give.

    x: (..., width). Requires `serves(block, x)`.
    """
    networks = [*block.ffn, block]
    up = [network.intermediate.dense for network in networks]
    down = [network.output.dense for network in networks]
    norms = [network.output.LayerNorm for network in networks]
    parameters = [torch.stack([getattr(part, name) for part in parts]) for parts in (up, down, norms) for name in NAMES]
    keep = torch.is_grad_enabled() and (x.requires_grad or any(parameter.requires_grad for parameter in parameters))
    ceiling = CEILINGS[type(block.intermediate.activation)]
    return stack(x, *parameters, _product_dtype(up[0].weight), ceiling, keep)[0]


@torch.library.custom_op("mobilebert::stack", mutates_args=())
def stack(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
    ceiling: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return the stack's output, of x's shape, and the networks' inputs for the backward pass.

    Each network maps x to `scale * (down relu(up x + up_bias) + down_bias + x) + shift`. To
    torch.compile this is one opaque operation.
    x (..., width); up (networks, inner, width); down (networks, width, inner); biases, scale and
    shift (networks, inner or width). dtype: that of the products. ceiling: the activation's largest
    output, 0 for no limit. The inputs are (networks, tokens, width), or empty unless `keep`.
    """
    from mobilebert.modeling.kernels import fused_kernels

    forward: Any = fused_kernels.forward
    x, (y, kept), (networks, inner, width) = x.contiguous(), _outputs(x, up, scale, dtype, keep), up.shape
    tokens = x.numel() // width
    forward[(-(-tokens // FORWARD["TILE"]),)](
        x, y, kept, up.to(dtype), up_bias, _transposed(down, dtype), down_bias, scale, shift, tokens,
        networks, width, inner, ceiling, keep, **_within(FORWARD, inner),
    )  # fmt: skip
    return y, kept


@stack.register_fake
def _(x, up, up_bias, down, down_bias, scale, shift, dtype, ceiling, keep):
    return _outputs(x, up, scale, dtype, keep)


def _outputs(x: Tensor, up: Tensor, scale: Tensor, dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, scale.dtype), device=x.device)
    networks, _, width = up.shape
    return y, torch.empty((networks if keep else 0, x.numel() // width, width), dtype=dtype, device=x.device)


def _transposed(weights: Tensor, dtype: torch.dtype) -> Tensor:
    return weights.transpose(1, 2).to(dtype, copy=True, memory_format=torch.contiguous_format)


def _within(tile: dict[str, int], inner: int) -> dict[str, int]:
    return tile | {"CHUNK": min(tile["CHUNK"], inner)}


@torch.library.custom_op("mobilebert::stack_backward", mutates_args=())
def stack_backward(
    dy: Tensor, kept: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, scale: Tensor,
    x_dtype: torch.dtype, ceiling: float, learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of the six parameters of `stack` (empty unless `learns`)."""
    from mobilebert.modeling.kernels import fused_kernels

    of_input: Any = fused_kernels.backward_of_input
    of_weights: Any = fused_kernels.backward_of_weights
    networks, inner, width = up.shape
    tokens, dtype, dy = kept.shape[1], kept.dtype, dy.contiguous()
    tiles = -(-tokens // OF_INPUT["TILE"])
    dx = torch.empty(dy.shape, dtype=x_dtype, device=dy.device)
    gradients = torch.empty_like(kept) if learns else kept
    sums = up.new_empty((tiles, networks, 2, width), dtype=torch.float32)
    products = up.to(dtype), up_bias, _transposed(down * scale[:, :, None], dtype)
    of_input[(tiles,)](
        dy, dx, kept, gradients, sums, *products, scale, tokens,
        networks, width, inner, ceiling, learns, **_within(OF_INPUT, inner),
    )  # fmt: skip
    if not learns:
        empty = (like.new_empty(0) for like in (up, up_bias, down, down_bias, scale, scale))
        return cast(SevenTensors, (dx, *empty))
    tile = _within(OF_WEIGHTS, inner)
    chunks = inner // tile["CHUNK"]
    splits = max(1, PROGRAMS // (networks * chunks))
    d_up = up.new_empty((splits, networks, inner, width), dtype=torch.float32)
    d_up_bias, d_product = d_up.new_empty((splits, networks, inner)), torch.empty_like(d_up)
    of_weights[(chunks, networks, splits)](
        kept, gradients, d_up, d_up_bias, d_product, *products, tokens,
        networks, width, inner, ceiling, splits, **tile,
    )  # fmt: skip
    # y = scale * u + shift with u = down h + down_bias + x. The gradient of scale is the sum of
    # dy * u over the tokens; it needs no u, because the sums of dy h and of dy x are known.
    d_product, (d_shift, by_x) = d_product.sum(0).transpose(1, 2), sums.sum(0).unbind(1)
    d_scale = (d_product * down).sum(2) + down_bias * d_shift + by_x
    found = d_up.sum(0), d_up_bias.sum(0), d_product * scale[:, :, None], d_shift * scale, d_scale, d_shift.contiguous()
    likes = up, up_bias, down, down_bias, scale, scale
    return cast(SevenTensors, (dx, *(gradient.to(like.dtype) for gradient, like in zip(found, likes, strict=True))))


@stack_backward.register_fake
def _(dy, kept, up, up_bias, down, down_bias, scale, x_dtype, ceiling, learns):
    likes = up, up_bias, down, down_bias, scale, scale
    found = (torch.empty_like(like) if learns else like.new_empty(0) for like in likes)
    return torch.empty(dy.shape, dtype=x_dtype, device=dy.device), *found


def _remember(ctx, inputs, output) -> None:
    x, *parameters, _, _, ctx.ceiling, _ = inputs
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(output[1], *parameters)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, _):
    kept, *parameters = ctx.saved_tensors
    learns = any(ctx.needs_input_grad[1:7])
    dx, *found = stack_backward(dy, kept, *parameters, ctx.x_dtype, ctx.ceiling, learns)
    return dx, *(found if learns else [None] * 6), None, None, None


stack.register_autograd(_backward, setup_context=_remember)
