"""Register this family with transformers' auto classes, on request."""

import transformers

from mobilebert.modeling import heads, tasks
from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertModel


def register_auto_classes() -> None:
    """Make AutoConfig, AutoModel... and AutoTokenizer use this package's classes for "mobilebert".

    They replace transformers' classes for the rest of the process, so importing does not do it.
    """
    transformers.AutoConfig.register(MobileBertConfig.model_type, MobileBertConfig, exist_ok=True)
    transformers.AutoTokenizer.register(MobileBertConfig, tokenizer_class=transformers.MobileBertTokenizer, exist_ok=True)
    for auto, model in (
        (transformers.AutoModel, MobileBertModel),
        (transformers.AutoModelForPreTraining, heads.MobileBertForPreTraining),
        (transformers.AutoModelForMaskedLM, heads.MobileBertForMaskedLM),
        (transformers.AutoModelForNextSentencePrediction, heads.MobileBertForNextSentencePrediction),
        (transformers.AutoModelForSequenceClassification, tasks.MobileBertForSequenceClassification),
        (transformers.AutoModelForMultipleChoice, tasks.MobileBertForMultipleChoice),
        (transformers.AutoModelForTokenClassification, tasks.MobileBertForTokenClassification),
        (transformers.AutoModelForQuestionAnswering, tasks.MobileBertForQuestionAnswering),
    ):
        auto.register(MobileBertConfig, model, exist_ok=True)
