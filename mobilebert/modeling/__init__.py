"""Build the models of the MobileBERT family (students and teachers) with transformers' interface.

Names are imported on first use: `import mobilebert.modeling` loads neither torch nor transformers.
"""

from importlib import import_module

_HOME = {
    "MobileBertConfig": "configuration",
    "MobileBertForMaskedLM": "heads",
    "MobileBertForMultipleChoice": "tasks",
    "MobileBertForNextSentencePrediction": "heads",
    "MobileBertForPreTraining": "heads",
    "MobileBertForPreTrainingOutput": "heads",
    "MobileBertForQuestionAnswering": "tasks",
    "MobileBertForSequenceClassification": "tasks",
    "MobileBertForTokenClassification": "tasks",
    "MobileBertModel": "encoder",
    "MobileBertPreTrainedModel": "encoder",
    "fold": "folding",
    "register_auto_classes": "auto",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
