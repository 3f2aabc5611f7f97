"""Our forward pass, as it is and folded, beside transformers' on the same weights. Verdicts are ratios within one run.

Raw samples stand in the assertion's message, and in the file that `--benchmark-json` writes.
"""

import time

import pytest
import torch

BATCH, LENGTH, WARMUP, ROUNDS = 1, 128, 3, 21


@pytest.fixture(scope="module")
def models():
    from transformers import MobileBertConfig as TheirConfig
    from transformers import MobileBertModel as TheirModel

    from mobilebert import MobileBertConfig, MobileBertModel, fold

    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = MobileBertModel(MobileBertConfig.from_preset("mobilebert")).eval()
    fields = {key: value for key, value in ours.config.to_dict().items() if key not in ("model_type", "architectures")}
    theirs = TheirModel(TheirConfig(**fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    return {"transformers": theirs, "ours": ours, "folded": fold(ours)}


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 30_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("which", ["transformers", "ours", "folded"])
def test_forward(benchmark, models, ids, which):
    benchmark.group = f"MobileBERT, batch {BATCH}, length {LENGTH}, one thread"
    with torch.inference_mode():
        benchmark.pedantic(models[which], args=(ids,), rounds=5, warmup_rounds=WARMUP)


def test_faster_than_transformers(models, ids):
    """At least 1.1 times as it is, 1.25 times folded.

    Rounds take each model once; of each the fastest round counts, the one that other work on the machine disturbed least.
    """
    samples = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(WARMUP + ROUNDS):
            for name, model in models.items():
                start = time.perf_counter()
                model(ids)
                samples[name].append(time.perf_counter() - start)
    best = {name: min(taken[WARMUP:]) for name, taken in samples.items()}
    ratio = {name: best["transformers"] / best[name] for name in ("ours", "folded")}
    assert ratio["ours"] >= 1.1, (ratio, samples)
    assert ratio["folded"] >= 1.25, (ratio, samples)
