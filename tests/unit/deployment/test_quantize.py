"""The int8 stage marks a model that guesses, be it after quantization or after fine-tuning."""

from types import SimpleNamespace

import pytest

from mobilebert.stages.quantize import status


@pytest.mark.parametrize(
    ("task", "statuses", "metrics", "shares", "expected"),
    [
        ("sst2", ["failed", "ok"], {"accuracy": 0.9, "majority": 0.5}, [0.4, 0.6], "ok"),
        ("sst2", ["failed", "ok"], {"accuracy": 0.5, "majority": 0.5}, [0.0, 1.0], "failed"),  # although its float model learnt
        ("sst2", ["ok", "failed"], {"accuracy": 0.9, "majority": 0.5}, [0.4, 0.6], "failed"),  # its seed had failed
        ("squad_v1.1", ["ok", "ok"], {"exact_match": 0.3}, [0.9, 0.1], "ok"),
        ("squad_v1.1", ["ok", "ok"], {"exact_match": 0.02}, [0.9, 0.1], "failed"),  # no better than the constant answer
    ],
)
def test_a_model_that_has_collapsed_is_marked(task, statuses, metrics, shares, expected):
    source = SimpleNamespace(
        details={"seeds": [0, 1], "best_seed": 1, "statuses": statuses}, metrics={"constant_exact_match": 0.02, "accuracy": 0.8}
    )
    assert status(task, source, metrics, {"rows": {"validation": 1000}, "shares": {"validation": shares}}) == expected
