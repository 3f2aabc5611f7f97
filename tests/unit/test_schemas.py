"""The schemas of version 1 are extended, never replaced: what the golden file names is still there, with its type and default."""

import json
from pathlib import Path

from pydantic import BaseModel

from mobilebert import config, paper, records, settings

GOLDEN = Path(__file__).with_name("golden") / "schemas.json"
MODELS: list[type[BaseModel]] = [
    config.Study,
    settings.Data,
    settings.Scale,
    settings.Pretrain,
    settings.Search,
    settings.Transfer,
    settings.Distill,
    settings.Finetune,
    settings.TaskSetting,
    settings.Latency,
    settings.Expectation,
    settings.Checkpoint,
    records.Record,
    records.Quantization,
    paper.Model,
    paper.Table,
    paper.Column,
    paper.Row,
]


def described() -> dict:
    return {
        model.__qualname__: {field.alias or name: str(field.annotation) for name, field in model.model_fields.items()}
        for model in MODELS
    }


def test_no_key_is_lost_or_changes_its_type():
    golden, now = json.loads(GOLDEN.read_text()), described()
    for model, fields in golden.items():
        for name, annotation in fields.items():
            assert now[model].get(name) == annotation, f"{model}.{name}"


def test_a_new_key_has_a_default():
    golden = json.loads(GOLDEN.read_text())
    for model in MODELS:
        for name, field in model.model_fields.items():
            if (field.alias or name) not in golden[model.__qualname__]:
                assert not field.is_required(), f"{model.__qualname__}.{name}"


def test_the_versions_are_one():
    assert config.SCHEMA == records.SCHEMA == paper.SCHEMA == 1
