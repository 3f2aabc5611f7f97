"""The columns of a table that a configuration gives by itself."""

import math

from mobilebert.reporting.architecture_columns import facts


def test_architecture_columns_of_bert_base():
    """Shapes of Devlin et al. 2019: 12 layers of width 768 with 12 heads and an FFN of 3,072."""
    found = facts(BERT_BASE)
    assert found["mha_shape"] == [768, 12, 768]
    assert found["ffn_shape"] == [768, 3072, 768]
    assert math.isclose(found["mha"], 12 * 4 * 768 * 768 / 1e6)
    assert (found["linear_in"], found["embedding_op"], found["norm"], found["activation"]) == (
        None,
        "none",
        "LayerNorm",
        "gelu",
    )


BERT_BASE = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
