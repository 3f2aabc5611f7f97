"""Compare our forward pass, plain and folded, with transformers' on the same weights.

Verdicts are ratios within one run. The assertion's message and the file of `--benchmark-json` have
the raw samples.
"""

import statistics
import time

import pytest
import torch

from mobilebert.deployment.int8 import processor

WIDE = ("amx_int8", "avx512_vnni", "avx512bw")  # processors with AVX512
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
    """Compare medians of interleaved rounds; only three slow results in a row fail the test.

    The ratio depends on the processor: 1.11 to 1.14, and 1.45 to 1.5 folded, on a Xeon with AVX512
    and AMX; 1.00 to 1.02, and 1.11 to 1.20 folded, on an EPYC with AVX2 alone, where products take
    a larger share of the time. The bounds of each kind are below all ratios seen so far.
    """
    least_ours, least_folded = (1.02, 1.25) if processor()["isa"] in WIDE else (0.95, 1.05)
    for _ in range(3):
        samples = {name: [] for name in models}
        with torch.inference_mode():
            for _ in range(WARMUP + ROUNDS):
                for name, model in models.items():
                    start = time.perf_counter()
                    model(ids)
                    samples[name].append(time.perf_counter() - start)
        median = {name: statistics.median(taken[WARMUP:]) for name, taken in samples.items()}
        ratio = {name: median["transformers"] / median[name] for name in ("ours", "folded")}
        if ratio["ours"] >= least_ours and ratio["folded"] >= least_folded:
            return
    raise AssertionError(f"{ratio}: {samples}")
