"""Reproduce MobileBERT (Sun et al., ACL 2020): the model family, its training, the paper's tables.

Names are imported on first use, so that `import mobilebert` and the command line stay quick.
"""

import sys
from importlib import import_module

from mobilebert.util.packages import load_triton

__version__ = "0.1.0"

_MODELING = (
    "MobileBertConfig",
    "MobileBertForMaskedLM",
    "MobileBertForMultipleChoice",
    "MobileBertForNextSentencePrediction",
    "MobileBertForPreTraining",
    "MobileBertForPreTrainingOutput",
    "MobileBertForQuestionAnswering",
    "MobileBertForSequenceClassification",
    "MobileBertForTokenClassification",
    "MobileBertModel",
    "MobileBertPreTrainedModel",
    "fold",
    "register_auto_classes",
)
_TOKENIZERS = ("MobileBertTokenizer", "MobileBertTokenizerFast")
__all__ = sorted(("__version__", *_MODELING, *_TOKENIZERS))


def __getattr__(name: str):
    if "tensorflow" in sys.modules:
        load_triton()
    if name in _MODELING:
        value = getattr(import_module("mobilebert.modeling"), name)
    elif name in _TOKENIZERS:
        value = getattr(import_module("transformers"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
