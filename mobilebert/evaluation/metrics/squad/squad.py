"""Provide the SQuAD scores as a metric: `evaluate.load(<this folder>, "squad_v1.1")`."""

import datasets
import evaluate

from mobilebert.evaluation import squad


class Squad(evaluate.Metric):
    """The SQuAD scores, as fractions, for the configuration "squad_v1.1" or "squad_v2.0"."""

    def _info(self):
        if self.config_name not in ("squad_v1.1", "squad_v2.0"):
            raise ValueError(f"configuration {self.config_name!r} is not known; allowed: squad_v1.1, squad_v2.0")
        text = datasets.Value("string")
        prediction = {"id": text, "prediction_text": text}
        if self.config_name == "squad_v2.0":
            prediction["null_odds"] = datasets.Value("float64")
        reference = {"id": text, "answers": {"text": [text], "answer_start": [datasets.Value("int32")]}}
        return evaluate.MetricInfo(
            description="SQuAD exact match and F1, as fractions.",
            citation="Rajpurkar et al., SQuAD, EMNLP 2016; SQuAD 2.0, ACL 2018",
            inputs_description="one prediction and one reference a question; null_odds: see score_v2",
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )

    def _compute(self, predictions, references, threshold=0.0):
        texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
        golds = [{"id": reference["id"], "answers": reference["answers"]["text"]} for reference in references]
        if self.config_name == "squad_v1.1":
            return squad.score_v1(texts, golds)
        return squad.score_v2(texts, golds, {row["id"]: row["null_odds"] for row in predictions}, threshold)
