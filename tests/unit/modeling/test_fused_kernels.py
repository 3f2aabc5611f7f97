"""The Triton kernels of the fused stack, compiled for a Hopper GPU and interpreted on the CPU.

Compiling for the GPU needs none. Triton compiles or interprets for the whole process, as
TRITON_INTERPRET says when it is imported; so one test here starts the interpreted ones in a process
of their own.
"""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from family import SMALL, batch, close
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import mobilebert
from mobilebert import MobileBertConfig
from mobilebert.modeling.kernels import fused

triton = pytest.importorskip("triton", reason="Triton is not installed (PyTorch for CUDA brings it)")
fused_kernels = importlib.import_module("mobilebert.modeling.kernels.fused_kernels")  # needs Triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(INTERPRETED, reason="Triton interprets in this process (TRITON_INTERPRET=1)")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="in a process of its own, with TRITON_INTERPRET=1")
EXACT = 1e-5  # relative to the largest value, in float32
DRAWN = {"deadline": None, "phases": (Phase.explicit, Phase.reuse, Phase.generate)}  # a failure would take minutes to shrink


# --- compiled for sm_90

TILES = {"forward": fused.FORWARD, "backward_of_input": fused.OF_INPUT, "backward_of_weights": fused.OF_WEIGHTS}
SHARED_MEMORY = 227 * 1024  # bytes that a block of threads may have on compute capability 9.0


def compile_for_hopper(name: str, networks: int, width: int, inner: int, ceiling: float, stream: str, keep: bool):
    """Compile the kernel as `fused` would launch it; `stream` is the dtype between blocks. The
    result has its PTX and its machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, tile = getattr(fused_kernels, name), fused._within(TILES[name], inner)
    constants = {"NETWORKS": networks, "WIDTH": width, "INNER": inner, "CEILING": ceiling, "KEEP": keep, "SPLITS": 8} | tile
    names = list(inspect.signature(kernel.fn).parameters)
    products, streams = {"kept", "gradients", "up", "down", "gated"}, {"x", "y", "dy", "dx"}
    types = {
        key: "constexpr"
        if key in constants
        else "i32"
        if key == "tokens"
        else "*bf16"
        if key in products
        else f"*{stream}"
        if key in streams
        else "*fp32"
        for key in names
    }
    values = {(names.index(key),): value for key, value in constants.items() if key in names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, key in enumerate(names) if types[key].startswith("*")}
    options = {key: value for key, value in tile.items() if key.startswith("num_")}
    return triton.compile(ASTSource(kernel, types, values, aligned), target=GPUTarget("cuda", 90, 32), options=options)


@compiled
@pytest.mark.parametrize("stream", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "keep"), [(name, True) for name in TILES] + [("forward", False), ("backward_of_input", False)])
def test_the_papers_stack_fits_a_hopper_processor(name, keep, stream, tmp_path):
    """No spills, the tile in shared memory, tensor cores with float32 sums, no atomic addition."""
    kernel = compile_for_hopper(name, 4, 128, 512, 0.0, stream, keep)
    assert kernel.metadata.shared <= SHARED_MEMORY
    ptx = kernel.asm["ptx"]
    assert "wgmma.mma_async.sync.aligned.m64n" in ptx
    assert "f32.bf16.bf16" in ptx
    assert "cp.async" in ptx  # weights are loaded while the tensor cores work
    for other in ("mma.sync.aligned", "atom.", "red."):
        assert other not in ptx.replace("shared.", "")
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    figures = dict(pair.split(":") for pair in usage.split() if pair.startswith(("REG:", "STACK:", "LOCAL:")))
    assert figures["STACK"] == figures["LOCAL"] == "0"
    assert int(figures["REG"]) * 32 * kernel.metadata.num_warps <= 65536


@compiled
@pytest.mark.parametrize(("networks", "width", "inner", "ceiling"), [(1, 16, 16, 0.0), (2, 32, 64, 6.0), (3, 64, 384, 0.0)])
@pytest.mark.parametrize("name", TILES)
def test_other_stacks_that_are_served_compile(name, networks, width, inner, ceiling):
    assert compile_for_hopper(name, networks, width, inner, ceiling, "fp32", False).metadata.shared <= SHARED_MEMORY


@compiled
def test_the_interpreted_tests_pass_in_a_process_of_their_own():
    """Run the tests below this one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- interpreted


@pytest.fixture(scope="module", autouse=True)
def as_the_device_computes():
    """Make the interpreter compute as the device. It truncates bfloat16, which the device rounds to
    nearest, and multiplies its bits as integers. In Triton 3.6 a loop bound must not be an array of
    NumPy 2.4."""
    if not INTERPRETED:
        yield
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        nearest = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
        return nearest.view(torch.int16).numpy().view(np.uint16)

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def bounded(*bounds):
        return range(*(int(bound.handle.data.item()) if hasattr(bound, "handle") else bound for bound in bounds))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_kernels, "range", bounded, raising=False)
        patch.setattr(interpreter, "_convert_float", rounded)
        patch.setattr(
            interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
        )
        patch.setattr(fused, "DEVICE", "cpu")
        patch.setattr(fused, "PROGRAMS", 12)  # the number of programs, not of tokens, costs the interpreter time
        yield


def reference(x, up, up_bias, down, down_bias, scale, shift, ceiling):
    """Return the stack in plain PyTorch, and how near to a kink each token's units come. It
    computes in the dtype of its arguments or of autocast."""
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for index in range(len(up)):
        hidden = F.linear(x, up[index], up_bias[index])
        for kink in (0.0, ceiling):
            nearest = torch.minimum(nearest, (hidden.detach().double() - kink).abs().amin(1))
        hidden = hidden.clamp(min=0, max=ceiling or None)
        x = torch.addcmul(shift[index], F.linear(hidden, down[index], down_bias[index]) + x, scale[index])
    return x, nearest


def with_gradients(function, arguments, weights):
    """Return the output and the gradients of sum(output * weights)."""
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    y, _ = function(*arguments)
    return [y.detach(), *torch.autograd.grad((y * weights.to(y.dtype)).sum(), arguments)]


def draw_stack(seed, tokens, networks, width, inner, deviation=1.0):
    """Return [x (tokens, width), six parameters of a stack], and weights (tokens, width) of y."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    parameters = (
        normal(networks, inner, width) * deviation * width**-0.5,
        normal(networks, inner) * 0.3,
        normal(networks, width, inner) * deviation * inner**-0.5,
        normal(networks, width) * 0.3,
        1 + normal(networks, width) * 0.3,
        normal(networks, width) * 0.3,
    )
    return [normal(tokens, width), *parameters], normal(tokens, width)


@interpreted
@settings(max_examples=8, **DRAWN)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 300),
    networks=st.integers(1, 4),
    width=st.sampled_from([16, 32, 64, 128]),
    inner=st.sampled_from([16, 32, 64, 128, 256]),
    ceiling=st.sampled_from([0.0, 0.5, 6.0]),
)
def test_in_float32_output_and_gradients_are_pytorchs(seed, tokens, networks, width, inner, ceiling):
    arguments, weights = draw_stack(seed, tokens, networks, width, inner)
    exact = [argument.double() for argument in arguments]
    # A unit on a kink has either slope, so the output of its token gets no weight.
    weights *= (reference(*exact, ceiling)[1] > 1e-4)[:, None]
    expected = with_gradients(lambda *a: reference(*a, ceiling), exact, weights.double())
    found = with_gradients(lambda *a: fused.stack(*a, torch.float32, ceiling, True), arguments, weights)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        close(ours, theirs, EXACT)
    with torch.no_grad():  # keeps nothing for the backward pass, and gives the same bits
        y, kept = fused.stack(*arguments, torch.float32, ceiling, False)
    assert torch.equal(y, found[0])
    assert kept.numel() == 0
    x = arguments[0].requires_grad_()  # x alone: the weights are frozen
    y, _ = fused.stack(x, *arguments[1:], torch.float32, ceiling, True)
    assert torch.equal(torch.autograd.grad((y * weights).sum(), x)[0], found[1])


@interpreted
@settings(max_examples=6, **DRAWN)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(64, 300),
    networks=st.integers(1, 4),
    width=st.sampled_from([32, 64, 128]),
    inner=st.sampled_from([64, 128, 256]),
    deviation=st.sampled_from([0.02, 0.1, 0.2]),
    autocast=st.booleans(),
)
def test_in_bfloat16_the_error_is_no_larger_than_the_modules(seed, tokens, networks, width, inner, deviation, autocast):
    no_less_exact_than_the_modules(*draw_off_the_kinks(seed, tokens, networks, width, inner, deviation, autocast), autocast)


def draw_off_the_kinks(seed, tokens, networks, width, inner, deviation, autocast):
    """Draw a stack as `draw_stack`, with biases that keep every unit off its kink. Otherwise the
    error is that of the few units that rounding flips. In bfloat16 unless autocast rounds."""
    arguments, weights = draw_stack(seed, tokens, networks, width, inner, deviation)
    arguments[2] += 8 * torch.where(arguments[2] < 0, -1, 1)
    return (arguments if autocast else [argument.bfloat16() for argument in arguments]), weights


def no_less_exact_than_the_modules(arguments, weights, autocast):
    """Compare the norm of the error with that of the modules; return output and gradients."""
    expected = with_gradients(lambda *a: reference(*a, 0.0), [a.double() for a in arguments], weights.double())
    with torch.autocast(weights.device.type, torch.bfloat16, enabled=autocast):
        modules = with_gradients(lambda *a: reference(*a, 0.0), arguments, weights)
    found = in_bfloat16(arguments, weights)
    names = ("y", "x", "up", "up_bias", "down", "down_bias", "scale", "shift")
    for name, ours, theirs, exact in zip(names, found, modules, expected, strict=True):
        assert ours.dtype == theirs.dtype
        error, allowed = ((value.double() - exact).norm() / exact.norm() for value in (ours, theirs))
        # Autocast gives the norm's product its x in float32. Ours uses x rounded to bfloat16 (by at
        # most 2**-9 of itself), from which both compute the gradients of all weights.
        least = 2**-8 if name == "scale" else EXACT
        assert error <= max(1.5 * allowed, least), name
    return found


def in_bfloat16(arguments, weights):
    return with_gradients(lambda *a: fused.stack(*a, torch.bfloat16, 0.0, True), arguments, weights)


@compiled
@pytest.mark.parametrize("autocast", [True, False])
def test_on_a_gpu_it_is_exact_gives_equal_bits_and_is_captured(autocast):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != fused.CAPABILITY:
        pytest.skip("no Hopper GPU")
    arguments, weights = draw_off_the_kinks(0, 5000, 4, 128, 512, 0.1, autocast)
    arguments, weights = [argument.cuda() for argument in arguments], weights.cuda()
    first = no_less_exact_than_the_modules(arguments, weights, autocast)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = in_bfloat16(arguments, weights)
    graph.replay()
    for found in (in_bfloat16(arguments, weights), captured):
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


@interpreted
@pytest.mark.parametrize("ceiling", [0.0, 6.0])
@pytest.mark.parametrize("index", range(7))
def test_nan_in_any_argument_reaches_the_output(index, ceiling):
    arguments, _ = draw_stack(0, 3, 2, 16, 16)
    arguments[index].view(-1)[0] = torch.nan
    assert fused.stack(*arguments, torch.float32, ceiling, False)[0].isnan().any()


@interpreted
@pytest.mark.parametrize("hidden_act", ["relu", "relu6"])
@pytest.mark.parametrize("networks", [1, 3])
def test_a_blocks_stack_is_its_modules_one_after_the_other(hidden_act, networks):
    block = build(hidden_act=hidden_act, num_feedforward_networks=networks).mobilebert.encoder.layer[0]
    x, weights = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    results = []
    for fuse in (False, True):
        block.zero_grad()
        given = x.clone().requires_grad_()
        if fuse:
            y = fused.feed_forward(block, given)
        else:
            y = given
            for network in block.ffn:
                y = network(y)
            kept, block.output.bottleneck = block.output.bottleneck, None
            y = block.output(block.intermediate(y), y, None)
            block.output.bottleneck = kept
        (y * weights).sum().backward()
        results.append((y, given.grad, {name: p.grad for name, p in block.named_parameters() if p.grad is not None}))
    (expected, expected_dx, expected_gradients), (y, dx, gradients) = results
    close(y, expected, EXACT)
    close(dx, expected_dx, EXACT)
    assert gradients.keys() == expected_gradients.keys()
    assert len(gradients) == 6 * networks
    for name, gradient in gradients.items():
        close(gradient, expected_gradients[name], EXACT)


@interpreted
def test_a_model_trains_with_it_compiled_or_checkpointed_to_the_same_bits():
    """`fullgraph` allows no graph break."""
    inputs, results = batch("ForPreTraining", True), []
    for way in ("modules", "fused", "compiled", "checkpointed"):
        model = build().train()
        for block in model.mobilebert.encoder.layer:
            block.fused = way != "modules"
            if way == "compiled":
                block.compile(fullgraph=True, backend=CompileCounterWithBackend("aot_eager"))
        if way == "checkpointed":
            model.gradient_checkpointing_enable()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    modules, fused_once, *others = results
    assert len(modules) == len(fused_once)
    close(fused_once[0], modules[0], 2**-8)
    assert not torch.equal(fused_once[0], modules[0])  # equal bits would mean the modules ran twice
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(fused_once, other, strict=True))


def build(**fields):
    torch.manual_seed(0)
    config = MobileBertConfig(**SMALL | {"intermediate_size": 32, "num_feedforward_networks": 3} | fields)
    model = mobilebert.MobileBertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model
