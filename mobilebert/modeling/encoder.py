"""Define block, encoder and headless model: transformers' interface, plus knowledge transfer."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.inputs import additive_mask, check_shape, refuse_ids
from mobilebert.modeling.inputs import states_wanted as _states_wanted
from mobilebert.modeling.kernels import fused
from mobilebert.modeling.layers import (
    Bottleneck,
    FFNLayer,
    MobileBertAttention,
    MobileBertEmbeddings,
    MobileBertIntermediate,
    MobileBertOutput,
    NoNorm,
)
from mobilebert.modeling.loading import check_loaded, check_size, check_types, one_refusal, readable
from mobilebert.util.errors import UserError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class MobileBertLayer(GradientCheckpointingLayer):
    """A block (figure 1): bottleneck, attention, feed-forward networks, output bottleneck."""

    fused = False  # whether the feed-forward networks may be one kernel: see `kernels.fused.enable`

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.attention = MobileBertAttention(config)
        self.intermediate = MobileBertIntermediate(config)
        self.output = MobileBertOutput(config)
        self.bottleneck = Bottleneck(config) if config.use_bottleneck else None
        # The last feed-forward network is `intermediate` and `output`.
        self.ffn = nn.ModuleList(FFNLayer(config) for _ in range(config.num_feedforward_networks - 1))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, with_probabilities: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output (batch, tokens, hidden_size), and attention probabilities or None."""
        if self.bottleneck is None:
            query_key_input = value_input = residual = hidden_states
        else:
            query_key_input, value_input, residual = self.bottleneck(hidden_states)
        x, probabilities = self.attention(query_key_input, value_input, residual, attention_mask, with_probabilities)
        if self.fused and fused.serves(self, x):
            assert self.output.bottleneck is not None
            return self.output.bottleneck(fused.feed_forward(self, x), hidden_states), probabilities
        for ffn in self.ffn:
            x = ffn(x)
        return self.output(self.intermediate(x), x, hidden_states), probabilities


class MobileBertEncoder(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(MobileBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_layers: int,
        attention_layers: Collection[int],
        states_wanted: Collection[int] | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...] | None, tuple[torch.Tensor | None, ...]]:
        """Run the first `num_layers` blocks. Return output, hidden states, attention probabilities.

        Hidden state n is the output of n blocks, or None if n is not in `states_wanted`; the tuple
        is None if `states_wanted` is. Probabilities are None for blocks not in `attention_layers`.
        Nothing else is held: in inference a block's input is freed once it has been read.
        """
        attentions = []
        states = None if states_wanted is None else [hidden_states if 0 in states_wanted else None]
        for index in range(num_layers):
            hidden_states, probabilities = self.layer[index](hidden_states, attention_mask, index in attention_layers)
            if states is not None and states_wanted is not None:
                states.append(self.state(hidden_states, index + 1) if index + 1 in states_wanted else None)
            attentions.append(probabilities)
        last = states[-1] if states and states[-1] is not None else self.state(hidden_states, num_layers)
        return last, None if states is None else tuple(states), tuple(attentions)

    def state(self, stream: torch.Tensor, blocks: int) -> torch.Tensor:
        """Return the hidden state for what `blocks` blocks made: itself, except in `folding`."""
        return stream


class MobileBertPooler(nn.Module):
    """The first token's vector, through a tanh layer if `classifier_activation` is set."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.classifier_activation else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return (batch, hidden_size) for hidden states (batch, tokens, hidden_size)."""
        first = hidden_states[:, 0]
        return first if self.dense is None else torch.tanh(self.dense(first))


class MobileBertPreTrainedModel(PreTrainedModel):
    """Base class of the family's models: initialisation, loading and saving."""

    config: MobileBertConfig
    config_class: type[MobileBertConfig] = MobileBertConfig
    base_model_prefix = "mobilebert"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the losses are plain means, so a Trainer must divide by its accumulation steps
    _supports_sdpa = True

    def __init__(self, config: MobileBertConfig):
        """Raise UserError unless `config` is of our class; transformers' class lacks fields."""
        if not isinstance(config, MobileBertConfig):
            raise UserError(
                f"config: {type(config).__name__} of {type(config).__module__}; allowed: mobilebert.MobileBertConfig "
                "(convert transformers' with MobileBertConfig.from_dict(config.to_dict()))"
            )
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args, **kwargs) -> Any:
        """Return a model loaded from a folder or a hub name, as transformers does, but checked.

        A head or a pooler that the checkpoint lacks is initialised; weights of embeddings or
        encoder must be there. A smaller `num_hidden_layers` as an argument leaves out the
        checkpoint's last layers, with a warning. Weights of another shape are refused, or
        initialised with `ignore_mismatched_sizes=True`. Raises UserError for all that the checks of
        `loading` refuse.
        """
        wants_report = kwargs.pop("output_loading_info", False)
        ignore = kwargs.pop("ignore_mismatched_sizes", False)
        with one_refusal(pretrained_model_name_or_path), readable(pretrained_model_name_or_path, **kwargs) as (place, tensors):
            if tensors:
                with one_refusal(pretrained_model_name_or_path, Path(place)):
                    check_size(cls, cls._own_config(place, **kwargs), tensors, pretrained_model_name_or_path)
            # Always True: transformers then reports shapes that differ, and our error names them.
            model, report = super().from_pretrained(  # pyrefly: ignore[not-iterable]  (Self, says its annotation)
                place, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
            )
        layers = cls._layers_to_leave_out(pretrained_model_name_or_path, **kwargs)
        check_loaded(model, pretrained_model_name_or_path, report, ignore, layers)
        check_types(model, tensors, pretrained_model_name_or_path)
        return (model, report) if wants_report else model

    @classmethod
    def _own_config(cls, source, config=None, **kwargs) -> PreTrainedConfig:
        """Return the configuration as it is before the keyword arguments change it."""
        if isinstance(config, PreTrainedConfig):
            return config
        return cls.config_class.from_dict(cls.config_class.get_config_dict(config or source, **kwargs)[0])

    @classmethod
    def _layers_to_leave_out(cls, source, config=None, **kwargs) -> range:
        """Return the checkpoint's layers beyond a `num_hidden_layers` among the arguments."""
        if "num_hidden_layers" not in kwargs:
            return range(0)
        values, _ = cls.config_class.get_config_dict(config or source, **kwargs)
        return range(kwargs["num_hidden_layers"], cls.config_class.from_dict(values).num_hidden_layers)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights from Normal(0, initializer_range); set biases to 0 and norms to 1.

        The deviation of layers that write to a residual stream is scaled by `residual_init_scale`.
        """
        super()._init_weights(module)
        if isinstance(module, NoNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif getattr(module, "writes_residual", False) and self.config.residual_init_scale != 1.0:
            # Drawn again, not multiplied: `init` skips weights that came from a checkpoint.
            std = self.config.initializer_range * self.config.residual_init_scale
            assert isinstance(module.weight, torch.Tensor)
            init.normal_(module.weight, mean=0.0, std=std)


class MobileBertModel(MobileBertPreTrainedModel):
    """Embeddings, encoder and pooler."""

    def __init__(self, config: MobileBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = MobileBertEmbeddings(config)
        self.encoder = MobileBertEncoder(config)
        self.pooler = MobileBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | Collection[int] | None = None,
        num_layers: int | None = None,
        attention_layers: Collection[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore[bad-function-definition]  (transformers' models do so)
    ) -> BaseModelOutputWithPooling:
        """Return transformers' outputs for transformers' arguments and two more.

        `num_layers` and `attention_layers` are for layer-wise knowledge transfer.

        output_hidden_states: True for all, or the numbers of those wanted (negative ones count from
            the end); the others are then None.
        attention_mask: (batch, tokens), 1 for a token and 0 for padding; or (batch, 1, queries,
            keys), boolean (True attends) or additive. Without a mask, nothing is masked and the
            attention kernel gets no mask.
        num_layers: run only the first n blocks; `last_hidden_state` is the output of the last one.
        attention_layers: 0-based blocks whose attention probabilities are wanted. `attentions` then
            has one entry for each block run: (batch, heads, queries, keys), before dropout, or None
            for the other blocks. `output_attentions=True` asks for all of them.
        kwargs: ignored, as in transformers. Callers that support other or older models pass
            `head_mask` and `num_items_in_batch`.

        Raises UserError for float16, in which the activations overflow, for a sequence that is too
        long and, on the CPU, for ids out of range. Raises ValueError for arguments that contradict
        each other and for input of another shape.
        """
        if kwargs.get("is_causal"):  # transformers' class masks the future then, but no longer once a token is padding
            raise ValueError("is_causal: an encoder sees the whole sequence; give a 4-dimensional attention_mask")
        check_shape(input_ids, inputs_embeds)
        depth = self.config.num_hidden_layers
        num_layers = depth if num_layers is None else num_layers
        if not 0 <= num_layers <= depth:
            raise ValueError(f"num_layers: {num_layers} is not from 0 to {depth}")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if attention_layers is None:
            attention_layers = range(num_layers) if output_attentions else ()
        elif not all(0 <= index < num_layers for index in attention_layers):
            raise ValueError(f"attention_layers: {sorted(attention_layers)} must all be from 0 and below {num_layers}")
        dtype = self.compute_dtype()
        try:
            embedded = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        except IndexError:  # from a lookup on the CPU; a check before it would cost time on every call
            refuse_ids(self.embeddings, input_ids, token_type_ids, position_ids)
            raise
        mask = additive_mask(attention_mask, dtype, self.config.mask_value)
        wanted = _states_wanted(output_hidden_states, num_layers + 1)
        last, states, attentions = self.encoder(embedded, mask, num_layers, attention_layers, wanted)
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            hidden_states=states,
            attentions=attentions if attention_layers else None,
        )

    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of the matrix products, from the weights or from autocast.

        Raises UserError for float16.
        """
        # A quantizer or adapter may have replaced the layer by one with integer weights or none.
        weight = getattr(self.embeddings.embedding_transformation, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dtype not in DTYPES:
            weight = next(parameter for parameter in self.parameters() if parameter.dtype in DTYPES)
        dtype, device = weight.dtype, weight.device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # "meta" has no autocast, and asking for it breaks graphs
            dtype = torch.get_autocast_dtype(device)
        if torch.float16 in (dtype, weight.dtype):
            raise UserError("dtype: float16 ends at 65,504 and MobileBERT's activations reach 1e8; use bfloat16 or float32")
        return dtype
