"""Fake quantization: NumPy computes the same grids, ONNX Runtime the same scores."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from toy_training import new_run
from transformers import BertConfig, BertForSequenceClassification

from mobilebert.deployment import int8
from mobilebert.deployment.aware_file import export_aware
from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.table import ENGINES, int8_flops, int8_share
from mobilebert.deployment.fake_quantization import Grid, QuantizedLinear, aware, quantized
from mobilebert.deployment.layer_errors import hidden_errors, hidden_states, layer_outputs
from mobilebert.deployment.quantize import OnnxModel
from mobilebert.modeling import MobileBertConfig, MobileBertForQuestionAnswering, MobileBertForSequenceClassification
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import UserError

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = SIZES | {"embedding_size": 16, "intra_bottleneck_size": 16, "initializer_range": 0.2, "max_position_embeddings": 24}


def oracle(x, scale, zero, low, high):
    """Return values and gradients of rounding to a grid, entry by entry, in float64."""
    values, gradients = np.empty_like(x), np.empty_like(x)
    for place in np.ndindex(x.shape):
        one = scale if np.ndim(scale) == 0 else scale[place[-1]]
        step = round(float(np.float32(x[place]) / np.float32(one))) + zero  # Python's halves go to the even integer too
        values[place] = (min(max(step, low), high) - zero) * one
        gradients[place] = float(low <= step <= high)
    return values, gradients


@pytest.mark.parametrize(
    ("kind", "zero", "low", "high", "scale"),
    [
        (torch.uint8, 37, 0, 255, 0.05),
        (torch.uint8, 0, 0, 255, 0.5),
        (torch.int8, 0, -128, 127, [0.03, 0.5, 1.0, 0.001, 2.0]),
    ],
)
def test_values_and_gradients_are_those_of_numpy(kind, zero, low, high, scale):
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.normal(0, 8, (50, 5)), np.array([[0.25, -0.75, 0.5, -0.5, 1.5], [1e9, -1e9, 0, -0.0, 1e-9]])])
    tensor = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    grid = torch.tensor(scale)
    found = quantized(tensor, grid, torch.full(grid.shape, zero, dtype=kind))
    weights = torch.from_numpy(draw.normal(size=x.shape).astype(np.float32))
    (found * weights).sum().backward()
    values, gradients = oracle(x, np.float64(scale) if np.ndim(scale) == 0 else np.array(scale), zero, low, high)
    np.testing.assert_allclose(found.detach().numpy(), values, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(tensor.grad.numpy(), gradients * weights.numpy())
    assert 0 < gradients.mean() < 1  # both kinds of values were drawn


def test_a_grids_ends_are_the_moving_average_of_the_batches():
    """The average is written out: weights 0.999^age, divided by their sum."""
    draw = np.random.default_rng(1)
    batches = [draw.normal(mean, 2, (3, 4)).astype(np.float32) for mean in (5, -1, 0, 2)]
    grid = Grid()
    for batch in batches:
        grid(torch.from_numpy(batch))
    weights = 0.999 ** np.arange(len(batches))[::-1]
    low = np.average([min(0, batch.min()) for batch in batches], weights=weights)
    high = np.average([max(0, batch.max()) for batch in batches], weights=weights)
    assert grid.low.item() == pytest.approx(low, rel=1e-5)
    assert grid.high.item() == pytest.approx(high, rel=1e-5)
    assert grid.scale.item() == pytest.approx((high - low) / 255, rel=1e-5)
    before = grid.zero_point.clone()
    grid.eval()(torch.full((2, 2), 1e3))  # scoring changes no grid
    assert grid.zero_point == before
    assert grid(torch.zeros(1)) == 0  # zero is a step


def test_scores_of_attention_lie_between_the_mask_and_60():
    grid = Grid(-6.0, 60.0)
    for _ in range(3):
        grid(torch.tensor([-500.0, 3.0, 900.0]))
    ends = grid.eval()(torch.tensor([-500.0, -6.0, 900.0]))
    assert ends[0] == ends[1]  # a masked key's score is the lowest step
    assert ends.tolist() == pytest.approx([-6, -6, 60], abs=66 / 255 / 2)


@pytest.mark.parametrize("kind", [MobileBertForSequenceClassification, MobileBertForQuestionAnswering])
def test_the_model_is_near_the_plain_one_with_relu6_and_mask_6(kind):
    torch.manual_seed(0)
    model = kind(MobileBertConfig(**SMALL))
    plain = kind(MobileBertConfig(**SMALL, hidden_act="relu6", mask_value="-6"))
    plain.load_state_dict(model.state_dict())
    learner, batch = aware(model.train()), batch_of(0)
    with torch.no_grad():
        learner(**batch)  # sets the grids to this batch
        outputs = [one.eval()(**batch)[0] for one in (learner, plain, model)]
    error, other = ((one - outputs[1]).norm() / outputs[1].norm() for one in (outputs[0], outputs[2]))
    assert 1e-4 < error < 0.1  # 0.02 to 0.04
    assert other > 1e-6  # relu and another mask are not the same model
    assert model.config.hidden_act == "relu"


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertForSequenceClassification(BertConfig(**SIZES)),
        lambda: MobileBertForSequenceClassification(MobileBertConfig(**SMALL, normalization_type="layer_norm")),
    ],
)
def test_other_models_are_refused_in_one_line(make):
    with pytest.raises(UserError, match=r"^[^\n]*quantization-aware training is for models of this package with no_norm$"):
        aware(make())


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_an_activation_that_relu6_would_replace_is_refused(activation):
    model = MobileBertForSequenceClassification(MobileBertConfig(**SMALL, hidden_act=activation))
    with pytest.raises(UserError, match=f"^hidden_act: [^\n]*relu and relu6, not {activation}$"):
        aware(model)


# --- training and the file


def batch_of(step):
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(1, 40, (4, 12), generator=draw)
    mask = (torch.arange(12) < torch.tensor([[12], [12], [9], [5]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": 0 * ids}


def trained(folder, stop=None):
    """Train for six steps, or be killed before step `stop`; return the model."""

    def batch(step):
        if step == stop:
            raise KeyboardInterrupt
        return batch_of(step) | {"labels": batch_of(step)["input_ids"][:, 1] % 2}

    torch.manual_seed(0)
    model = aware(MobileBertForSequenceClassification(MobileBertConfig(**SMALL)).train())

    def loss(batch, step):
        return {"loss": model(**batch).loss}

    plan = TrainingPlan(steps=6, batch=batch, loss=loss, rate=lambda step: 1.0, seed=3, checkpoint_every=2)
    train(new_run(folder), model, optim.make(model, "adamw", 0.003, 0.01), plan, "qat")
    return model


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole")).eval()


def test_a_killed_training_ends_with_the_same_weights_and_grids(learner, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=5)
    wanted, found = learner.state_dict(), trained(tmp_path).state_dict()
    assert any(name.endswith("grid.low") for name in wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def files(learner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    export_aware(learner, folder / "int8.onnx", length=8)
    return folder


def test_the_file_has_the_scores_of_the_fake_quantized_model(learner, files):
    with torch.inference_mode():
        for step in range(3):
            batch = batch_of(10 + step)
            wanted = learner(**batch).logits
            found = OnnxModel(files / "int8.onnx")({name: tensor.numpy() for name, tensor in batch.items()})["logits"]
            # A value near a half may take the next step: rounding alone moves an output.
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0.02, atol=0.02)
            assert (found.argmax(-1) == wanted.numpy().argmax(-1)).all()


def test_every_product_with_weights_runs_in_8_bits_on_exact_sums(learner, files):
    record = int8.describe(files / "int8.onnx", files / "int8.onnx", 8, "quantization-aware")
    assert (record.weight_range, record.saturates, record.activation_type) == ((-64, 64), False, "uint8")
    row = {name: tensor[:1, :8].numpy() for name, tensor in batch_of(1).items()}
    kernels = programs.load(ENGINES["onnxruntime"], files / "int8.onnx", 1).kernels(row)
    assert int8_share(int8_flops(kernels), None) == pytest.approx(record.int8_flops_share)
    assert sum(kernel.is_int8 for kernel in kernels) == sum(isinstance(one, QuantizedLinear) for one in learner.modules())


def test_every_layer_of_the_file_is_that_of_the_fake_quantized_model(learner, files):
    row = {name: tensor[:1, :8].numpy() for name, tensor in batch_of(1).items()}
    errors = hidden_errors(hidden_states(learner, row), layer_outputs(files / "int8.onnx", row))
    assert set(errors) == {"0", "1"}
    assert max(errors.values()) < 0.02


def test_the_file_stores_the_integers_of_the_grids(learner, files):
    graph = onnx.load(files / "int8.onnx").graph
    stored = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    wanted = {name: one for name, one in learner.named_modules() if isinstance(one, QuantizedLinear)}
    for name, linear in wanted.items():
        steps = np.rint(linear.weight.detach().numpy().T / linear.weight_scale.numpy())
        assert any(array.dtype == np.int8 and np.array_equal(array, steps) for array in stored), name
    floats = sum(array.nbytes for array in stored if array.dtype == np.float32)
    assert floats < 0.25 * sum(parameter.numel() * 4 for parameter in learner.parameters())
