"""The schemas of version 1 are extended, never replaced.

Every key in the golden file still exists, with its type and default.
"""

import json
import re
from pathlib import Path

from pydantic import BaseModel

from mobilebert import paper
from mobilebert.jobs.record import RECORD_SCHEMA, Attention, AttentionMaps, Quantization, Record
from mobilebert.study.recipe import Distill, Finetune, Pretrain, Search, TaskSetting, Transfer
from mobilebert.study.schema import SCHEMA, Study
from mobilebert.study.sections import Checkpoint, Data, Expectation, Gate, Latency, Scale

GOLDEN = Path(__file__).with_name("golden") / "schemas.json"
MODELS: list[type[BaseModel]] = [
    Study,
    Data,
    Scale,
    Pretrain,
    Search,
    Transfer,
    Distill,
    Finetune,
    TaskSetting,
    Latency,
    Expectation,
    Checkpoint,
    Gate,
    Record,
    Quantization,
    Attention,
    AttentionMaps,
    paper.Model,
    paper.Table,
    paper.Column,
    paper.Row,
]


def named(annotation) -> str:
    """Return a type's name without this package's modules: a class may move, but not be renamed."""
    return re.sub(r"\bmobilebert\.[\w.]*\.", "", str(annotation))


def described() -> dict:
    return {
        model.__qualname__: {field.alias or name: named(field.annotation) for name, field in model.model_fields.items()}
        for model in MODELS
    }


def test_no_key_is_lost_or_changes_its_type():
    golden, now = json.loads(GOLDEN.read_text()), described()
    for model, fields in golden.items():
        for name, annotation in fields.items():
            assert now[model].get(name) == named(annotation), f"{model}.{name}"


def test_a_new_key_has_a_default():
    golden = json.loads(GOLDEN.read_text())
    for model in MODELS:
        for name, field in model.model_fields.items():
            if (field.alias or name) not in golden[model.__qualname__]:
                assert not field.is_required(), f"{model.__qualname__}.{name}"


def test_all_schema_versions_are_1():
    assert SCHEMA == RECORD_SCHEMA == paper.SCHEMA == 1
