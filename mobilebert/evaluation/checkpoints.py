"""Load any fine-tuned checkpoint, float or int8, with its tokenizer and its sequence lengths."""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from mobilebert.data import squad
from mobilebert.data.examples import encode, encode_squad
from mobilebert.data.sources import offline_unless_reachable
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.evaluation.scoring import BATCH, Forward, outputs, padded
from mobilebert.jobs.record import read_record
from mobilebert.study.recipe import Finetune
from mobilebert.study.stage_config import LengthsConfig
from mobilebert.study.tasks import STSB_RANGE, Task
from mobilebert.util.errors import Diverged, UserError, one_line
from mobilebert.util.progress import bar

logger = logging.getLogger(__name__)

LENGTHS = ("length", "doc_stride", "max_query_length", "max_answer_length")

INT8 = "model.int8.onnx"  # the file that the stage `quantize` writes


@dataclass(frozen=True)
class Model:
    """A checkpoint with a head for `task`.

    setting: the settings of fine-tuning, LENGTHS among them.
    order: for each class of the task, its column of the logits.
    size: rows that are run at once, see `scoring.outputs`.
    """

    source: str
    task: Task
    forward: Forward
    tokenizer: Tokenizer
    setting: LengthsConfig
    order: list[int]
    size: int

    def predict(self, frame: pd.DataFrame, what: str) -> pd.DataFrame:
        """Return one prediction for each row of `frame`, in its order.

        GLUE: `prediction` (class number) and one `probability_<class>` for each class; for STS-B
        only `prediction` (a value within its range). SQuAD: `id`, `prediction` (a text from the
        context) and for v2.0 `null_odds`. what: the name of the progress bar. Raises UserError for
        logits that are not finite.
        """
        if self.task.is_squad:
            examples, windows = encode_squad(self.tokenizer, frame, self.setting, training=False)
            found = self._outputs(examples, ("start_logits", "end_logits"), what)
            start, end = (padded(found[name]) for name in ("start_logits", "end_logits"))
            longest, v2 = self.setting.max_answer_length, self.task.name == "squad_v2.0"
            assert longest is not None
            texts, odds = squad.postprocess(windows, start, end, frame, max_answer_length=longest, v2=v2)
            keys = list(frame["id"])
            table = pd.DataFrame({"id": keys, "prediction": [texts[key] for key in keys]})
            return table.assign(null_odds=[odds[key] for key in keys]) if v2 else table
        examples = encode(self.tokenizer, self.task.name, frame.assign(label=0), self.setting.length)
        logits = np.stack(self._outputs(examples, ("logits",), what)["logits"]).astype(np.float64)
        if self.task.is_regression:
            return pd.DataFrame({"prediction": np.clip(logits[:, 0], *STSB_RANGE)})
        logits = logits[:, self.order]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = (odds / odds.sum(axis=1, keepdims=True)).T
        return pd.DataFrame(
            {"prediction": logits.argmax(axis=1)}
            | {f"probability_{name}": row for name, row in zip(self.task.labels or (), shares)}
        )

    def _outputs(self, examples, names: tuple[str, ...], what: str) -> dict[str, list[np.ndarray]]:
        with bar(len(examples), what, unit="row", silent=len(examples) == 1) as progress:
            try:
                return outputs(self.forward, examples, names, self.size, progress.update)
            except Diverged as error:
                raise UserError(f"{self.source}: {error}") from None


# --- loading


def load_checkpoint(source: str, task: Task, threads: int = 1) -> Model:
    """Return a checkpoint as a model for `task`.

    source: a hub name, a folder in Hugging Face layout, an ONNX file, or a stage's folder of a
    study. A study's model keeps the lengths of its fine-tuning; any other gets the defaults of
    `Finetune`, with `length` cut to the positions that the model has. Raises UserError, in one
    line, if there is no checkpoint, no tokenizer that fits it, no trained head of the task's kind,
    or a head with another number of labels.
    """
    path = Path(source).expanduser()
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise UserError(f"{source}: no such folder; allowed: a folder or hub name that holds a fine-tuned checkpoint")
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"  # the folder of the stage `finetune`
    recorded = _recorded(path)
    setting = _lengths({**Finetune().setting(task.name), **(recorded or {})})
    onnx = path if path.is_file() else path / INT8
    if onnx.is_file():
        forward, config, tokenizer = _onnx(onnx, task, threads, recorded is not None)
    else:
        forward, config, tokenizer = _checkpoint(str(path) if path.exists() else source, task, threads, recorded is not None)
    order = list(range(task.num_labels))
    if config is not None:  # None for an ONNX file of a study
        order = _order(config, task, source)
        longest = getattr(config, "max_position_embeddings", setting.length)
        setting = setting.model_copy(update={"length": min(setting.length, longest)})
        if tokenizer.get_vocab_size() > config.vocab_size:
            raise UserError(f"{source}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}")
    if lacking := [token for token in ("[PAD]", "[CLS]", "[SEP]") if tokenizer.token_to_id(token) is None]:
        raise UserError(f"{source}: the tokenizer has no {', '.join(lacking)}; only models with BERT's special tokens are read")
    tokenizer.no_truncation()  # a tokenizer.json may hold the lengths of its training
    tokenizer.no_padding()
    try:
        tokenizer.encode("\N{SNOWMAN}")
    except Exception as error:  # a WordPiece without [UNK] fails on the first unknown word
        raise UserError(f"{source}: the tokenizer does not encode every text ({one_line(error)})") from None
    return Model(source, task, forward, tokenizer, setting, order, getattr(forward, "ROWS", BATCH))


def _lengths(setting: dict) -> LengthsConfig:
    """Return the lengths in a task's setting, unchecked: a record may be of any version."""
    return LengthsConfig.model_construct(**{key: setting[key] for key in LENGTHS if key in setting})


def _recorded(path: Path) -> dict | None:
    """Return the lengths in the record beside the model; None if no study wrote the model."""
    for file in (path / "result.json", path.parent / "result.json"):
        with suppress(UserError):  # no such file, or a result.json that is not a study's record
            config = read_record(file).config
            return {key: config[key] for key in LENGTHS if key in config}
    return None


def _tokenizer(folder: Path, of_study: Path | None, source: str):
    """Return the tokenizer in a checkpoint's folder, or that of the study's stage `data`.

    of_study: the folder of a study's model; one of its parents contains `data`. None for any other
        model.
    """
    try:
        if (folder / "vocab.txt").is_file() and (folder / "config.json").is_file():
            import transformers

            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            return tokenizer.backend_tokenizer
        parents = of_study.resolve().parents if of_study else ()
        for place in (folder, *(parent / "data" / "tokenizer" for parent in parents)):
            if (place / "tokenizer.json").is_file():
                return load_tokenizer(place)
    except Exception as error:  # readers of a broken file raise any exception
        line = str(error) if isinstance(error, UserError) else f"{source}: no tokenizer that can be read ({one_line(error)})"
        raise UserError(line.replace(str(folder), source)) from None
    raise UserError(f"{source}: no tokenizer (tokenizer.json, or vocab.txt beside config.json) in this folder")


def _onnx(path: Path, task: Task, threads: int, of_study: bool):
    """Return (forward, configuration or None, tokenizer) of an ONNX file and those beside it."""
    from mobilebert.deployment.int8 import dependence, processor
    from mobilebert.deployment.quantize import OnnxModel
    from mobilebert.modeling.checkpoint_files import beside

    model = OnnxModel(path, threads)
    if warning := dependence(path, processor()["isa"]):
        logger.warning("%s", warning)
    wanted = ["start_logits", "end_logits"] if task.is_squad else ["logits"]
    if model.outputs != wanted:
        raise UserError(f"{path}: gives {', '.join(model.outputs)}; {task.name} needs {', '.join(wanted)}")
    ones = {name: np.ones((1, 8), np.int64) for name in model.inputs}
    probe = model(ones)
    if not task.is_squad and (found := probe["logits"].shape[-1]) != task.num_labels:
        raise UserError(f"{path}: its head has {found} labels, {task.name} has {task.num_labels}")
    for name, found in probe.items():  # another kind of head may use the same names
        if found.shape != (shape := (1, 8 if task.is_squad else task.num_labels)):
            raise UserError(f"{path}: gives {name} of shape {found.shape} for 1 x 8 tokens; {task.name} needs {shape}")
    config = None
    try:
        with beside(path.parent) as folder:
            if (folder / "config.json").is_file():
                import transformers

                try:
                    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
                except UserError as error:
                    raise UserError(str(error).replace(str(folder), str(path.parent))) from None
            tokenizer = _tokenizer(folder, path.parent if of_study else None, str(path.parent))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path.parent}: no configuration or tokenizer that can be read ({one_line(error)})") from None
    try:
        model(ones | {"input_ids": ones["input_ids"] * (tokenizer.get_vocab_size() - 1)})
    except UserError:  # the model took the ones, so the cause is the largest id
        raise UserError(f"{path}: the tokenizer has {tokenizer.get_vocab_size()} tokens, more than the model takes") from None
    return model, config, tokenizer


def _checkpoint(source: str, task: Task, threads: int, of_study: bool):
    """Return (forward, configuration, tokenizer) of a checkpoint in Hugging Face layout."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{source}: no config.json and no {INT8}: not a checkpoint")
    if not folder.is_dir():
        offline_unless_reachable()
    import torch
    import transformers

    from mobilebert.modeling import register_auto_classes
    from mobilebert.modeling.checkpoint_files import checked
    from mobilebert.modeling.loading import configuration
    from mobilebert.modeling.loading import load as load_model

    register_auto_classes()
    torch.set_num_threads(threads)
    auto = transformers.AutoModelForQuestionAnswering if task.is_squad else transformers.AutoModelForSequenceClassification
    with checked(source) as files:
        config = configuration(files)
        if config.num_labels != task.num_labels:
            raise UserError(f"{source}: its head has {config.num_labels} labels, {task.name} has {task.num_labels}")
        tokenizer = _tokenizer(files.folder, folder if of_study else None, source)
        model, info = load_model(auto, files, config)
    if absent := sorted(info["missing_keys"]):
        raise UserError(f"{source}: not fine-tuned for {task.name}: its checkpoint has no {', '.join(absent[:3])}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()  # pyrefly: ignore[bad-argument-type]  (transformers wraps Module.to and loses its self)
    named = inspect.signature(model.forward).parameters  # DistilBERT, for one, takes no token_type_ids

    @torch.inference_mode()
    def forward(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = model(**{key: torch.from_numpy(value).to(device) for key, value in batch.items() if key in named})
        return {key: out[key].float().cpu().numpy() for key in ("logits", "start_logits", "end_logits") if key in out}

    return forward, config, tokenizer


def _order(config, task: Task, source: str) -> list[int]:
    """Return the column of the logits for each class of the task.

    If the checkpoint's class names are the task's, they give the order, because published MNLI
    checkpoints disagree on the order of the three classes. LABEL_2, or 2, is the name of class
    number 2. If the names differ, keep the columns' order and log a warning: the checkpoint may
    be of another task with as many classes, or have another word for a class.
    """
    if task.labels and config.num_labels == task.num_labels:
        names = [str(config.id2label[code]).lower() for code in range(task.num_labels)]
        numbers = [name.removeprefix("label_") for name in names]
        for found, known in ((names, task.labels), (numbers, [str(code) for code in range(task.num_labels)])):
            if sorted(found) == sorted(known):
                return [found.index(name) for name in known]
        here = f"taken in this order for {', '.join(task.labels)} of {task.name}"
        logger.warning("%s: its classes are %s; %s", source, ", ".join(names), here)
    return list(range(task.num_labels))
