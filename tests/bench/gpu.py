"""Share code between the GPU programs.

A corpus of random tokens, timed steps of the suite's loop and of a peer's, and the report.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

TOKENS, SENTENCE, DOCUMENT = 2_000_000, 20, 400  # of the corpus: 40 MB of batches at length 128
# Steps left out at the start of a round, alike in all versions: the first compiles, the first three
# (`graphs.WARM_UP`) run kernel by kernel, and the fourth records the graphs.
SETTLED = 4


def arguments(description: str, choices: tuple[str, ...]) -> argparse.Namespace:
    """Return the parsed command line. Exit with code 2 if there is neither a GPU nor --tiny."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what", choices=choices)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file: every sample, what it was measured on")
    parser.add_argument("--rounds", type=int, default=2, help="every version once a round")
    parser.add_argument("--steps", type=int, default=30, help="of each version in a round")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--versions", nargs="+", help="these alone")
    parser.add_argument("--tiny", action="store_true", help="narrow models on the CPU: tries the program, measures nothing")
    found = parser.parse_args()
    if found.steps <= SETTLED:
        parser.error(f"--steps: the first {SETTLED} are left out, so at least {SETTLED + 1}")
    if not found.tiny and not torch.cuda.is_available():
        parser.error("this machine shows no NVIDIA GPU; --tiny tries the program on the CPU")
    found.device = "cpu" if found.tiny else "cuda"
    if found.tiny:
        found.batch, found.length = 8, 64  # some rows are padded, as at full size
    return found


def widths(tiny: bool) -> dict:
    """Return the overrides of a preset for --tiny."""
    if not tiny:
        return {}
    return {"num_hidden_layers": 2, "hidden_size": 64, "embedding_size": 32, "intermediate_size": 64, "vocab_size": 1000}


@contextlib.contextmanager
def corpus(vocab_size: int) -> Iterator[Path]:
    """Yield a folder like the data stage's, with random tokens: speed does not depend on them."""
    from tokenizers import Tokenizer, models

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        (folder / "tokenizer").mkdir()
        words = {
            word: place for place, word in enumerate([*special, *(f"w{index}" for index in range(vocab_size - len(special)))])
        }
        Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]")).save(
            str(folder / "tokenizer" / "tokenizer.json")
        )
        tokens = np.random.default_rng(0).integers(len(special), vocab_size, TOKENS).astype(np.uint16)
        np.save(folder / "corpus" / "train.tokens.npy", tokens)
        np.save(folder / "corpus" / "train.sentences.npy", np.arange(0, TOKENS + 1, SENTENCE))
        np.save(folder / "corpus" / "train.documents.npy", np.arange(0, TOKENS // SENTENCE + 1, DOCUMENT // SENTENCE))
        yield folder / "corpus"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peer(step: Callable[[dict], torch.Tensor], model: torch.nn.Module, batch: Callable[[int], dict], device: str) -> Callable:
    """Return steps -> (seconds of each, details): a peer's loop. It uses autocast, backward,
    torch's own clipping and fused AdamW, on batches that already lie on the device."""
    from mobilebert.util.errors import Diverged

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-5, weight_decay=0.01, fused=True)
    ready = [{key: value.to(device) for key, value in batch(index).items()} for index in range(4)]

    def run(steps: int) -> tuple[list[float], dict]:
        seconds = []
        for index in range(steps):
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                loss = step(ready[index % len(ready)])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(loss.item()):  # our loop also reads the loss of every step
                raise Diverged(f"loss {loss.item()} at step {index}")
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        return seconds, {}

    return run


def ours(model: torch.nn.Module, task, optimizer, device: str) -> Callable:
    """Return the suite's own loop, `mobilebert.training.loop.train`, with all that it does."""
    from dataclasses import replace

    from mobilebert.jobs.context import JobContext
    from mobilebert.study.job import Job
    from mobilebert.training.loop import train

    def run(steps: int) -> tuple[list[float], dict]:
        stamps = []

        def prepare(step: int) -> None:
            stamps.append(time.perf_counter())  # the loop has read the previous loss, so that step has ended
            task.prepare(step)

        with tempfile.TemporaryDirectory() as folder:
            record = JobContext(Job("pretrain", "bench", {}, (), "a" * 64), "bench", Path(folder), {})
            record.begin()
            start = time.perf_counter()
            train(record, model, optimizer, replace(task, steps=steps, prepare=prepare, checkpoint_every=10**9), "train", device)
            stamps.append(time.perf_counter())
        details = {key.removeprefix("train_"): value for key, value in record.details.items()}
        stamps[0] = start  # the first step includes the work before it, such as compiling
        return list(np.diff(stamps)), details

    return run


def sample(make: Callable[[], Callable], given) -> tuple:
    """Return (result, "") of `make()(given)`, or (None, its error) if the version fails. The
    version is created here and freed afterwards."""
    try:
        return make()(given), ""
    except Exception as error:  # one version's failure must not cost the others' figures
        return None, f"{type(error).__name__}: {error}"[:2000]


def measure(versions: dict[str, Callable], options: argparse.Namespace, flops_per_token: dict[str, float] | None = None) -> dict:
    """Measure every version once a round, in turn, and print a table.

    Write --out after each version: a time limit costs only the figures that are missing.

    versions: name -> a function that returns `steps -> (seconds, details)`. Each round calls it
    anew, so that the other versions do not add to its peak memory or take its room. Code that was
    compiled once in a process is not compiled again. A version that fails leaves its error in the
    file. Figures are of the steps after the first SETTLED of a round.
    """
    from mobilebert.util.progress import peak_flops

    # The versions share the blocks' code, and dynamo counts by code: above its limit a compiled
    # version would run uncompiled.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    tokens, peak = options.batch * options.length, peak_flops(options.device)
    found = {}
    for name in versions:
        if not options.versions or name in options.versions:
            found[name] = {"seconds": [], "details": [], "peak_bytes": 0}
    for _ in range(options.rounds):
        for name, one in found.items():
            if "error" in one:
                continue
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken, error = sample(versions[name], options.steps)
            if options.device == "cuda":
                one["peak_bytes"] = max(one["peak_bytes"], torch.cuda.max_memory_allocated())
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
            if taken is None:
                one["error"] = error
            else:
                one["seconds"].append(taken[0])
                one["details"].append(taken[1])
                _figures(one, tokens, flops_per_token and peak and flops_per_token.get(name, 0.0) / peak)
            _write(found, tokens, options)
    for name, one in found.items():
        if "error" in one:
            print(f"{name:44} FAILED {one['error'][:160]}")
            continue
        print(
            f"{name:44} {one['tokens_per_second']:12,.0f} tokens/s, p10-p90 {one['p10_p90'][0]:.3f}-{one['p10_p90'][1]:.3f} "
            f"of the median, first {SETTLED} steps {one['warmup_seconds']:.1f} s, {one['peak_bytes'] / 2**30:.1f} GiB"
            + (f", MFU {one['mfu']:.1%}" if "mfu" in one else "")
        )
    return found


def _figures(one: dict, tokens: int, mfu_of: float | None) -> None:
    """Update the figures of a version. `mfu_of` is the MFU at one token a second."""
    steady = [second for seconds in one["seconds"] for second in seconds[SETTLED:]]
    one["median_seconds"] = statistics.median(steady)
    one["p10_p90"] = list(np.percentile(steady, [10, 90]) / one["median_seconds"])
    one["tokens_per_second"] = tokens / one["median_seconds"]
    one["warmup_seconds"] = sum(one["seconds"][0][:SETTLED])
    if mfu_of:
        one["mfu"] = one["tokens_per_second"] * mfu_of


def _write(found: dict, tokens: int, options: argparse.Namespace) -> None:
    report = {
        "program": Path(sys.argv[0]).name,
        "arguments": {key: str(value) for key, value in vars(options).items()},
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu (tiny: not a measurement)",
        "torch": torch.__version__,
        "tokens_per_step": tokens,
        "versions": found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
