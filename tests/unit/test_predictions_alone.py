"""A row's prediction does not depend on its neighbours, their order or their number."""

import numpy as np
import pytest
import torch
from family import pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilebert.data.examples import Examples
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.evaluation.scoring import outputs
from mobilebert.finetuning.task import forward_of

rows = st.lists(st.lists(st.integers(1, 49), min_size=2, max_size=14).map(tuple), min_size=1, max_size=24)


def examples(rows) -> Examples:
    return Examples([np.array(row) for row in rows], [np.arange(len(row)) % 2 for row in rows], 0)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: two threads share a product's rows, and sum few rows in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def forwards(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("onnx"), {}
    model = pair("ForSequenceClassification", num_labels=3)[0]
    found["float"] = forward_of(model, "cpu")
    export_onnx(model, folder / "model.onnx", length=16)
    quantize_int8(folder / "model.onnx", folder / "model.int8.onnx")
    found["float ONNX"], found["int8 ONNX"] = (OnnxModel(folder / name) for name in ("model.onnx", "model.int8.onnx"))
    found["answers"] = forward_of(pair("ForQuestionAnswering", num_labels=2)[0], "cpu")
    return found


@pytest.mark.parametrize("kind", ["float", "answers", "float ONNX", "int8 ONNX"])
@settings(max_examples=25, deadline=None)
@given(rows=rows, data=st.data())
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(forwards, kind, rows, data):
    forward = forwards[kind]
    if kind == "answers":
        rows = [(2, *row, 3) for row in rows]  # a window has at least four tokens
    names = ("start_logits", "end_logits") if kind == "answers" else ("logits",)
    size = {"size": forward.ROWS} if "ONNX" in kind else {}
    order = data.draw(st.permutations(range(len(rows))))
    together = outputs(forward, examples(rows), names, **size)
    shuffled = outputs(forward, examples([rows[place] for place in order]), names, **size)
    one = data.draw(st.integers(0, len(rows) - 1))
    alone = outputs(forward, examples([rows[one]]), names, **size)
    for name in names:
        assert np.array_equal(together[name][one], alone[name][0])
        assert all(np.array_equal(shuffled[name][place], together[name][row]) for place, row in enumerate(order))


def test_a_row_alone_gives_the_models_unpadded_output(forwards):
    """transformers' pipeline does the same: it does not pad a single text."""
    model, row = pair("ForSequenceClassification", num_labels=3)[0], (2, 7, 9, 3, 5)
    found = outputs(forwards["float"], examples([row, (4,) * 14]), ("logits",))["logits"][0]
    types = torch.tensor([[0, 1, 0, 1, 0]])
    with torch.no_grad():
        expected = model(torch.tensor([row]), torch.ones(1, 5), types).logits[0]
        padded = model(torch.tensor([[*row, 0, 0, 0]]), torch.tensor([[1.0] * 5 + [0.0] * 3]), torch.tensor([[0, 1] * 4]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(padded.logits[0] - expected).max() > 1e-3
