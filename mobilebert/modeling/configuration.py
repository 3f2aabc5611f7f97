"""Define the configuration of every model of the MobileBERT family, students and teachers."""

import contextlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from mobilebert import paper
from mobilebert.modeling.checkpoint_config import CONFIG, check_types, check_values, name_classes, read_json
from mobilebert.modeling.foreign.google_config import from_google, is_google
from mobilebert.modeling.presets import check, preset
from mobilebert.modeling.weight_files import FLOATS
from mobilebert.util.errors import UserError, allowed, naming, shown


class MobileBertConfig(PreTrainedConfig):
    """transformers' MobileBertConfig, field by field, plus the fields that the paper's models need.

    Released as [google/mobilebert-uncased](https://huggingface.co/google/mobilebert-uncased).
    transformers reads this link for its generated docstrings and prints a complaint without one.

    These fields are new, or allow more than in transformers:

    - `hidden_act`: "relu", "relu6", "gelu" (erf) or "gelu_new" (tanh: Google's, so the teacher's).
    - `use_bottleneck_attention=False` with `key_query_shared_bottleneck=False`: query, key and
      value all read the `hidden_size`-wide block input and project it to `intra_bottleneck_size`
      (paper Table 1, teacher and student).
    - `mask_value`: how padded keys are masked. "min" adds the dtype's minimum to their scores, as
      transformers does. "-10000" adds that number, as the released code did before its
      quantization commit. "-6" replaces the score (score * mask + (1 - mask) * -6), as the
      released code does since; padded keys then keep some weight.
    - `residual_init_scale`: multiplies `initializer_range` for the weights that write to a
      residual stream (attention output, FFN output, output bottleneck). 1/sqrt(2 * layers) keeps
      a deep NoNorm model from diverging.

    Raises UserError if `presets.check` or `checkpoint_config.check_types` does.
    """

    model_type = "mobilebert"

    vocab_size: int = 30522
    hidden_size: int = 512
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    residual_init_scale: float = 1.0
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    embedding_size: int = 128
    trigram_input: bool = True
    use_bottleneck: bool = True
    intra_bottleneck_size: int = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: int = 4
    normalization_type: str = "no_norm"
    classifier_activation: bool = True
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True
    mask_value: str = "min"

    def __post_init__(self, **kwargs):
        kwargs.pop("true_hidden_size", None)  # published config.json files hold it; here it is derived
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        check({"model_type": self.model_type} | values)
        check_types(values | {"output_attentions": getattr(self, "output_attentions", None)})

    @property
    def true_hidden_size(self) -> int:
        """Return the width inside a block: that of the attention output and the FFNs."""
        return self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size

    @property
    def is_built_by_transformers(self) -> bool:
        """Return whether transformers' classes have this architecture.

        They give query and key the width inside a block, so they can build neither the teacher nor
        Table 1's student, whose query and key read the wider block input.
        """
        return self.use_bottleneck_attention or self.key_query_shared_bottleneck or self.true_hidden_size == self.hidden_size

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "MobileBertConfig":
        """Return the configuration of preset `name`, changed by `overrides`.

        overrides: fields of the preset, or of `presets.TASK_FIELDS` (`num_labels` and others).
        Raises UserError if `presets.preset` does, and for the BERT presets (transformers' models).
        """
        values = preset(name, **overrides)
        model_type = values.pop("model_type")
        if model_type != cls.model_type:
            raise UserError(f"preset {name}: model_type is {model_type!r}; build it with transformers.BertConfig")
        return cls(**values)

    @classmethod
    def from_row(cls, name: str, **overrides) -> "MobileBertConfig":
        """Return the configuration of a row of `paper/models.yaml`, in the paper's size.

        Table 2's rows are "search-a" to "search-i", Table 3's "search-192" to "search-96".
        overrides: as in `from_preset`.
        Raises UserError for an unknown row, or if `from_preset` does.
        """
        rows = paper.models()
        if name not in rows:
            raise UserError(f"row {shown(name)} is unknown; {allowed(rows, name)}")
        return cls.from_preset(rows[name].preset, **{**rows[name].overrides, **overrides})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs) -> Any:
        """Return the configuration of a folder or hub name, read as transformers reads it.

        Raises UserError, which names the source, if the constructor or `get_config_dict` does.
        """
        with naming(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """Return the configuration with these values, built as transformers builds it.

        transformers sets overrides after the constructor's check, so they are checked again here.
        Raises UserError for values that the constructor refuses.
        """
        source = kwargs.get("name_or_path")  # given by AutoConfig alone
        with naming(source) if source else contextlib.nullcontext():
            found = super().from_dict(config_dict, **kwargs)
            (found[0] if isinstance(found, tuple) else found)._check()
            return found

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        """Return the configuration in a JSON file, transformers' or that of Google's code.

        Google's leaves out keys whose defaults are the opposite of transformers'.
        """
        values = read_json(Path(json_file), str(Path(json_file).parent))
        with naming(json_file):
            return cls(**(from_google(values, json_file) if is_google(values) else values))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """Return the values of config.json and the unused arguments, as transformers does.

        Raises UserError for a config.json of another family or that `checkpoint_config` refuses.
        """
        source, file = str(pretrained_model_name_or_path), Path(pretrained_model_name_or_path, CONFIG)
        if file.is_file() and not kwargs.get("subfolder"):
            check_values(read_json(file, source), CONFIG, source)  # this file may name another one, which transformers then reads
        values, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_values(values, CONFIG, source)
        name_classes(values, source)
        for key in ("dtype", "torch_dtype"):
            if values.get(key) not in (None, *FLOATS.values()):
                raise UserError(f"{source}: {key} in config.json is {values[key]!r:.60}; allowed: {', '.join(FLOATS.values())}")
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise UserError(f"{source}: model_type is {found!r} in config.json, not {cls.model_type!r}")
        return values, rest
