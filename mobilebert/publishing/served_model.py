"""Serve a fine-tuned checkpoint: MLflow runs this file when it loads a registered model."""

from __future__ import annotations

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ServedModel(PythonModel):
    """A checkpoint as MLflow calls it: a table of texts in, a table of predictions out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint; it is the model's artefact, and its task is in `model_config`."""
        from mobilebert.evaluation.checkpoints import load_checkpoint
        from mobilebert.study.tasks import TASKS

        self.model = load_checkpoint(context.artifacts["checkpoint"], TASKS[context.model_config["task"]])

    def predict(self, context, model_input, params=None):
        """Return a prediction for every row, in the columns of `mobilebert predict`."""
        from mobilebert.evaluation.predict import checked_rows, predicted

        return predicted(self.model, checked_rows(model_input, self.model.task, "input"))


set_model(ServedModel())
