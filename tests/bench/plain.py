"""Train with plain PyTorch, as one writes it first: the peer of the suite's training.

Both models run whole: they keep every attention map and hidden state, compute vocabulary logits of
every token and gradients of everything.
"""

import torch
import torch.nn.functional as F


def whole(model, batch):
    """Return all outputs that a model has."""
    inputs = {key: batch[key] for key in ("input_ids", "token_type_ids", "attention_mask") if key in batch}
    return model(**inputs, output_hidden_states=True, output_attentions=True)


def transfer(student, teacher, batch, layer):
    """Return the feature map and attention transfer loss of one layer, from whole passes."""
    with torch.no_grad():
        guide = whole(teacher, batch)
    out = whole(student, batch)
    features = F.mse_loss(out.hidden_states[layer + 1], guide.hidden_states[layer + 1])
    mine, theirs = out.attentions[layer], guide.attentions[layer]
    divergence = F.kl_div(mine.clamp_min(1e-9).log(), theirs, reduction="none")  # a padded key has probability 0 in both
    return features + divergence.sum(-1).mean()


def distillation(student, teacher, batch):
    """Return the loss of masked LM, soft labels and NSP, from logits of the whole sequence."""
    with torch.no_grad():
        guide = whole(teacher, batch)
    out = whole(student, batch)
    mine, theirs = (found.prediction_logits.flatten(0, 1)[batch["masked_positions"]] for found in (out, guide))
    hard = F.cross_entropy(mine, batch["masked_labels"])
    soft = F.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    return 0.5 * hard + 0.5 * soft + F.cross_entropy(out.seq_relationship_logits, batch["next_sentence_label"])


def pretraining(model, batch):
    """Return the masked LM and NSP loss; labels cover the whole batch, as a usual collator's."""
    inputs = {key: batch[key] for key in ("input_ids", "token_type_ids", "attention_mask") if key in batch}
    out = model(**inputs)
    labels = torch.full((batch["input_ids"].numel(),), -100, device=batch["input_ids"].device)
    labels[batch["masked_positions"]] = batch["masked_labels"]
    loss = F.cross_entropy(out.prediction_logits.flatten(0, 1).float(), labels)
    return loss + F.cross_entropy(out.seq_relationship_logits.float(), batch["next_sentence_label"])
