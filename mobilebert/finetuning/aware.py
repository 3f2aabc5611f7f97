"""Fine-tune a model further on the grids of 8-bit integers, as the released code does."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer
from torch import nn

from mobilebert.data.examples import encode, encode_squad, sample
from mobilebert.deployment.fake_quantization import aware
from mobilebert.finetuning.task import finetune
from mobilebert.jobs.context import JobContext
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.study.tasks import TASKS

NAME = "qat"  # of the saved state and of the curves


def train_aware(
    context: JobContext, tuned: str, model: nn.Module, tokenizer: Tokenizer, data: Path, device: str
) -> tuple[nn.Module, int]:
    """Return a copy of a fine-tuned model, trained with fake quantization, and the rows it saw.

    tuned: id of the job that fine-tuned `model`. The training has that job's rows and the setting
    and seed of its best trial, in float32: bfloat16 would round the grids away. The result is on
    the CPU, in evaluation mode.
    """
    record = context.record_of(tuned)
    setting = context.graph[tuned].settings(FinetuneConfig)
    setting = setting.model_copy(update={**record.details["setting"], "precision": "fp32"})
    file = context.artefact_of("data", f"tasks/{setting.task}/train.parquet")
    frame = sample(pd.read_parquet(file), setting.train_rows, seed=0)
    if TASKS[setting.task].is_squad:
        examples = encode_squad(tokenizer, frame, setting, training=True)[0]
    else:
        examples = encode(tokenizer, setting.task, frame, setting.length)
    learner = aware(model).to(device).train()
    finetune(context, examples, learner, setting, record.details["best_seed"], device, NAME)
    return learner.cpu().eval(), len(frame)
