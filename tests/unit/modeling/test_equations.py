"""Every model of the paper against a float64 NumPy forward pass.

The forward pass is written from the paper's equations and figure 1.
"""

import numpy as np
import pytest
import torch
import transformers
from family import BATCH, SMALL, TOKENS, batch, close
from scipy.special import erf, softmax

from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertModel
from mobilebert.modeling.layers import ACTIVATIONS, MobileBertSelfAttention
from mobilebert.modeling.presets import MASK_VALUES

FORGOTTEN = 1e-5  # torch's default, in transformers' embedding norm and last FFN's norm
EPS = 1e-12
FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


class NumpyModel:
    """A forward pass of one sequence. `keep` (tokens,) is 1 for a token and 0 for padding."""

    def __init__(self, model: torch.nn.Module):
        self.config = model.config
        name = "mobilebert.encoder.layer.0.attention.self.query.weight"
        # transformers' query is square, so only a model with a square query is one of its models.
        self.forgotten = FORGOTTEN if len(set(model.state_dict()[name].shape)) == 1 else EPS
        self.w = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def scale(self, name, x):
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def layer_norm(self, name, x, eps):
        return self.scale(name, (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps))

    def norm(self, name, x, eps=EPS):
        """Return equation 2, or layer normalization."""
        if self.config.normalization_type == "no_norm":
            return self.scale(name, x)
        return self.layer_norm(name, x, eps)

    def embed(self, ids, types):
        name = "mobilebert.embeddings."
        words = self.w[f"{name}word_embeddings.weight"][ids]
        nothing = np.zeros_like(words[:1])
        words = np.concatenate([np.vstack([words[1:], nothing]), words, np.vstack([nothing, words[:-1]])], axis=1)
        x = self.linear(f"{name}embedding_transformation", words)
        x = x + self.w[f"{name}position_embeddings.weight"][: len(ids)] + self.w[f"{name}token_type_embeddings.weight"][types]
        return self.norm(f"{name}LayerNorm", x, self.forgotten)

    def scores(self, query, key, keep):
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        if self.config.mask_value == "-6":
            return scores * keep + (1 - keep) * -6.0
        return scores + (1 - keep) * (-10000.0 if self.config.mask_value == "-10000" else -1e30)

    def attend(self, name, query_key, value, keep):
        query, key, value = (
            self.linear(f"{name}.{part}", x).reshape(len(x), self.config.num_attention_heads, -1).swapaxes(0, 1)
            for part, x in (("query", query_key), ("key", query_key), ("value", value))
        )
        probabilities = softmax(self.scores(query, key, keep), axis=-1)
        return (probabilities @ value).swapaxes(0, 1).reshape(value.shape[1], -1), probabilities

    def block(self, index, x, keep):
        """Return block `index` of x (tokens, hidden_size), and its attention probabilities."""
        name, config = f"mobilebert.encoder.layer.{index}", self.config
        activation = FUNCTIONS[config.hidden_act]

        def bottleneck(part):
            return self.norm(f"{name}.bottleneck.{part}.LayerNorm", self.linear(f"{name}.bottleneck.{part}.dense", x))

        residual = query_key = value = x
        if config.use_bottleneck:
            residual = bottleneck("input")
            if config.use_bottleneck_attention:
                query_key = value = residual
            elif config.key_query_shared_bottleneck:
                query_key = bottleneck("attention")
        context, probabilities = self.attend(f"{name}.attention.self", query_key, value, keep)
        y = self.linear(f"{name}.attention.output.dense", context) + residual
        y = self.norm(f"{name}.attention.output.LayerNorm", y)
        for i in range(config.num_feedforward_networks - 1):
            inner = activation(self.linear(f"{name}.ffn.{i}.intermediate.dense", y))
            y = self.norm(f"{name}.ffn.{i}.output.LayerNorm", self.linear(f"{name}.ffn.{i}.output.dense", inner) + y)
        inner = activation(self.linear(f"{name}.intermediate.dense", y))
        y = self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", inner) + y, self.forgotten)
        if config.use_bottleneck:
            y = self.linear(f"{name}.output.bottleneck.dense", y) + x
            y = self.norm(f"{name}.output.bottleneck.LayerNorm", y)
        return y, probabilities

    def predict(self, x):
        """Return vocabulary logits: the transform always ends in a true layer normalization."""
        name = "cls.predictions."
        x = FUNCTIONS[self.config.hidden_act](self.linear(f"{name}transform.dense", x))
        x = self.layer_norm(f"{name}transform.LayerNorm", x, EPS)
        table = np.hstack([self.w["mobilebert.embeddings.word_embeddings.weight"], self.w[f"{name}dense.weight"].T])
        return x @ table.T + self.w[f"{name}bias"]

    def next_sentence(self, x):
        first = x[0]
        if self.config.classifier_activation:
            first = np.tanh(self.linear("mobilebert.pooler.dense", first))
        return self.linear("cls.seq_relationship", first)


def narrow(preset: str, **fields) -> MobileBertForPreTraining:
    """Return a preset's model with narrow widths, but its counts of layers, heads and networks."""
    kept = ("num_attention_heads", "num_hidden_layers", "num_feedforward_networks")
    small = {key: value for key, value in SMALL.items() if key not in kept}
    config = MobileBertConfig.from_preset(preset, **small | {"num_hidden_layers": 3} | fields)
    torch.manual_seed(0)
    model = MobileBertForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((0.3 if "LayerNorm" in name or "bias" in name else 0.15) * torch.randn_like(parameter))
    return model


def compare(model: MobileBertForPreTraining, tolerance: float) -> None:
    """Compare embeddings, each block alone and in turn, and both heads; the last row is padded."""
    inputs = batch("Model", True)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    output = model(**inputs, **wanted)
    plain = model(**inputs)  # the fused kernel
    oracle = NumpyModel(model)
    for row in range(BATCH):
        keep = inputs["attention_mask"][row].numpy()
        x = oracle.embed(inputs["input_ids"][row].numpy(), inputs["token_type_ids"][row].numpy())
        close(output.hidden_states[0][row], x, tolerance)
        for index in range(model.config.num_hidden_layers):
            own, probabilities = oracle.block(index, output.hidden_states[index][row].detach().double().numpy(), keep)
            close(output.hidden_states[index + 1][row], own, tolerance)
            close(output.attentions[index][row], probabilities, tolerance)
            x = oracle.block(index, x, keep)[0]
            close(output.hidden_states[index + 1][row], x, tolerance)
        for found in (output, plain):
            close(found.prediction_logits[row], oracle.predict(x), tolerance)
            close(found.seq_relationship_logits[row], oracle.next_sentence(x), tolerance)


@pytest.mark.parametrize("act", FUNCTIONS)
@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("preset", ["ib-bert-large", "mobilebert-table1", "mobilebert", "mobilebert-tiny"])
def test_models_against_numpy(preset, norm, act):
    model = narrow(preset, hidden_act=act, normalization_type=norm, classifier_activation=act == "relu")
    if not model.config.key_query_shared_bottleneck and not model.config.use_bottleneck_attention:
        assert model.mobilebert.encoder.layer[0].attention.self.query.weight.shape == (16, 24)  # transformers': (16, 16)
    compare(model, 1e-5)
    compare(model.double(), 1e-12)


@pytest.mark.parametrize("preset", ["ib-bert-large", "mobilebert-table1"])
def test_all_24_layers_against_numpy(preset):
    # In float64: the scores of so deep a NoNorm model with wild weights reach hundreds, and softmax
    # turns their float32 rounding into a relative error.
    compare(narrow(preset, num_hidden_layers=24).double(), 1e-10)


def test_a_model_without_bottlenecks_against_numpy():
    compare(narrow("mobilebert", use_bottleneck=False, key_query_shared_bottleneck=False).double(), 1e-12)


def shrink(model: MobileBertForPreTraining) -> MobileBertForPreTraining:
    """Return the model with small embeddings and FFNs, so that the epsilon of norms decides."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = "embedding" in name and "LayerNorm" not in name
            parameter.mul_(1e-3 if small or ".attention.output.LayerNorm" in name or ".output.dense" in name else 1)
    return model


@pytest.mark.parametrize(
    ("fields", "builds"),
    [
        ({}, True),
        ({"use_bottleneck_attention": True, "key_query_shared_bottleneck": False}, True),
        ({"use_bottleneck": False, "key_query_shared_bottleneck": False}, True),
        ({"key_query_shared_bottleneck": False, "intra_bottleneck_size": 24}, True),
        ({"key_query_shared_bottleneck": False}, False),
    ],
    ids=["released", "tiny", "no bottleneck", "square bottleneck", "teacher"],
)
def test_two_norms_have_the_epsilon_of_transformers_only_if_it_has_the_architecture(fields, builds, tmp_path):
    model = shrink(narrow("mobilebert", normalization_type="layer_norm", **fields).double())
    compare(model, 1e-12)
    theirs = transformers.MobileBertForPreTraining(transformers.MobileBertConfig(**model.config.to_dict())).double().eval()
    inputs = batch("Model", True)
    if builds:
        theirs.load_state_dict(model.state_dict())
        close(model(**inputs).prediction_logits, theirs(**inputs).prediction_logits, 1e-12)
    else:
        with pytest.raises(RuntimeError, match=r"query.weight: copying a param with shape torch.Size\(\[16, 24\]\)"):
            theirs.load_state_dict(model.state_dict())
        for module in (model.mobilebert.embeddings, *(layer.output for layer in model.mobilebert.encoder.layer)):
            module.LayerNorm.eps = FORGOTTEN
        with pytest.raises(AssertionError):
            compare(model, 1e-2)  # so large is the difference between the two epsilons here
        model = shrink(narrow("mobilebert", normalization_type="layer_norm", **fields).double())
    model.save_pretrained(tmp_path)
    loaded = MobileBertForPreTraining.from_pretrained(tmp_path, dtype=torch.float64).eval()
    close(loaded(**inputs).prediction_logits, model(**inputs).prediction_logits, 1e-12)


def test_activations_by_their_definitions():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    assert FUNCTIONS.keys() == ACTIVATIONS.keys()
    for name, function in FUNCTIONS.items():
        close(ACTIVATIONS[name]()(x.clone()), function(x.numpy()), 1e-14)  # relu works in place


# ---- how padding is masked


@pytest.mark.parametrize("mask_value", MASK_VALUES)
def test_mask_values_against_numpy(mask_value):
    compare(narrow("mobilebert", mask_value=mask_value).double(), 1e-12)


def test_padded_keys_keep_weight_only_where_their_score_is_replaced():
    inputs = batch("Model", True)
    padded = (inputs["attention_mask"] == 0)[:, None, None, :].expand(-1, 4, TOKENS, -1)
    for mask_value, weight in (("min", 0.0), ("-10000", 0.0), ("-6", 1e-6)):
        attentions = narrow("mobilebert", mask_value=mask_value)(**inputs, output_attentions=True).attentions
        if weight:
            assert attentions[0][padded].min() > weight
        else:
            assert (attentions[0][padded] == 0).all()


@pytest.mark.parametrize("with_probabilities", [False, True])
def test_gradients_of_replaced_scores(with_probabilities):
    """Padded keys teach only values: scores are scores * mask + (1 - mask) * -6."""
    torch.manual_seed(0)
    attention = MobileBertSelfAttention(MobileBertConfig(**SMALL, mask_value="-6")).double()
    query_key = torch.randn(1, TOKENS, 16, dtype=torch.double, requires_grad=True)
    value = torch.randn(1, TOKENS, 24, dtype=torch.double, requires_grad=True)
    keep = (torch.arange(TOKENS) < 4).double()
    wanted = torch.randn(1, TOKENS, 16, dtype=torch.double)

    context, _ = attention(query_key, value, ((1 - keep) * -6.0).expand(1, 1, 1, -1), with_probabilities)
    found = torch.autograd.grad((context * wanted).sum(), [query_key, value])

    heads = [
        part(x).view(TOKENS, 2, 8).transpose(0, 1)
        for part, x in zip((attention.query, attention.key, attention.value), (query_key[0], query_key[0], value[0]))
    ]
    scores = heads[0] @ heads[1].transpose(1, 2) / 8**0.5
    plain = (scores * keep + (1 - keep) * -6.0).softmax(-1) @ heads[2]
    plain = plain.transpose(0, 1).reshape(1, TOKENS, 16)
    close(context, plain, 1e-12)
    for mine, other in zip(found, torch.autograd.grad((plain * wanted).sum(), [query_key, value])):
        close(mine, other, 1e-12)


def test_masks_by_query_have_no_replaced_scores():
    model = MobileBertModel(MobileBertConfig(**SMALL, mask_value="-6"))
    with pytest.raises(ValueError, match="takes only masks of keys"):
        model(batch("Model", False)["input_ids"], torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool))
    inputs = batch("Model", True)
    four = {**inputs, "attention_mask": inputs["attention_mask"][:, None, None, :].bool()}
    close(model(**four).last_hidden_state, model(**inputs).last_hidden_state, 0)
