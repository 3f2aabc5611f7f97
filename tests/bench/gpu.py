"""What the GPU programs share: a corpus of random tokens, timed steps of the suite's own loop and of a peer's, the report."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

TOKENS, SENTENCE, DOCUMENT = 2_000_000, 20, 400  # of the corpus: 40 MB of batches at length 128


def arguments(description: str, choices: tuple[str, ...]) -> argparse.Namespace:
    """The command line. Exits 2 where there is no GPU and no --tiny."""
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
    if not found.tiny and not torch.cuda.is_available():
        parser.error("this machine shows no NVIDIA GPU; --tiny tries the program on the CPU")
    found.device = "cpu" if found.tiny else "cuda"
    if found.tiny:
        found.batch, found.length = 2, 32
    return found


def widths(tiny: bool) -> dict:
    """Overrides of a preset for --tiny."""
    if not tiny:
        return {}
    return {"num_hidden_layers": 2, "hidden_size": 64, "embedding_size": 32, "intermediate_size": 64, "vocab_size": 1000}


@contextlib.contextmanager
def corpus(vocab_size: int) -> Iterator[Path]:
    """A folder as the data stage leaves one, of tokens drawn at random: speed does not depend on what they say."""
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
    """A peer's loop: autocast, backward, torch's own clipping and fused AdamW, a batch that lies on the device already.

    Returns steps -> (seconds of each, details).
    """
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
            loss.item()  # as ours, whose loop looks at the loss of every step
            synchronize(device)
            seconds.append(time.perf_counter() - start)
        return seconds, {}

    return run


def ours(model: torch.nn.Module, task, optimizer, device: str) -> Callable:
    """The suite's own loop, `mobilebert.training.loop.train`, with everything that it does beside the step."""
    from dataclasses import replace

    from mobilebert.jobs import Job
    from mobilebert.records import Run
    from mobilebert.training.loop import train

    def run(steps: int) -> tuple[list[float], dict]:
        stamps = []

        def prepare(step: int) -> None:
            stamps.append(time.perf_counter())  # the loop has read the loss of the step before: that step has ended
            task.prepare(step)

        with tempfile.TemporaryDirectory() as folder:
            record = Run(Job("pretrain", "bench", {}, (), "a" * 64), "bench", Path(folder), {})
            record.begin()
            start = time.perf_counter()
            train(record, model, optimizer, replace(task, steps=steps, prepare=prepare, checkpoint_every=10**9), "train", device)
            stamps.append(time.perf_counter())
        details = {key.removeprefix("train_"): value for key, value in record.details.items()}
        stamps[0] = start  # what the loop does before its first step, compiling and capturing, is the first step's
        return list(np.diff(stamps)), details

    return run


def measure(versions: dict[str, Callable], options: argparse.Namespace, flops_per_token: dict[str, float] | None = None) -> dict:
    """Make each version once, run all of them in turn in every round; prints a table, writes --out.

    versions: name -> a function that makes `steps -> (seconds, details)`. A version that fails leaves its error in the file.
    """
    from mobilebert.progress import peak_flops

    tokens, peak = options.batch * options.length, peak_flops(options.device)
    found, made = {}, {}
    for name in versions:
        if not options.versions or name in options.versions:
            found[name] = {"seconds": [], "details": [], "peak_bytes": 0}
    for _ in range(options.rounds):
        for name, one in found.items():
            if "error" in one:
                continue
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                if name not in made:
                    made[name] = versions[name]()
                seconds, details = made[name](options.steps)
            except Exception as error:  # one version's failure must not cost the others' figures
                one["error"] = f"{type(error).__name__}: {error}"[:2000]
                made.pop(name, None)
                gc.collect()
                continue
            one["seconds"].append(seconds)
            one["details"].append(details)
            if options.device == "cuda":
                one["peak_bytes"] = max(one["peak_bytes"], torch.cuda.max_memory_allocated())
    for name, one in found.items():
        if "error" in one:
            print(f"{name:44} FAILED {one['error'][:160]}")
            continue
        steady = [second for seconds in one["seconds"] for second in seconds[1:]]
        one["median_seconds"] = statistics.median(steady)
        one["tokens_per_second"] = tokens / one["median_seconds"]
        one["warmup_seconds"] = one["seconds"][0][0]
        if flops_per_token and peak and name in flops_per_token:
            one["mfu"] = one["tokens_per_second"] * flops_per_token[name] / peak
        spread = np.percentile(steady, [10, 90]) / one["median_seconds"]
        print(
            f"{name:44} {one['tokens_per_second']:12,.0f} tokens/s, p10-p90 {spread[0]:.3f}-{spread[1]:.3f} of the median, "
            f"first step {one['warmup_seconds']:.1f} s, {one['peak_bytes'] / 2**30:.1f} GiB"
            + (f", MFU {one['mfu']:.1%}" if "mfu" in one else "")
        )
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
    return found
