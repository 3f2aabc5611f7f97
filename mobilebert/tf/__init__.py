"""Build the models of the MobileBERT family in Keras 3, on TensorFlow.

Names are imported on first use. TensorFlow comes with the extra `tensorflow`; UserError says so if
it is missing.
"""

from importlib import import_module

from mobilebert.util.packages import load_triton, not_installed

_HOME = {
    "TFMobileBertForMaskedLM": "heads",
    "TFMobileBertForMultipleChoice": "tasks",
    "TFMobileBertForNextSentencePrediction": "heads",
    "TFMobileBertForPreTraining": "heads",
    "TFMobileBertForPreTrainingOutput": "outputs",
    "TFMobileBertForQuestionAnswering": "tasks",
    "TFMobileBertForSequenceClassification": "tasks",
    "TFMobileBertForTokenClassification": "tasks",
    "TFMobileBertMainLayer": "encoder",
    "TFMobileBertModel": "model",
    "TFMobileBertPreTrainedModel": "model",
    "export_tflite": "export",
    "folded_model": "folding",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    load_triton()  # before TensorFlow
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        raise not_installed(error) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
