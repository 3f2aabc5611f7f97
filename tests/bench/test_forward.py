"""Our forward pass beside transformers' on the same weights. The verdict is a ratio within one run, never a time."""

import statistics
import time

import pytest
import torch

BATCH, LENGTH, ROUNDS = 1, 128, 15


@pytest.fixture(scope="module")
def pair():
    from transformers import MobileBertConfig as TheirConfig
    from transformers import MobileBertModel as TheirModel

    from mobilebert import MobileBertConfig, MobileBertModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = MobileBertModel(MobileBertConfig.from_preset("mobilebert", num_hidden_layers=6)).eval()
    fields = {key: value for key, value in ours.config.to_dict().items() if key not in ("model_type", "architectures")}
    theirs = TheirModel(TheirConfig(**fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randint(0, 30_000, (BATCH, LENGTH))


@pytest.mark.parametrize("which", ["ours", "transformers"])
def test_forward(benchmark, pair, which):
    benchmark.group = f"MobileBERT, 6 layers, batch {BATCH}, length {LENGTH}, one thread"
    model = pair[0] if which == "ours" else pair[1]
    with torch.inference_mode():
        benchmark.pedantic(model, args=(pair[2],), rounds=ROUNDS, warmup_rounds=3)


def test_no_slower_than_transformers(pair):
    """Interleaved, so that a busy machine hits both; 1.25 leaves room for its noise and none for a lost kernel."""
    ours, theirs, ids = pair
    samples = {"ours": [], "theirs": []}
    with torch.inference_mode():
        for _ in range(ROUNDS + 3):
            for name, model in (("ours", ours), ("theirs", theirs)):
                start = time.perf_counter()
                model(ids)
                samples[name].append(time.perf_counter() - start)
    ratio = statistics.median(samples["ours"][3:]) / statistics.median(samples["theirs"][3:])
    assert ratio < 1.25, samples
