"""The pre-training models, with transformers' arguments, outputs, labels, losses and state-dict keys.

Every `forward` passes its further keyword arguments (`output_attentions`, `num_layers`, ...) to `MobileBertModel`.
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
    """Linear, activation and, in NoNorm models too, a true LayerNorm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(activate(self.activation, self.dense(x), self.dense))


class MobileBertLMPredictionHead(nn.Module):
    """Vocabulary logits: `embedding_size` columns tied to the word embeddings beside the head's own ones."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.transform = MobileBertPredictionHeadTransform(config)
        self.dense = nn.Linear(config.vocab_size, config.hidden_size - config.embedding_size, bias=False)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # tied to decoder.bias
        self.widths = [config.embedding_size, config.hidden_size - config.embedding_size]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., vocab_size)."""
        x = self.transform(hidden_states)
        tied, own = x.flatten(0, -2).split(self.widths, dim=-1)
        # Two products: one would need the two matrices copied into a third, vocab_size x hidden_size, at every call.
        logits = torch.addmm(self.decoder(tied), own, _weight(self.dense))
        return logits.unflatten(0, x.shape[:-1])


def _weight(linear: nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer, or of what torch's quantizer puts in its place: there it is a method's answer."""
    weight = linear.weight() if callable(linear.weight) else linear.weight
    return weight.dequantize() if weight.is_quantized else weight


class MobileBertOnlyMLMHead(nn.Module):
    """The MLM head under the key `predictions`."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.predictions = MobileBertLMPredictionHead(config)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., vocab_size)."""
        return self.predictions(sequence)


class MobileBertOnlyNSPHead(nn.Module):
    """The NSP head under the key `seq_relationship`."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(batch, hidden_size) -> (batch, 2)."""
        return self.seq_relationship(pooled)


class MobileBertPreTrainingHeads(nn.Module):
    """Both."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.predictions = MobileBertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, sequence: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(..., hidden_size) and (batch, hidden_size) -> (..., vocab_size) and (batch, 2)."""
        return self.predictions(sequence), self.seq_relationship(pooled)


class _WithVocabulary(MobileBertPreTrainedModel):
    """What the two models with an MLM head share: tied weights and a vocabulary that can grow."""

    cls: MobileBertOnlyMLMHead | MobileBertPreTrainingHeads

    _tied_weights_keys = {  # noqa: RUF012  (transformers' own declaration)
        "cls.predictions.decoder.weight": "mobilebert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MobileBertLMPredictionHead):  # where a checkpoint lacks it, it is bare memory until here
            init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        bias = new_embeddings.bias
        if bias is not None and not self.config.tie_word_embeddings:  # saved as one tensor, they would not be loaded as two
            bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.cls.predictions.bias = bias

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize as transformers does, and the head's own columns with it: they have one entry for each token too."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        size, old = embeddings.num_embeddings, self.cls.predictions.dense  # the size may have been rounded up
        if size != old.in_features:  # of a layer that has the size already, the call would change out_features
            new = self._get_resized_lm_head(old, size, transposed=True, mean_resizing=mean_resizing)
            self.cls.predictions.dense = new.requires_grad_(old.weight.requires_grad)
        return embeddings


@dataclass
class MobileBertForPreTrainingOutput(ModelOutput):
    """loss (scalar), prediction_logits (batch, tokens, vocab) or (n, vocab), seq_relationship_logits (batch, 2)."""

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor | None, ...] | None = None


class MobileBertForPreTraining(_WithVocabulary):
    """MLM and NSP heads."""

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
        """The loss is MLM + NSP, given both `labels` and `next_sentence_label` (batch,), as in transformers.

        labels: (batch, tokens), -100 where nothing is asked.
        masked_positions: (n,) indices into the flattened batch * tokens. Logits are then computed for these alone:
            `prediction_logits` is (n, vocab) and `labels` is (n,); -100 marks a position that only fills up n.
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
    """MLM head alone; no pooler."""

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
        """labels: (batch, tokens), -100 where nothing is asked. logits: (batch, tokens, vocab).

        masked_positions: (n,), as `MobileBertForPreTraining`'s; logits are then (n, vocab) and labels (n,).
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
    """NSP head alone."""

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
        """labels: (batch,), 0 for a continuation and 1 for a random sentence. logits: (batch, 2)."""
        outputs = self.mobilebert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.cls(outputs.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels.flatten())
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
