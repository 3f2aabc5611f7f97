"""Read the checkpoint of TensorFlow's model garden (official/projects/mobilebert).

TensorFlow 2 stores the graph of a program's objects beside their variables. A variable's name in
the file is one of the paths to it from the root, and differs between programs. So we look for the
encoder in the graph, and follow the names of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilebert.modeling.foreign.bundle import MOST_NAMES, Bundle, fields_of, number_in
from mobilebert.util.errors import UserError

GRAPH, VALUE = "_CHECKPOINTABLE_OBJECT_GRAPH", "VARIABLE_VALUE"
_EMBEDDINGS = {
    "word_embedding": "word_embeddings",
    "type_embedding": "token_type_embeddings",
    "pos_embedding": "position_embeddings",
    "word_embedding_proj": "embedding_transformation",
    "layer_norm": "LayerNorm",
}
_BLOCK = {
    "bottleneck_input/0": "bottleneck.input.dense",
    "bottleneck_input/1": "bottleneck.input.LayerNorm",
    "kq_shared_bottleneck/0": "bottleneck.attention.dense",
    "kq_shared_bottleneck/1": "bottleneck.attention.LayerNorm",
    "attention/0/_query_dense": "attention.self.query",
    "attention/0/_key_dense": "attention.self.key",
    "attention/0/_value_dense": "attention.self.value",
    "attention/0/_output_dense": "attention.output.dense",
    "attention/1": "attention.output.LayerNorm",
    "bottleneck_output/0": "output.bottleneck.dense",
    "bottleneck_output/2": "output.bottleneck.LayerNorm",
}
_FFN = {"0": "intermediate.dense", "1": "output.dense", "2": "output.LayerNorm"}
_MASKED_LM = {"dense": "cls.predictions.transform.dense", "layer_norm": "cls.predictions.transform.LayerNorm"}
_LEAVES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "embeddings": "weight"}


class _Node(NamedTuple):
    """An object of the program: its parts by name, and the variable that it is, if it is one."""

    parts: dict[str, int]
    variable: str | None


class Place(NamedTuple):
    """A weight: its name in PyTorch, the name of its variable, and its kind.

    kind: "kernel" (PyTorch transposes it), "bias", "embeddings" and others.
    """

    name: str
    variable: str
    kind: str


class Garden:
    """The objects of a checkpoint. Raises UserError if it has not one encoder of MobileBERT."""

    def __init__(self, bundle: Bundle):
        self.index: Path = bundle.index
        self.nodes = _nodes(bundle)
        encoders = [node for node in self.nodes if self._is_encoder(node)]
        if len(encoders) != 1:
            raise UserError(
                f"{self.index}: a checkpoint of TensorFlow 2 with {len(encoders)} MobileBERT encoders of the model garden; "
                "only one with one encoder is read"
            )
        self.encoder = encoders[0]
        self.has_no_norm = self._at(self.encoder, "layer_with_weights-0/layer_norm/scale") is not None

    def _is_encoder(self, node: _Node) -> bool:
        return self._at(node, "layer_with_weights-0/word_embedding_proj") is not None

    def _at(self, node: _Node, path: str) -> _Node | None:
        """Return the object at a path of parts, or None."""
        for word in path.split("/"):
            if word not in node.parts:
                return None
            node = self.nodes[node.parts[word]]
        return node

    def places(self) -> Iterator[Place]:
        """Yield the places of all weights that our classes have."""
        embeddings = self._at(self.encoder, "layer_with_weights-0")
        assert embeddings is not None
        for part, name in _EMBEDDINGS.items():
            yield from self._weights(embeddings, part, f"mobilebert.embeddings.{name}")
        layer = 0
        while block := self._at(self.encoder, f"layer_with_weights-{layer + 1}/block_layers"):
            yield from self._block(block, f"mobilebert.encoder.layer.{layer}")
            layer += 1
        pooler = f"layer_with_weights-{layer + 1}"
        if self._at(self.encoder, pooler):
            yield from self._weights(self.encoder, pooler, "mobilebert.pooler.dense")
        else:  # of the head for the next sentence, which fine-tuning reads too
            yield from self._weights(self.nodes[0], "next_sentence.pooler_dense", "mobilebert.pooler.dense")
        for head in self.nodes:
            # Its other form, which projects words to hidden_size, has no class here.
            if head.parts.keys() >= {"embedding_table", *_MASKED_LM} and "output_weights_proj" not in head.parts:
                for part, name in _MASKED_LM.items():
                    yield from self._weights(head, part, name)
                yield from self._variable(head, "bias", "cls.predictions.bias", "bias")
                yield from self._variable(head, "extra_output_weights", "cls.predictions.dense.weight", "kernel")

    def _block(self, block: _Node, prefix: str) -> Iterator[Place]:
        for part, name in _BLOCK.items():
            yield from self._weights(block, part, f"{prefix}.{name}")
        networks = self._at(block, "ffn")
        count = 0 if networks is None else sum(word.isdecimal() for word in networks.parts)
        for number in range(count):
            inside = prefix if number == count - 1 else f"{prefix}.ffn.{number}"
            for part, name in _FFN.items():
                yield from self._weights(block, f"ffn/{number}/{part}", f"{inside}.{name}")

    def _weights(self, node: _Node, part: str, name: str) -> Iterator[Place]:
        """Yield the weights of a layer."""
        if (layer := self._at(node, part)) is not None:
            # NoNorm calls its gamma and beta scale and bias too.
            leaves = [leaf for leaf in _LEAVES if not ("beta" in layer.parts and leaf == "bias")]
            for leaf in leaves:
                yield from self._variable(layer, leaf, f"{name}.{_LEAVES[leaf]}", leaf)

    def _variable(self, node: _Node, part: str, name: str, kind: str) -> Iterator[Place]:
        found = self._at(node, part)
        if found is not None and found.variable is not None:
            yield Place(name, found.variable, kind)


def as_in_pytorch(place: Place, array: np.ndarray) -> np.ndarray:
    """Return a variable as PyTorch has it: heads side by side, kernels transposed.

    Keras keeps heads in a dimension of their own: a kernel of attention is (inputs, heads, size),
    that of its output (heads, size, outputs), and a bias (heads, size).
    """
    if ".attention." in place.name and array.ndim == 2 + (place.kind == "kernel"):
        if ".self." in place.name:
            array = array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])
        elif ".attention.output.dense." in place.name and place.kind == "kernel":
            array = array.reshape(array.shape[0] * array.shape[1], array.shape[2])
    return array.T if place.kind == "kernel" else array


def _nodes(bundle: Bundle) -> list[_Node]:
    """Return the objects: a TrackableObjectGraph of tensorflow/core/protobuf."""
    try:
        messages = fields_of(bundle.read_string(GRAPH)).get(1, [])
        if len(messages) > MOST_NAMES:
            raise UserError(f"{bundle.index}: damaged: {GRAPH} has more than {MOST_NAMES:,} objects")
        nodes = [_node(message) for message in messages]
        if any(not 0 <= part < len(nodes) for node in nodes for part in node.parts.values()):
            raise ValueError("no such node")
    except (IndexError, KeyError, ValueError, TypeError):
        raise UserError(f"{bundle.index}: damaged: {GRAPH} cannot be read") from None
    if missing := [node.variable for node in nodes if node.variable is not None and node.variable not in bundle.variables]:
        raise UserError(f"{bundle.index}: damaged: {GRAPH} names {missing[0]:.200}, which is not in the checkpoint")
    return nodes


def _node(message: bytes) -> _Node:
    fields = fields_of(message)
    parts = [fields_of(part) for part in fields.get(1, [])]
    attributes = [fields_of(attribute) for attribute in fields.get(2, [])]
    values = [attribute[3][0].decode() for attribute in attributes if attribute[1] == [VALUE.encode()]]
    return _Node({part[2][0].decode(): number_in(part, 1) for part in parts}, values[0] if values else None)
