"""Run a frozen teacher once a batch and hand its layers to its students."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobilebert.distillation import losses
from mobilebert.modeling.heads import MobileBertForPreTraining
from mobilebert.modeling.inputs import additive_mask


class Guide:
    """A frozen teacher's layers for one batch, computed once for each variant that is asked for.

    The blocks below the taught ones run once. The others run separately with and without attention
    maps: fused attention rounds differently, and a student must get the same bits beside others as
    alone.
    """

    @torch.no_grad()
    def __init__(self, teacher: MobileBertForPreTraining, batch: dict[str, torch.Tensor], depth: int, taught: range, recipe: str):
        self.model, self.depth, self.taught = teacher.mobilebert, depth, taught
        self.mask = additive_mask(batch.get("attention_mask"), self.model.compute_dtype(), teacher.config.mask_value)
        self.made: dict[tuple[bool, bool], dict[int, dict]] = {}
        self.below = self.model.embeddings(batch["input_ids"], batch.get("token_type_ids"))
        self.found = [losses.statistics(self.below)] if recipe == "released" else []
        for block in self.model.encoder.layer[: taught.start]:
            self.below = block(self.below, self.mask, False)[0]
            if recipe == "released":
                self.found.append(losses.statistics(self.below))

    @torch.no_grad()
    def layers(self, maps: bool, averages_all_layers: bool) -> dict[int, dict]:
        """Return the taught layers as the function `layers` does.

        maps: with attention maps. averages_all_layers: run all blocks, and add the statistics of
        every layer (see `Transfer.averages_all_layers`); features are kept for the taught layers
        alone.
        """
        if (maps, averages_all_layers) not in self.made:
            state, found, states = self.below, [*self.found], {}
            for index in range(self.taught.start, self.model.config.num_hidden_layers if averages_all_layers else self.depth):
                state, attention = self.model.encoder.layer[index](state, self.mask, maps and index in self.taught)
                if index in self.taught:
                    states[index] = {"features": state, "attention": attention}
                if averages_all_layers:
                    found.append(losses.statistics(state))
            self.made[maps, averages_all_layers] = with_statistics(states, found) if averages_all_layers else states
        return self.made[maps, averages_all_layers]


def layers(model: MobileBertForPreTraining, inputs: dict, depth: int, taught: range, maps: list[int]) -> dict[int, dict]:
    """Run `depth` blocks and return the "features" (B, T, C) of each taught one.

    A block named in `maps` also has its "attention" (B, H, T, T). A stage of PKT needs the features
    of the last block alone: then no other hidden state is kept.
    """
    last = taught == range(depth - 1, depth)
    out = model.mobilebert(**inputs, num_layers=depth, output_hidden_states=not last, attention_layers=maps)
    return by_layer(None if last else out.hidden_states, out.attentions, taught, out.last_hidden_state)


def by_layer(
    states: Sequence[torch.Tensor] | None,
    attentions: Sequence[torch.Tensor | None] | None,
    taught: range,
    last: torch.Tensor | None = None,
) -> dict[int, dict]:
    """Return hidden states (embeddings first) and attention maps by layer, for `Transfer.compare`.

    last: the only taught layer's features, if `states` is None.
    """
    return {
        index: {"features": last if states is None else states[index + 1], "attention": attentions and attentions[index]}
        for index in taught
    }


def with_statistics(teacher: dict[int, dict], found: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[int, dict]:
    """Return the layers, each with the "statistics" of the teacher's embeddings and all its layers.

    These are means and variances, (L + 1, B, T) each.
    """
    statistics = tuple(torch.stack(one) for one in zip(*found, strict=True))
    return {index: layer | {"statistics": statistics} for index, layer in teacher.items()}
