"""Provide `mobilebert.evaluation.glue.score` as a metric: `evaluate.load(<this folder>, TASK)`."""

import datasets
import evaluate

from mobilebert.evaluation.glue import score
from mobilebert.study.tasks import TASKS


class Glue(evaluate.Metric):
    """The scores of a GLUE task, as fractions; the configuration is the task's name."""

    def _info(self):
        task = TASKS.get(self.config_name)
        if task is None or task.is_squad:
            allowed = ", ".join(name for name, known in TASKS.items() if not known.is_squad)
            raise ValueError(f"configuration {self.config_name!r} is not known; allowed: {allowed}")
        value = datasets.Value("float64" if task.is_regression else "int64")
        return evaluate.MetricInfo(
            description="GLUE scores, as fractions.",
            citation="Wang et al., GLUE, ICLR 2019",
            inputs_description="predictions and references: class indices, or real values for stsb",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions, references):
        return score(self.config_name, predictions, references)
