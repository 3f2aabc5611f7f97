"""Check the inputs of a model and build its attention mask."""

from collections.abc import Collection

import torch

from mobilebert.modeling.layers import MobileBertEmbeddings
from mobilebert.util.errors import UserError


def states_wanted(asked: bool | int | Collection[int] | None, count: int) -> Collection[int] | None:
    """Return the numbers, below `count`, of the hidden states that the caller asks for.

    asked: the argument `output_hidden_states`, as in transformers: True for all, or numbers.
        Negative numbers count from the end; numbers out of range are ignored.

    Return None if no hidden states are asked for.
    """
    if not asked:
        return None
    if asked is True:
        return range(count)
    numbers = [asked] if isinstance(asked, int) else asked
    return {number % count for number in numbers if -count <= number < count}


def check_shape(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, dimensions: tuple[str, ...] = ("batch", "tokens")
) -> None:
    """Raise ValueError unless exactly one input is given, with these dimensions, each at least 1.

    `inputs_embeds` has one dimension more, embedding_size.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give input_ids or inputs_embeds, and not both")
    name, given = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    wanted = dimensions if inputs_embeds is None else (*dimensions, "embedding_size")
    assert given is not None
    if given.dim() != len(wanted) or 0 in given.shape:
        raise ValueError(f"{name}: shape {tuple(given.shape)}; wanted is ({', '.join(wanted)}), each at least 1")


def refuse_ids(
    embeddings: MobileBertEmbeddings,
    input_ids: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> None:
    """Raise UserError for the first of the three inputs that has an id outside its table."""
    for name, ids, table in (
        ("input_ids", input_ids, embeddings.word_embeddings),
        ("token_type_ids", token_type_ids, embeddings.token_type_embeddings),
        ("position_ids", position_ids, embeddings.position_embeddings),
    ):
        last = table.num_embeddings - 1
        if ids is not None and ids.numel() and not 0 <= ids.min() <= ids.max() <= last:
            raise UserError(f"{name}: ids from {ids.min()} to {ids.max()}; allowed are 0 to {last}")


def additive_mask(attention_mask: torch.Tensor | None, dtype: torch.dtype, mask_value: str = "min") -> torch.Tensor | None:
    """Return a mask to add to attention scores: 0 if attended, else `mask_value`.

    mask_value: see MobileBertConfig. With "-6" a mask must depend on keys alone, because the
        attention finds masked keys by that value.
    dtype: that of the scores. float32's minimum, cast to bfloat16, would become an infinity, and a
        row that is all padding would become NaN.

    attention_mask: (batch, keys) of any type, or 4 dimensions of bool or floats. Floats are already
        additive, so they are only cast to `dtype`.

    Return None if there is no mask. Raises ValueError for a mask of another shape or type.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() == 4:
        if mask_value == "-6" and attention_mask.shape[2] != 1:
            raise ValueError('attention_mask: mask_value "-6" takes only masks of keys: (batch, keys) or (batch, 1, 1, keys)')
        if attention_mask.dtype != torch.bool:
            if not attention_mask.is_floating_point():  # added to the scores, its 0 and 1 would mask nothing
                raise ValueError(f"attention_mask: 4 dimensions of {attention_mask.dtype}; allowed are bool, or floats to add")
            return attention_mask.to(dtype)
        attends = attention_mask
    elif attention_mask.dim() == 2:
        attends = attention_mask[:, None, None, :].bool()
    else:
        raise ValueError(f"attention_mask: {attention_mask.dim()} dimensions; allowed are 2 or 4")
    value = torch.finfo(dtype).min if mask_value == "min" else float(mask_value)
    return torch.zeros(attends.shape, dtype=dtype, device=attends.device).masked_fill(~attends, value)
