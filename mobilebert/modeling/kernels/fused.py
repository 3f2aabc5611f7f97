"""A block's feed-forward networks as one Triton kernel, forward and backward: bf16 products, on a Hopper GPU.

Opt-in (`enable`, or `fused: true` of a training section), and the same as `MobileBertLayer`'s own loop over its modules but for
rounding: the stream between the networks stays in float32, and a product is rounded only where it enters the next one.
Whatever is not the plain stack (an adapter, a hook, float32) runs through the modules, call by call: see `serves`.

Arithmetic, for 4 networks of 128 -> 512 -> 128, 32,768 tokens, autocast to bf16, and an H100's 989 TFLOP/s and 3.35 TB/s:

- A product of a network is 2 x 128 x 512 = 131 kFLOP a token; the stack's 8 are 1.05 MFLOP a token, 34 GFLOP: 35 us at least.
- The modules move 7,680 bytes a token and network: x cast to bf16 768, up 1,280, relu 2,048, down 1,280, residual 1,280,
  norm 1,024. That is 1.0 GB: 300 us where none of it stays in the 50 MB of L2. Here x is read and y written, 34 MB, and the
  networks' inputs kept for backward, 34 MB in bf16: 20 us. So the bound moves from the memory to the tensor cores.
- A program of 128 tokens reads all weights, 1.05 MB in bf16, from L2: 268 MB for 256 programs. Half the tile would read twice
  that; twice the tile has no room for its float32 stream in the registers.
- For backward the modules hold 235 MB (x and the hidden units in bf16, the norm's input in float32), and this 34 MB. Keeping
  only the stack's own input would save 25 MB for six products more; the weights' gradients read the inputs from memory anyway.
- Backward forms the hidden units and their gradients twice: 3 products for x, 4 for the weights, where 5 would do. The two
  more, 34 GFLOP, are 35 us at least; writing both and reading them again, for the library's products, is 537 MB: 160 us.
- A weight's gradient is the sum of SPLITS partial sums in float32, each over a fixed share of the tokens, added in a fixed
  order: equal inputs give equal bits, on every run. Atomic additions would not. 8 partial sums are 17 MB.
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
CEILINGS = {nn.ReLU: 0.0, nn.ReLU6: 6.0}  # of the activations served; 0: none
WIDTHS = (16, 32, 64, 128)  # a matrix instruction takes 16 at least, and a tile of a wider stream does not fit the registers
# TILE tokens, CHUNK hidden units at a time, weights fetched two chunks ahead: the largest without a spilled register (compiled
# for sm_90 by Triton 3.6 and 3.9). In the forward kernel the inner loop alone is pipelined (STAGES): of the outer one too
# (num_stages) ptxas makes a straight line, and spills.
FORWARD = {"TILE": 128, "CHUNK": 64, "STAGES": 3, "num_warps": 8, "num_stages": 1}
OF_INPUT = {"TILE": 128, "CHUNK": 64, "num_warps": 8, "num_stages": 3}
OF_WEIGHTS = {"TILE": 64, "CHUNK": 128, "num_warps": 8, "num_stages": 3}
SevenTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
PROGRAMS = 128  # of the weights' gradients: one on each of an H100's 132 processors, whose registers it fills


def enable(model: nn.Module) -> None:
    """Let every block of `model` run its feed-forward networks as one kernel, in place, wherever `serves` says that it can.

    Raises UserError where there is no Hopper GPU, no Triton, or no block with a stack that the kernel takes: a MobileBERT with
    bottlenecks, no_norm and relu or relu6, `intra_bottleneck_size` a power of two from 16 to 128 and `intermediate_size` a
    multiple of 128 or a power of two from 16.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != CAPABILITY:
        raise UserError("fused: the kernel is for an NVIDIA Hopper GPU (compute capability 9.0), and this machine shows none")
    if find_spec("triton") is None:
        raise UserError("fused: the package triton is not installed; PyTorch for CUDA brings it")
    blocks: Any = getattr(model, getattr(model, "base_model_prefix", ""), model)
    blocks = blocks.encoder.layer if isinstance(model.config, MobileBertConfig) else []
    if not blocks or not all(hasattr(block, "fused") and _is_stack(block) for block in blocks):
        raise UserError(
            f"fused: {type(model).__name__} has no stack that the kernel takes: bottlenecks, no_norm, relu or relu6, "
            f"intra_bottleneck_size 16, 32, 64 or 128, intermediate_size 16, 32, 64 or a multiple of 128"
        )
    for block in blocks:
        block.fused = True


def serves(block: Any, x: torch.Tensor) -> bool:
    """Whether the kernel may stand in for a block's stack on x: bf16 products, on the GPU, of plain modules nobody listens to."""
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
    """The stack of `block`, which `serves` x (..., width) -> the same shape, in the dtype that the modules would give."""
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
    """`scale * (down relu(up x + up_bias) + down_bias + x) + shift`, one network after the other; opaque to torch.compile.

    x (..., width); up (networks, inner, width), down (networks, width, inner), biases, scale and shift (networks, inner or
    width). dtype: of the products. ceiling: of the activation, 0 for none. Returns the stack's output, of x's shape, and for
    backward the networks' inputs (networks, tokens, width), or nothing unless `keep`.
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
    """Gradients of x and of the six parameters of `stack`; of the parameters empty ones, unless one of them `learns`."""
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
    # y = scale * u + shift with u = down h + down_bias + x, so the gradient of scale, the sum of dy * u over the tokens, needs
    # no u: the sums of dy h and of dy x are there.
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
