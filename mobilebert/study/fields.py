"""Define what the sections of a study share: their base class, the types of values, the labels."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

TASK_NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "squad_v1.1", "squad_v2.0")

Positive = Annotated[int, Field(gt=0)]

NotNegative = Annotated[int, Field(ge=0)]

Share = Annotated[float, Field(ge=0, le=1)]

Rate = Annotated[float, Field(gt=0, lt=1)]

LearningRate = Annotated[float, Field(gt=0, le=1)]

Length = Annotated[int, Field(ge=8)]  # tokens

# A process draws its share of a batch at once: 2^20 rows of 512 ids are 4 GiB. The largest batch in
# print for BERT has 2^16 rows.
LARGEST_BATCH = 2**20

Batch = Annotated[int, Field(gt=0, le=LARGEST_BATCH)]

Engine = Literal[  # of `deployment.engines.table`
    "pytorch",
    "onnxruntime",
    "onnxruntime-int8",
    "pytorch-folded",
    "pytorch-compiled",
    "onnxruntime-static",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
    "litert",
    "litert-dynamic",
    "litert-int8",
    "onnxruntime-fixed",
    "onnxruntime-int8-fixed",
    "openvino-fixed",
    "pytorch-cuda",
]

Quantizer = Literal[  # of `deployment.ways`, without the first
    "onnxruntime-static", "onnxruntime-qat", "openvino-int8", "litert-dynamic", "litert-int8", "quanto"
]


class Strict(BaseModel):
    """A group of keys: an unknown key or a wrong type is an error, and no value ever changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def changed(name: str, mine: Mapping, full: Mapping, apart: Set[str]) -> list[str]:
    """Return one label with the values of group `name` that differ from the paper's; [] if none do.

    mine, full: the values of the study and of the recipe. apart: keys that are not compared.
    """
    values = [f"{key} {value}" for key, value in mine.items() if key not in apart and value != full[key]]
    return [f"changed: {name} {', '.join(values)}"] if values else []
