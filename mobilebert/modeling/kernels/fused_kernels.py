"""Define the Triton kernels of `kernels.fused`; importing this module needs Triton.

Shapes, row-major: x, y, dy, dx (tokens, WIDTH); up, as in nn.Linear, and down, transposed,
(NETWORKS, INNER, WIDTH), so that one set of addresses works for both; biases, scale and shift
(NETWORKS, their width). Matrix products take the dtype of `up` and are summed in float32, like
everything else. No kernel adds to memory atomically, so that equal inputs give equal bits.
"""

import triton  # PyTorch for CUDA brings it
import triton.language as tl


@triton.jit
def activate(hidden, CEILING: tl.constexpr):
    """Return ReLU of `hidden`, at most CEILING unless that is 0.

    NaN stays NaN, so that divergence shows: the default maximum drops it.
    """
    hidden = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return hidden if CEILING == 0 else tl.minimum(hidden, CEILING, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def passes(hidden, CEILING: tl.constexpr):
    """Return a mask of the elements at which the activation's slope is 1, not 0."""
    return hidden > 0 if CEILING == 0 else (hidden > 0) & (hidden < CEILING)


@triton.jit(do_not_specialize=["tokens"])
def forward(
    x, y, kept, up, up_bias, down, down_bias, scale, shift, tokens,
    NETWORKS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, CEILING: tl.constexpr, KEEP: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute y for a tile of tokens, which stays on the chip through all networks.

    If KEEP, the networks' inputs are written to kept (NETWORKS, tokens, WIDTH).
    """
    start = tl.program_id(0) * TILE
    rows, columns = tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    at, real = rows * WIDTH + columns, rows < tokens - start
    before = start.to(tl.int64) * WIDTH  # only scalars have 64 bits: a tile of 64-bit offsets would fill the registers
    stream = tl.load(x + before + at, mask=real, other=0.0).to(tl.float32)
    for network in range(NETWORKS):
        given = stream.to(up.dtype.element_ty)
        if KEEP:
            tl.store(kept + (network * tokens.to(tl.int64) * WIDTH + before) + at, given, mask=real)
        stream += tl.load(down_bias + network * WIDTH + columns).to(tl.float32)
        for first in tl.range(0, INNER, CHUNK, num_stages=STAGES):
            units = network * INNER + first + tl.arange(0, CHUNK)
            here = units[:, None] * WIDTH + columns
            hidden = tl.dot(given, tl.trans(tl.load(up + here)), input_precision="ieee")
            hidden += tl.load(up_bias + units).to(tl.float32)[None, :]
            hidden = activate(hidden, CEILING).to(up.dtype.element_ty)
            stream = tl.dot(hidden, tl.load(down + here), stream, input_precision="ieee")
        stream *= tl.load(scale + network * WIDTH + columns).to(tl.float32)
        stream += tl.load(shift + network * WIDTH + columns).to(tl.float32)
    tl.store(y + before + at, stream.to(y.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["tokens"])
def backward_of_input(
    dy, dx, kept, gradients, sums, up, up_bias, gated, scale, tokens,
    NETWORKS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, CEILING: tl.constexpr, KEEP: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Compute dx for a tile of tokens, which stays on the chip through all networks.

    gated: `down` with column c multiplied by scale[c].
    If KEEP, two more results are written for the weights' gradients. gradients (NETWORKS, tokens,
    WIDTH): the gradient of each network's output. sums (tiles, NETWORKS, 2, WIDTH): the sum of
    that gradient over the tile, and the sum of its product with the network's input.
    """
    start = tl.program_id(0) * TILE
    rows, columns = tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    at, real = rows * WIDTH + columns, rows < tokens - start
    before = start.to(tl.int64) * WIDTH
    stream = tl.load(dy + before + at, mask=real, other=0.0).to(tl.float32)
    for back in range(NETWORKS):
        network = NETWORKS - 1 - back
        there = network * tokens.to(tl.int64) * WIDTH + before
        given = tl.load(kept + there + at, mask=real, other=0.0)
        rounded = stream.to(up.dtype.element_ty)
        if KEEP:
            tl.store(gradients + there + at, rounded, mask=real)
            sums_at = sums + (tl.program_id(0) * NETWORKS + network) * 2 * WIDTH + columns
            tl.store(sums_at, tl.sum(stream, 0)[None, :])
            tl.store(sums_at + WIDTH, tl.sum(stream * given.to(tl.float32), 0)[None, :])
        stream *= tl.load(scale + network * WIDTH + columns).to(tl.float32)
        for first in range(0, INNER, CHUNK):
            units = network * INNER + first + tl.arange(0, CHUNK)
            here = units[:, None] * WIDTH + columns
            weights = tl.load(up + here)
            hidden = tl.dot(given, tl.trans(weights), input_precision="ieee")
            hidden += tl.load(up_bias + units).to(tl.float32)[None, :]
            slope = tl.dot(rounded, tl.trans(tl.load(gated + here)), input_precision="ieee")
            slope = tl.where(passes(hidden, CEILING), slope, 0.0)
            stream = tl.dot(slope.to(up.dtype.element_ty), weights, stream, input_precision="ieee")
    tl.store(dx + before + at, stream.to(dx.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["tokens"])
def backward_of_weights(
    kept, gradients, d_up, d_up_bias, d_down, up, up_bias, gated, tokens,
    NETWORKS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, CEILING: tl.constexpr, SPLITS: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of CHUNK hidden units of one network, over one of SPLITS token shares.

    d_up (SPLITS, NETWORKS, INNER, WIDTH); d_up_bias (SPLITS, NETWORKS, INNER). d_down has the shape
    of d_up; it is the gradient of `scale * down`, so that of down before multiplication by scale.
    Hidden units are rows here, so that the results of the first two products are, in the registers
    where they lie, the left operands of the last two.
    """
    network, split = tl.program_id(1), tl.program_id(2)
    rows, columns = tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    at = rows * WIDTH + columns
    units = network * INNER + tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    here = units[:, None] * WIDTH + columns
    weights, back_weights = tl.load(up + here), tl.load(gated + here)
    bias = tl.load(up_bias + units).to(tl.float32)[:, None]
    into_up = tl.zeros((CHUNK, WIDTH), tl.float32)
    into_down = tl.zeros((CHUNK, WIDTH), tl.float32)
    into_bias = tl.zeros((CHUNK,), tl.float32)
    for start in range(split * TILE, tokens, SPLITS * TILE):
        before = (network * tokens.to(tl.int64) + start) * WIDTH
        real = rows < tokens - start
        given = tl.load(kept + before + at, mask=real, other=0.0)
        dy = tl.load(gradients + before + at, mask=real, other=0.0)
        hidden = tl.dot(weights, tl.trans(given), input_precision="ieee") + bias
        slope = tl.dot(back_weights, tl.trans(dy), input_precision="ieee")
        slope = tl.where(passes(hidden, CEILING), slope, 0.0)
        into_bias += tl.sum(slope, 1)
        into_up = tl.dot(slope.to(up.dtype.element_ty), given, into_up, input_precision="ieee")
        into_down = tl.dot(activate(hidden, CEILING).to(up.dtype.element_ty), dy, into_down, input_precision="ieee")
    here += split * NETWORKS * INNER * WIDTH
    tl.store(d_up + here, into_up)
    tl.store(d_down + here, into_down)
    tl.store(d_up_bias + split * NETWORKS * INNER + units, into_bias)
