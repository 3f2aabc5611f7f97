"""Losses of knowledge transfer and distillation (paper sections 3.3 and 3.4), as pure functions.

B batch, T tokens, C channels of the feature maps, H heads, N masked positions, V vocabulary. `mask` (B, T) is 1 for real
tokens; None counts every position, as the released code does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

FACTORS = {  # of feature map, means, variances, attention: the paper prints none; the released command has these
    "paper": (1.0, 0.0, 0.0, 1.0),
    "released": (100.0, 5000.0, 5.0, 1.0),
}


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over (B, T), over the real tokens alone with a mask."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def feature_map(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Feature map transfer, paper equation 4: mean over tokens and channels of (student - teacher)^2. Both (B, T, C)."""
    return _mean((student.float() - teacher.float()).square().mean(-1), mask)


def normalized_feature_map(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Released code's feature term: the same after a layer norm without parameters (epsilon 1e-12). Both (B, T, C)."""
    width = (student.shape[-1],)
    return feature_map(F.layer_norm(student.float(), width, eps=1e-12), F.layer_norm(teacher.float(), width, eps=1e-12), mask)


def means(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Released code's "beta" term: squared difference of each token's mean over channels. Both (B, T, C)."""
    return _mean((student.float().mean(-1) - teacher.float().mean(-1)).square(), mask)


def variances(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Released code's "gamma" term: absolute difference of each token's variance over channels. Both (B, T, C)."""
    spread = student.float().var(-1, unbiased=False) - teacher.float().var(-1, unbiased=False)
    return _mean(spread.abs(), mask)


def attention(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None, cross_entropy: bool = False
) -> torch.Tensor:
    """Attention transfer, paper equation 5: mean over tokens and heads of KL(teacher || student). Both (B, H, T, T), softmaxed.

    `cross_entropy` drops the teacher's entropy, a constant, as the released code does: same gradient.
    """
    student, teacher = student.float().clamp(min=1e-12), teacher.float()
    terms = -teacher * student.log()
    if not cross_entropy:
        terms = terms + torch.special.xlogy(teacher, teacher)
    return _mean(terms.sum(-1).mean(1), mask)


def soft_labels(student: torch.Tensor, teacher: torch.Tensor, cross_entropy: bool = False) -> torch.Tensor:
    """Distillation of the masked-LM prediction: mean over positions of KL(teacher || student). Logits (N, V)."""
    logs, target = F.log_softmax(student.float(), -1), F.softmax(teacher.float(), -1)
    if cross_entropy:
        return -(target * logs).sum(-1).mean()
    return F.kl_div(logs, target, reduction="batchmean")


def pretraining_distillation(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, alpha: float, cross_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """alpha * MLM + (1 - alpha) * KD, paper section 3.4 without NSP; also MLM and KD alone. Logits (N, V), labels (N,)."""
    hard = F.cross_entropy(student.float(), labels)
    soft = soft_labels(student, teacher, cross_entropy)
    return alpha * hard + (1 - alpha) * soft, hard, soft


def layer(
    student: dict,
    teacher: dict,
    recipe: str,
    losses: tuple[str, ...],
    factors: tuple[float, float, float, float],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The transfer loss of one layer. `student` and `teacher` hold "features" (B, T, C) and "attention" (B, H, T, T).

    paper: feature map and attention KL over real tokens. released: normalised feature map, means, variances and attention
    cross-entropy over all positions.
    """
    feature, mean, variance, attend = factors
    total = student["features"].new_zeros(())
    released = recipe == "released"
    if released:
        mask = None
    if "fmt" in losses:
        pair = student["features"], teacher["features"]
        total = total + feature * (normalized_feature_map if released else feature_map)(*pair, mask)
        if mean:
            # The released TF1 code averages the teacher's statistics over all its layers here: a slip of a variable name.
            statistics = teacher.get("statistics", teacher["features"])
            total = total + mean * means(pair[0], statistics, mask)
        if variance:
            total = total + variance * variances(pair[0], teacher.get("statistics", teacher["features"]), mask)
    if "at" in losses:
        total = total + attend * attention(student["attention"], teacher["attention"], mask, cross_entropy=released)
    return total
