"""Define the pre-training models, with transformers' arguments, outputs, losses and weight names.

Every `forward` passes other keyword arguments (`num_layers`, ...) on to `MobileBertModel`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import (
    MaskedLMOutput,
    NextSentencePredictorOutput,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertModel, MobileBertPreTrainedModel
from mobilebert.modeling.inplace import activate
from mobilebert.modeling.layers import ACTIVATIONS


class MobileBertPredictionHeadTransform(nn.Module):
    """Linear layer, activation and a LayerNorm, which NoNorm models have too."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the transformed x, (..., hidden_size)."""
        return self.LayerNorm(activate(self.activation, self.dense(x), self.dense))


class MobileBertLMPredictionHead(nn.Module):
    """Vocabulary logits, from a matrix of `hidden_size` columns.

    The first `embedding_size` columns are the word embeddings (tied), the others are the head's.
    """

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.transform = MobileBertPredictionHeadTransform(config)
        self.dense = nn.Linear(config.vocab_size, config.hidden_size - config.embedding_size, bias=False)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # tied to decoder.bias
        self.widths = [config.embedding_size, config.hidden_size - config.embedding_size]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits (..., vocab_size) for hidden states (..., hidden_size)."""
        x = self.transform(hidden_states)
        tied, own = x.flatten(0, -2).split(self.widths, dim=-1)
        # Two products: a single one would copy both matrices into a third, vocab_size x
        # hidden_size, at every call.
        logits = torch.addmm(self.decoder(tied), own, _weight(self.dense))
        return logits.unflatten(0, x.shape[:-1])


def _weight(linear: nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer; in torch's quantized layers `weight` is a method."""
    weight = linear.weight() if callable(linear.weight) else linear.weight
    return weight.dequantize() if weight.is_quantized else weight


class MobileBertOnlyMLMHead(nn.Module):
    """The MLM head under the key `predictions`."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.predictions = MobileBertLMPredictionHead(config)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Return logits (..., vocab_size) for hidden states (..., hidden_size)."""
        return self.predictions(sequence)


class MobileBertOnlyNSPHead(nn.Module):
    """The NSP head under the key `seq_relationship`."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 2) for pooled vectors (batch, hidden_size)."""
        return self.seq_relationship(pooled)


class MobileBertPreTrainingHeads(nn.Module):
    """The MLM and the NSP head."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.predictions = MobileBertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, sequence: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return MLM logits (..., vocab_size) and NSP logits (batch, 2).

        sequence: (..., hidden_size). pooled: (batch, hidden_size).
        """
        return self.predictions(sequence), self.seq_relationship(pooled)


class _WithVocabulary(MobileBertPreTrainedModel):
    """Base class of the two models with an MLM head: tied weights, a vocabulary that can grow."""

    cls: MobileBertOnlyMLMHead | MobileBertPreTrainingHeads

    _tied_weights_keys = {  # noqa: RUF012  (transformers' own declaration)
        "cls.predictions.decoder.weight": "mobilebert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MobileBertLMPredictionHead):  # uninitialised memory if the checkpoint lacks it
            init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the decoder of the MLM head."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder of the MLM head, and its bias."""
        self.cls.predictions.decoder = new_embeddings
        bias = new_embeddings.bias
        if bias is not None and not self.config.tie_word_embeddings:  # a shared tensor is saved once and would not load as two
            bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.cls.predictions.bias = bias

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize as transformers does, and the MLM head's matrix too: it has an entry per token."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        size, old = embeddings.num_embeddings, self.cls.predictions.dense  # the size may have been rounded up
        if size != old.in_features:  # if the size is right already, the call would change out_features
            new = self._get_resized_lm_head(old, size, transposed=True, mean_resizing=mean_resizing)
            self.cls.predictions.dense = new.requires_grad_(old.weight.requires_grad)
        return embeddings


@dataclass
class MobileBertForPreTrainingOutput(ModelOutput):
    """Outputs of `MobileBertForPreTraining`.

    loss: scalar.
    prediction_logits: (batch, tokens, vocab), or (n, vocab) with `masked_positions`.
    seq_relationship_logits: (batch, 2).
    """

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor | None, ...] | None = None


class MobileBertForPreTraining(_WithVocabulary):
    """A model with the MLM and the NSP head."""

    cls: MobileBertPreTrainingHeads

    def __init__(self, config: MobileBertConfig):
        super().__init__(config)
        self.mobilebert = MobileBertModel(config)
        self.cls = MobileBertPreTrainingHeads(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> MobileBertForPreTrainingOutput:
        """Return both heads' logits, and the sum of their losses if both kinds of labels are given.

        labels: (batch, tokens), -100 for tokens without a target.
        next_sentence_label: (batch,), 0 for a continuation and 1 for a random sentence.
        masked_positions: (n,) indices into the flattened batch * tokens. Logits are then computed
            for these alone: `prediction_logits` is (n, vocab) and `labels` is (n,), with -100 for
            positions that only fill up n.
        """
        outputs = self.mobilebert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        sequence = outputs.last_hidden_state
        if masked_positions is not None:
            sequence = sequence.flatten(0, 1).index_select(0, masked_positions)
        prediction_logits, seq_relationship_logits = self.cls(sequence, outputs.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = F.cross_entropy(prediction_logits.flatten(0, -2), labels.flatten())
            loss = loss + F.cross_entropy(seq_relationship_logits, next_sentence_label.flatten())
        return MobileBertForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MobileBertForMaskedLM(_WithVocabulary):
    """A model with the MLM head alone; no pooler."""

    def __init__(self, config: MobileBertConfig):
        super().__init__(config)
        self.mobilebert = MobileBertModel(config, add_pooling_layer=False)
        self.cls = MobileBertOnlyMLMHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Return logits (batch, tokens, vocab), and the loss if labels are given.

        labels: (batch, tokens), -100 for tokens without a target.
        masked_positions: (n,), as in `MobileBertForPreTraining`. Logits are then (n, vocab) and
            labels (n,).
        """
        outputs = self.mobilebert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        sequence = outputs.last_hidden_state
        if masked_positions is not None:
            sequence = sequence.flatten(0, 1).index_select(0, masked_positions)
        logits = self.cls(sequence)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


class MobileBertForNextSentencePrediction(MobileBertPreTrainedModel):
    """A model with the NSP head alone."""

    def __init__(self, config: MobileBertConfig):
        super().__init__(config)
        self.mobilebert = MobileBertModel(config)
        self.cls = MobileBertOnlyNSPHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> NextSentencePredictorOutput:
        """Return logits (batch, 2), and the loss if labels are given.

        labels: (batch,), 0 for a continuation and 1 for a random sentence.
        """
        outputs = self.mobilebert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.cls(outputs.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels.flatten())
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
