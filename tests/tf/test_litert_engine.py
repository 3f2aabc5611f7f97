"""LiteRT runs a file that was written from a PyTorch model, and gives that model's output."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.table import ENGINES, int8_flops, int8_share
from mobilebert.modeling import MobileBertConfig, MobileBertModel
from mobilebert.modeling.cost import cost
from mobilebert.util.errors import UserError

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: make test-tf")

LENGTH = 16
SIZES = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
INNER = {"embedding_size": 32, "intra_bottleneck_size": 32}
BODIES = {
    "no norm": lambda: MobileBertModel(MobileBertConfig(**INNER, **SIZES), add_pooling_layer=False),
    "layer norm": lambda: MobileBertModel(
        MobileBertConfig(**INNER, **SIZES, normalization_type="layer_norm", hidden_act="gelu"), add_pooling_layer=False
    ),
    "bert": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),
}


@pytest.fixture
def rows():
    draw = np.random.default_rng(0)
    mask = np.ones((2, LENGTH), np.int64)
    return [
        {"input_ids": draw.integers(99, size=(2, LENGTH)), "attention_mask": mask, "token_type_ids": 0 * mask} for _ in "abcd"
    ]


def written(body, engine, rows, folder):
    """Return a model with drawn weights, norms among them, and its file in LiteRT."""
    torch.manual_seed(0)
    model = BODIES[body]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    programs.write(ENGINES[engine], model, folder / ENGINES[engine].file, rows)
    return model, programs.load(ENGINES[engine], folder / ENGINES[engine].file, 1)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("engine", "least", "most"), [("litert", 0, 1e-5), ("litert-dynamic", 1e-5, 0.02), ("litert-int8", 1e-3, 0.1)]
)
def test_the_files_output_is_the_pytorch_models(body, engine, least, most, rows, tmp_path):
    model, loaded = written(body, engine, rows, tmp_path)
    rows[0]["attention_mask"][1, 10:] = 0 if engine == "litert" else 1
    with torch.inference_mode():
        wanted = model(**{name: torch.from_numpy(array) for name, array in rows[0].items()}).last_hidden_state.numpy()
    kept = rows[0]["attention_mask"].astype(bool)
    found = loaded(rows[0])["last_hidden_state"]
    assert least <= np.linalg.norm((found - wanted)[kept]) / np.linalg.norm(wanted[kept]) < most
    share = int8_share(int8_flops(loaded.kernels(rows[0])), 2 * cost(model.config.to_dict(), LENGTH).encoder_flops)
    assert share == 0 if engine == "litert" else share > 0.9


def test_a_model_without_a_keras_class_is_refused_in_one_line(rows, tmp_path):
    model = DistilBertModel(DistilBertConfig(vocab_size=99, dim=32, hidden_dim=64, n_layers=1, n_heads=2))
    with pytest.raises(UserError, match=r"^litert: DistilBertModel has no Keras class here; MobileBERT and BERT have$"):
        programs.write(ENGINES["litert"], model, tmp_path / "model.tflite", rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("body", BODIES)
def test_no_product_of_the_int8_file_needs_the_slow_kernel_of_a_batch(body, rows, tmp_path):
    """Each head has its own products: LiteRT computes a batch of them in its reference code."""
    _, loaded = written(body, "litert-int8", rows, tmp_path)
    ran = [kernel for kernel in loaded.kernels(rows[0]) if kernel.flops]
    assert {(kernel.op, kernel.is_int8) for kernel in ran} == {("FULLY_CONNECTED", True)}
    width = (32 if body != "bert" else 64) // 2  # of a head
    assert sum(kernel.flops == 2 * LENGTH * LENGTH * width for kernel in ran) >= 2 * 2 * 2 * 2  # layers, rows, heads, two


def test_the_int8_file_names_inputs_and_outputs_alone(rows, tmp_path):
    """A product of one head is named after those of all heads and rows: more bytes than weights."""
    _, loaded = written("bert", "litert-int8", rows, tmp_path)
    details = loaded._interpreter.get_tensor_details()
    assert sum(bool(one["name"]) for one in details) == 4
    assert len(details) > 100
    assert set(loaded(rows[0])) == {"last_hidden_state"}
