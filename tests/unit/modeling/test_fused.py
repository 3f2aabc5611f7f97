"""The fused feed-forward stack without its kernels.

The tests cover which models may use it, when it is not used, and what a tracer sees.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import transformers
from family import SMALL, batch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mobilebert
from mobilebert import MobileBertConfig
from mobilebert.modeling import fold
from mobilebert.modeling.kernels import fused
from mobilebert.pretraining.common import make_plan
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.study.recipe import Distill
from mobilebert.util.errors import UserError

SERVED = SMALL | {"intermediate_size": 32, "num_feedforward_networks": 3}


def build(dtype: torch.dtype = torch.float32, **fields) -> nn.Module:
    torch.manual_seed(0)
    return mobilebert.MobileBertForPreTraining._from_config(MobileBertConfig(**SERVED | fields), dtype=dtype).eval()


@pytest.fixture
def hopper(monkeypatch):
    """Imitate a machine with a Hopper GPU and Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(fused, "find_spec", lambda name: importlib.util.find_spec("torch"))


@pytest.fixture
def cpu_in_its_place(monkeypatch):
    monkeypatch.setattr(fused, "DEVICE", "cpu")


def refusal(model: nn.Module) -> str:
    with pytest.raises(UserError) as caught:
        fused.enable(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_enable_fuses_every_block_of_a_supported_model(hopper):
    for fields in ({}, {"hidden_act": "relu6"}, {"num_feedforward_networks": 1}, {"intermediate_size": 384}):
        model = build(**fields)
        fused.enable(model)
        assert all(block.fused for block in model.mobilebert.encoder.layer)
    base = build().mobilebert
    fused.enable(base)
    assert all(block.fused for block in base.encoder.layer)
    assert not any(block.fused for block in build().mobilebert.encoder.layer)


@pytest.mark.parametrize(
    "fields",
    [
        {"normalization_type": "layer_norm"},
        {"hidden_act": "gelu"},
        {"intra_bottleneck_size": 24},
        {"intra_bottleneck_size": 256},
        {"intermediate_size": 20},
        {"intermediate_size": 192},
        {"use_bottleneck": False, "key_query_shared_bottleneck": False, "hidden_size": 32},
    ],
)
def test_a_model_without_such_a_stack_is_refused(hopper, fields):
    model = build(**fields)
    assert "has no feed-forward networks that the kernel takes" in refusal(model)
    assert not any(block.fused for block in model.mobilebert.encoder.layer)


def test_other_models_are_refused(hopper):
    bert = transformers.BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    assert "BertModel has no feed-forward networks that the kernel takes" in refusal(transformers.BertModel(bert))
    assert "has no feed-forward networks that the kernel takes" in refusal(fold(build()))


def test_a_machine_without_hopper_or_triton_is_refused(hopper, monkeypatch):
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert "triton is not installed" in refusal(build())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "Hopper" in refusal(build())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "Hopper" in refusal(build())


def test_the_kernel_is_not_used_for_hooked_or_replaced_modules(cpu_in_its_place):
    block, x = build(torch.bfloat16).mobilebert.encoder.layer[0], torch.zeros(1, 3, 16, dtype=torch.bfloat16)
    assert fused.serves(block, x)
    assert not fused.serves(block, x[:0])
    assert not fused.serves(block, x.to("meta"))
    heard = [module for name, module in block.named_modules() if name.startswith(("ffn.", "intermediate", "output"))]
    outside = set(block.output.bottleneck.modules())
    assert len(set(heard) - outside) == 3 * 7
    for module in heard:
        for listen in (
            lambda module: module.register_forward_hook(lambda *_: None),
            lambda module: module.register_forward_pre_hook(lambda *_: None),
            lambda module: module.register_full_backward_hook(lambda *_: None),
            lambda module: module.register_full_backward_pre_hook(lambda *_: None),
        ):
            handle = listen(module)
            assert fused.serves(block, x) == (module in outside)
            handle.remove()
            assert fused.serves(block, x)

    for module in set(heard) - outside:
        module.forward = module.forward  # as accelerate's hooks do, which move weights to the device and back
        assert not fused.serves(block, x)
        del module.forward

    class Adapted(nn.Linear):
        pass

    for owner in (block.ffn[0].intermediate, block.ffn[1].output, block.intermediate, block.output):
        plain, owner.dense = owner.dense, Adapted(owner.dense.in_features, owner.dense.out_features)
        assert not fused.serves(block, x)
        owner.dense = plain
    assert fused.serves(block, x)


def test_the_kernel_is_used_only_for_products_in_bfloat16(cpu_in_its_place):
    block, x = build().mobilebert.encoder.layer[0], torch.zeros(1, 3, 16)
    assert not fused.serves(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.serves(block, x)


def test_a_hook_is_called_and_the_loss_is_that_of_the_modules(cpu_in_its_place):
    model, inputs = build(torch.bfloat16), batch("ForPreTraining", True)
    expected, heard = model(**inputs).loss, []
    for block in model.mobilebert.encoder.layer:
        block.fused = True
        block.ffn[0].output.register_forward_hook(lambda *_: heard.append(1))
    assert torch.equal(model(**inputs).loss, expected)
    assert len(heard) == len(model.mobilebert.encoder.layer)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_shapes_and_dtypes_of_forward_and_backward_are_the_modules(cpu_in_its_place, autocast, learns):
    dtype, found = torch.float32 if autocast else torch.bfloat16, []
    for fuse in (False, True):
        with FakeTensorMode():
            block = build(dtype).mobilebert.encoder.layer[0].requires_grad_(learns)
            block.fused = fuse
            x, inner = torch.zeros(2, 5, 24, dtype=dtype, requires_grad=True), []
            block.output.bottleneck.register_forward_pre_hook(lambda _, given, inner=inner: inner.append(given[0]))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                assert fused.serves(block, x)
                y, _ = block(x, None, False)
            y.sum().backward()
        gradients = {name: (p.grad.shape, p.grad.dtype) for name, p in block.named_parameters() if p.grad is not None}
        assert len(gradients) == (len(list(block.parameters())) if learns else 0)
        found.append((y.shape, y.dtype, inner[0].shape, inner[0].dtype, x.grad.dtype, gradients))
    assert found[0] == found[1]


@pytest.mark.parametrize("gradients", [True, False])
def test_a_tracer_sees_one_operator_a_block(cpu_in_its_place, gradients):
    model = build(torch.bfloat16)
    for block in model.mobilebert.encoder.layer:
        block.fused = True
    inputs = {key: value for key, value in batch("ForPreTraining", True).items() if key in ("input_ids", "attention_mask")}
    with torch.set_grad_enabled(gradients):
        graph = torch.export.export(model, (), inputs, strict=True).graph
    calls = [node for node in graph.nodes if "mobilebert.stack" in str(node.target)]
    assert len(calls) == len(model.mobilebert.encoder.layer)


def test_a_training_program_enables_the_kernel_before_it_begins(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = SimpleNamespace(job=SimpleNamespace(stage="distill", name="mobilebert"), settings=lambda kind: kind.model_construct())
    with pytest.raises(UserError, match="Hopper"):
        make_plan(run, SimpleNamespace(distill=Distill(fused=True, precision="bf16")), build(), None)


def test_the_fused_setting_is_not_in_the_fingerprint_and_needs_bf16():
    study = load_study("smoke")
    on = study.distill.model_copy(update={"fused": True})
    before, after = build_graph(study), build_graph(study.model_copy(update={"distill": on}))
    assert {key: job.fingerprint for key, job in before.items()} == {key: job.fingerprint for key, job in after.items()}
    assert Distill(fused=True, precision="bf16").fused
    assert not Distill().fused
    with pytest.raises(ValueError, match="fused: true needs precision bf16, not fp32"):
        Distill(fused=True)
