"""Read the parameters of a training program of TensorFlow's model garden (params.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mobilebert.modeling.checkpoint_config import MOST_BYTES
from mobilebert.modeling.foreign.google_config import from_google
from mobilebert.util.errors import UserError, allowed

PARAMS = "params.yaml"  # written beside a checkpoint
# The garden's names and defaults (MobileBertEncoderConfig), and Google's names.
_FIELDS = {
    "word_vocab_size": ("vocab_size", 30522),
    "word_embed_size": ("embedding_size", 128),
    "type_vocab_size": ("type_vocab_size", 2),
    "max_sequence_length": ("max_position_embeddings", 512),
    "num_blocks": ("num_hidden_layers", 24),
    "hidden_size": ("hidden_size", 512),
    "num_attention_heads": ("num_attention_heads", 4),
    "intermediate_size": ("intermediate_size", 4096),
    "hidden_activation": ("hidden_act", "gelu"),
    "hidden_dropout_prob": ("hidden_dropout_prob", 0.1),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", 0.1),
    "intra_bottleneck_size": ("intra_bottleneck_size", 1024),
    "initializer_range": ("initializer_range", 0.02),
    "use_bottleneck_attention": ("use_bottleneck_attention", False),
    "key_query_shared_bottleneck": ("key_query_shared_bottleneck", False),
    "num_feedforward_networks": ("num_feedforward_networks", 1),
    "normalization_type": ("normalization_type", "layer_norm"),
    "classifier_activation": ("classifier_activation", True),
}
_ENCODER = (("task", "student_model", "encoder"), ("task", "model", "encoder"))  # of a distillation, or of one model


def read_params(file: Path) -> dict:
    """Return the fields of `MobileBertConfig` for the encoder of the garden's parameters.

    Only the encoder's values are built: a small file of merged keys could fill the memory. Raises
    UserError if the file is not YAML or has no encoder of MobileBERT.
    """
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise UserError(f"{file}: {size:,} bytes; at most {MOST_BYTES:,} are read")
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        for path in _ENCODER:
            kind = _at(root, (*path, "type"))
            if isinstance(kind, yaml.ScalarNode) and kind.value == "mobilebert":
                return _from_garden(_values(loader, _at(root, (*path, "mobilebert")), file), file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{file}: not YAML of plain values") from None
    raise UserError(f"{file}: no encoder of type mobilebert under task.model or task.student_model")


def _at(node: Any, path: tuple[str, ...]) -> Any:
    """Return the node behind keys, or None."""
    for key in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), None)
    return node


def _values(loader: yaml.SafeLoader, node: Any, file: Path) -> dict[str, Any]:
    """Return the plain values of a mapping. Raises UserError for lists and mappings among them."""
    found = {}
    for name, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if not isinstance(name, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{file}: line {name.start_mark.line + 1} holds no plain value")
        found[name.value] = loader.construct_object(value)
    return found


def _from_garden(given: Mapping[str, Any], file: Path) -> dict:
    known = [*_FIELDS, "input_mask_dtype"]
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"{file}: {unknown[0]!r:.60} is no key of the garden's MobileBERT; {allowed(known, unknown[0])}")
    values = {name: given.get(key, default) for key, (name, default) in _FIELDS.items()}
    return from_google(values | {"trigram_input": True, "use_bottleneck": True}, file)
