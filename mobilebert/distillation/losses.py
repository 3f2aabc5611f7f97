"""Compute the losses of knowledge transfer and distillation (paper sections 3.3 and 3.4).

All functions are pure. B batch, T tokens, C channels of the feature maps, H heads, N masked
positions, V vocabulary, L layers. `mask` (B, T) is 1 for real tokens; None counts every position,
as the released code does. Half precision is compared in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Factors of feature map, means, variances and attention. The paper prints none; the second row is
# that of the released command.
FACTORS = {
    "paper": (1.0, 0.0, 0.0, 1.0),
    "released": (100.0, 5000.0, 5.0, 1.0),
}


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return float64 as it is, a narrower type as float32."""
    return x if x.dtype == torch.float64 else x.float()


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over (B, T); if there is a mask, over the real tokens alone."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def feature_map(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the loss of feature map transfer (paper equation 4).

    It is the mean over tokens and channels of (student - teacher)^2, both (B, T, C).
    """
    return _mean((_wide(student) - _wide(teacher)).square().mean(-1), mask)


def normalized_feature_map(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the released code's feature term, both (B, T, C).

    It is `feature_map` after a layer norm without parameters (epsilon 1e-12).
    """
    width = (student.shape[-1],)
    return feature_map(F.layer_norm(_wide(student), width, eps=1e-12), F.layer_norm(_wide(teacher), width, eps=1e-12), mask)


def statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of each token over its channels: (..., T, C) -> two of (..., T)."""
    return _wide(features).mean(-1), _wide(features).var(-1, unbiased=False)


def means(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the released code's "beta" term: the squared difference of the tokens' means.

    The means are over channels: student (B, T), teacher (B, T) or (L, B, T).
    """
    return _mean((student - teacher).square().reshape(-1, *student.shape).mean(0), mask)


def variances(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the released code's "gamma" term: the absolute difference of the tokens' variances.

    The variances are over channels: student (B, T), teacher (B, T) or (L, B, T).
    """
    return _mean((student - teacher).abs().reshape(-1, *student.shape).mean(0), mask)


def attention(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None, cross_entropy: bool = False
) -> torch.Tensor:
    """Return the loss of attention transfer (paper equation 5).

    It is the mean over tokens and heads of KL(teacher || student), both (B, H, T, T) after softmax.
    `cross_entropy` drops the teacher's entropy, a constant, as the released code does: the gradient
    is the same.
    """
    student, teacher = _wide(student).clamp(min=1e-12), _wide(teacher)
    terms = -teacher * student.log()
    if not cross_entropy:
        terms = terms + torch.special.xlogy(teacher, teacher)
    return _mean(terms.sum(-1).mean(1), mask)


def masked_lm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the masked-LM loss: mean cross-entropy in nats over the masked positions.

    Logits (N, V), labels (N,).
    """
    return F.cross_entropy(_wide(logits), labels)


def next_sentence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of next-sentence prediction: mean cross-entropy in nats over the batch.

    Logits (B, 2), labels (B,): 1 if the second segment is random.
    """
    return F.cross_entropy(_wide(logits), labels)


def soft_labels(
    student: torch.Tensor, teacher: torch.Tensor, cross_entropy: bool = False, real: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the distillation loss of masked LM: mean over positions of KL(teacher || student).

    Logits (N, V). real: (N,), 1 for a position that counts, 0 for one that only pads N; None if all
    count. cross_entropy: as in `attention`.
    """
    logs, target = F.log_softmax(_wide(student), -1), F.softmax(_wide(teacher), -1)
    if real is not None:
        target = target * real[:, None].to(target.dtype)
    count = len(target) if real is None else real.sum()
    if cross_entropy:
        return -(target * logs).sum(-1).sum() / count
    return F.kl_div(logs, target, reduction="sum") / count


def pretraining_distillation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    cross_entropy: bool = False,
    real: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return alpha * MLM + (1 - alpha) * KD (paper section 3.4 without NSP), MLM and KD.

    Logits (N, V), labels (N,). real: as in `soft_labels`; the labels of padding are -100.
    """
    hard = masked_lm(student, labels)
    soft = soft_labels(student, teacher, cross_entropy, real)
    return alpha * hard + (1 - alpha) * soft, hard, soft


def layer(
    student: dict,
    teacher: dict,
    recipe: str,
    losses: tuple[str, ...],
    factors: tuple[float, float, float, float],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the transfer loss of one layer.

    `student` and `teacher` hold "features" (B, T, C) and "attention" (B, H, T, T).
    paper: feature map and attention KL over real tokens.
    released: normalised feature map, means, variances and attention cross-entropy over all
        positions. The teacher's "statistics", two of (L, B, T), replace those of its features.
    """
    feature, mean, variance, attend = factors
    total = student["features"].new_zeros(())
    released = recipe == "released"
    if released:
        mask = None
    if "fmt" in losses:
        pair = student["features"], teacher["features"]
        total = total + feature * (normalized_feature_map if released else feature_map)(*pair, mask)
        if mean or variance:
            mine, theirs = statistics(pair[0]), teacher.get("statistics") or statistics(pair[1])
            total = total + mean * means(mine[0], theirs[0], mask) + variance * variances(mine[1], theirs[1], mask)
    if "at" in losses:
        total = total + attend * attention(student["attention"], teacher["attention"], mask, cross_entropy=released)
    return total
