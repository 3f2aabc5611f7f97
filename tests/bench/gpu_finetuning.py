"""Compare fine-tuning on one GPU with transformers' Trainer.

The model, rows, batch size, epochs and optimizer settings are the same. Both train in bf16.

python tests/bench/gpu_finetuning.py prepare --data ../shared/data --examples examples.npz
python tests/bench/gpu_finetuning.py sst2 --examples examples.npz --out sst2.json
python tests/bench/gpu_finetuning.py squad_v1.1 --examples examples.npz --out squad.json

SST-2: 3 epochs, batch 32, at most 128 tokens. SQuAD v1.1: 2 epochs, batch 32, 384 tokens.
A figure is the wall seconds of one training, without tokenization (`prepare`) and scoring. Weights
are random: speed does not depend on them. Both pad to the longest row of a batch; only ours sorts
by length.

--rows draws training rows at random. All 67,349 of SST-2 are 6,300 steps of each version in each
round; the default 8,000 are 750 steps, and 500 of SQuAD. Every row, one version a call:

python tests/bench/gpu_finetuning.py sst2 --examples examples.npz --rows 67349 --rounds 1 \
    --versions ours --out sst2-ours.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

EPOCHS = {"sst2": 3, "squad_v1.1": 2}
TINY_ROWS, WARM_ROWS, BATCH, RATE = 24, 320, 32, 5e-5


def prepare(data: Path, out: Path) -> None:
    """Tokenize once; the measuring machine then needs neither the data nor a parquet reader."""
    import pandas as pd
    from tokenizers import BertWordPieceTokenizer

    from mobilebert.data.examples import encode, encode_squad
    from mobilebert.study.stage_config import LengthsConfig

    tokenizer = BertWordPieceTokenizer(str(data / "vocab.txt"), lowercase=True)._tokenizer
    answers = LengthsConfig(length=384, doc_stride=128, max_query_length=64)
    found = {
        "sst2": encode(tokenizer, "sst2", pd.read_parquet(data / "glue/sst2/train.parquet"), 128),
        "squad_v1.1": encode_squad(tokenizer, pd.read_parquet(data / "squad/v1.1/train.parquet"), answers, training=True)[0],
    }
    arrays = {}
    for task, examples in found.items():
        arrays[f"{task}/bounds"] = np.cumsum([0, *examples.lengths])
        arrays[f"{task}/ids"] = np.concatenate(examples.ids).astype(np.uint16)
        arrays[f"{task}/types"] = np.concatenate(examples.types).astype(np.int8)
        arrays |= {f"{task}/targets/{name}": values for name, values in examples.targets.items()}
    np.savez_compressed(out, **arrays)


def examples_of(task: str, path: Path, rows: int):
    from mobilebert.data.examples import Examples

    with np.load(path, allow_pickle=False) as arrays:
        bounds, ids, types = (arrays[f"{task}/{name}"] for name in ("bounds", "ids", "types"))
        targets = {key.rpartition("/")[2]: arrays[key] for key in arrays.files if key.startswith(f"{task}/targets/")}
    pieces = list(pairwise(bounds))
    found = Examples([ids[a:b].astype(np.int32) for a, b in pieces], [types[a:b] for a, b in pieces], 0, targets)
    return found.part(min(rows, len(found)))


def model_of(task: str, tiny: bool):
    import gpu

    from mobilebert import MobileBertConfig, MobileBertForQuestionAnswering, MobileBertForSequenceClassification

    torch.manual_seed(0)
    fields = gpu.widths(tiny) | ({"vocab_size": 30522} if tiny else {})
    kind = MobileBertForQuestionAnswering if task.startswith("squad") else MobileBertForSequenceClassification
    return kind(MobileBertConfig.from_preset("mobilebert", **fields))


def theirs_of(task: str, tiny: bool):
    """Return transformers' own model of the same shape."""
    import transformers

    fields = model_of(task, tiny).config.to_dict()
    fields = {key: value for key, value in fields.items() if key not in ("model_type", "architectures")}
    kind = "MobileBertForQuestionAnswering" if task.startswith("squad") else "MobileBertForSequenceClassification"
    return getattr(transformers, kind)(transformers.MobileBertConfig(**fields, attn_implementation="sdpa"))


def ours(task: str, examples, options) -> float:
    from mobilebert.finetuning.task import finetune
    from mobilebert.jobs.context import JobContext
    from mobilebert.study.job import Job
    from mobilebert.study.stage_config import FinetuneConfig

    model = model_of(task, options.tiny).to(options.device).train()
    setting = {"task": task, "recipe": "paper", "precision": "bf16", "batch_size": BATCH, "epochs": EPOCHS[task]}
    setting |= {"learning_rate": RATE, "warmup_share": 0.1, "weight_decay": 0.01, "architecture": model.config.to_dict()}
    with tempfile.TemporaryDirectory() as folder:
        run = JobContext(Job("finetune", f"bench/{task}", {}, (), "a" * 64), "bench", Path(folder), {})
        run.begin()
        start = time.perf_counter()
        finetune(run, examples, model, FinetuneConfig.model_construct(**setting), 0, options.device, "seed0")
        return time.perf_counter() - start


class Rows(torch.utils.data.Dataset):
    """Rows as lists, which the Trainer reads."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict:
        targets = {name: values[row].item() for name, values in self.examples.targets.items()}
        return {"input_ids": self.examples.ids[row].tolist(), "token_type_ids": self.examples.types[row].tolist(), **targets}


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    lengths = [len(item["input_ids"]) for item in items]
    width = -(-max(lengths) // 8) * 8
    found = {
        key: torch.tensor([item[key] + [0] * (width - size) for item, size in zip(items, lengths, strict=True)])
        for key in ("input_ids", "token_type_ids")
    }
    found["attention_mask"] = torch.tensor([[1] * size + [0] * (width - size) for size in lengths])
    return found | {key: torch.tensor([item[key] for item in items]) for key in items[0] if key not in found}


def trainer(model, task: str, examples, options) -> float:
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS[task], learning_rate=RATE,
            weight_decay=0.01, warmup_steps=-(-len(examples) // BATCH) * EPOCHS[task] // 10, max_grad_norm=1.0, bf16=True,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=options.device == "cpu", seed=0,
            dataloader_num_workers=0 if options.tiny else 4,
        )  # fmt: skip
        job = Trainer(model, settings, train_dataset=Rows(examples), data_collator=collate)
        start = time.perf_counter()
        job.train()
        return time.perf_counter() - start


def measure(task: str, options) -> None:
    import gpu

    examples = examples_of(task, options.examples, TINY_ROWS if options.tiny else options.rows)
    versions = {
        "ours": lambda rows: ours(task, rows, options),
        "Trainer, our model": lambda rows: trainer(model_of(task, options.tiny), task, rows, options),
        "Trainer, transformers' model": lambda rows: trainer(theirs_of(task, options.tiny), task, rows, options),
    }
    versions = {name: version for name, version in versions.items() if not options.versions or name in options.versions}
    ours(task, examples.part(min(WARM_ROWS, len(examples))), options)  # no version pays for the start of the device
    report = {
        "task": task,
        "rows": len(examples),
        "epochs": EPOCHS[task],
        "batch": BATCH,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu (tiny: not a measurement)",
        "torch": torch.__version__,
        "seconds": {name: [] for name in versions},
        "errors": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(options.rounds):
        for name, version in versions.items():
            if name not in report["errors"]:
                seconds, error = gpu.sample(lambda version=version: version, examples)
                if error:
                    report["errors"][name] = error
                else:
                    report["seconds"][name].append(seconds)
            options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    for name, seconds in report["seconds"].items():
        if name in report["errors"]:
            print(f"{name:30} FAILED {report['errors'][name][:160]}")
            continue
        beside = report["seconds"].get("ours")
        ratio = f", {statistics.median(seconds) / statistics.median(beside):.2f} times ours" if beside else ""
        print(f"{name:30} {', '.join(f'{second:.1f}' for second in seconds)} s{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", *EPOCHS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--versions", nargs="+", help="these alone")
    parser.add_argument("--tiny", action="store_true", help="narrow models and few rows on the CPU: measures nothing")
    options = parser.parse_args()
    if options.what == "prepare":
        if not options.data:
            parser.error("prepare needs --data")
        prepare(options.data, options.examples)
        return
    if not options.out:
        parser.error("--out is missing")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("this machine shows no NVIDIA GPU; --tiny tries the program on the CPU")
    options.device = "cpu" if options.tiny else "cuda"
    measure(options.what, options)


if __name__ == "__main__":
    main()
