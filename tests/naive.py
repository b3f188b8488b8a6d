"""The losses as users write them, every similarity stored; any dtype, differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

INF = float("inf")


def unit(*rows: Tensor, normalize: bool = True) -> list[Tensor]:
    return [F.normalize(each, dim=1) if normalize else each for each in rows]


def same_id(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    return (row_ids[:, None] == column_ids) & (row_ids[:, None] >= 0)


def info_nce_logits(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    *,
    queue: Tensor | None = None,
    targets: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    within: bool = False,
    normalize: bool = True,
) -> Tensor:
    """[M, 1 + N]: the positive first, then the negatives, -inf where one is left out."""
    x, k = unit(queries, keys, normalize=normalize)
    if targets is None:
        targets = torch.arange(len(x), device=x.device)
    positive = (x * k[targets]).sum(dim=1, keepdim=True) * scale
    negative = x @ (k if queue is None else queue.to(x.dtype)).T * scale
    out = torch.zeros_like(negative, dtype=torch.bool)
    if query_ids is not None:
        same = same_id(query_ids, key_ids)
        out = ~same if within else same
    if queue is None:
        out = out.scatter(1, targets[:, None], True)
    return torch.cat([positive, negative.masked_fill(out, -INF)], dim=1)


def naive_info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor, **kwargs) -> Tensor:
    """Per-row InfoNCE, [M]; keywords as of `info_nce_logits`."""
    logits = info_nce_logits(queries, keys, 1 / temperature, **kwargs)
    none = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, none, reduction="none")


def clip_logits(
    image: Tensor,
    text: Tensor,
    scale: float | Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """[N, N], -inf where a negative is left out."""
    x, t = unit(image, text, normalize=normalize)
    logits = x @ t.T * scale
    if image_ids is None:
        return logits
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    return logits.masked_fill(same_id(image_ids, text_ids) & ~own, -INF)


def naive_clip(
    image: Tensor, text: Tensor, scale: float | Tensor, label_smoothing: float = 0.0, **kwargs
) -> Tensor:
    """Per-pair mean of both directions, [N]; keywords as of `clip_logits`."""
    logits = clip_logits(image, text, scale, **kwargs)
    own = torch.arange(len(logits), device=logits.device)
    each = (
        F.cross_entropy(part, own, reduction="none", label_smoothing=label_smoothing)
        for part in (logits, logits.T)
    )
    return sum(each) / 2


def naive_sup_con(
    z: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    mean: str = "outside",
    normalize: bool = True,
) -> Tensor:
    """Per-row supervised contrastive loss, [M]; 0 where a row has no positive."""
    (x,) = unit(z, normalize=normalize)
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    positive = same_id(labels, labels) & ~own
    log_p = (x @ x.T / temperature).masked_fill(own, -INF).log_softmax(dim=1)
    count = positive.sum(dim=1)
    some = count > 0
    if mean == "outside":
        rows = -torch.where(positive, log_p, 0.0).sum(dim=1) / count.clamp_min(1)
    else:
        # a row without positives must not meet log 0: its gradient would be NaN
        kept = log_p.masked_fill(~(positive | ~some[:, None] & ~own), -INF)
        rows = count.clamp_min(1).to(x.dtype).log() - kept.logsumexp(dim=1)
    return torch.where(some, rows, 0.0)


def naive_sigmoid(
    image: Tensor,
    text: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Sum over all pairs, 0-d."""
    x, t = unit(image, text, normalize=normalize)
    own = torch.eye(len(x), len(t), dtype=torch.bool, device=x.device)
    logits = x @ t.T * scale + bias
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    if image_ids is not None:
        losses = losses.masked_fill(same_id(image_ids, text_ids) & ~own, 0.0)
    return losses.sum()


def naive_cpc(
    predictions: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    negatives: str | Tensor = "all",
    normalize: bool = True,
) -> Tensor:
    """Mean of each step, [K]; `negatives` may be the places that were drawn."""
    K, B, T, D = predictions.shape
    keys = targets.reshape(B * T, D)
    place = torch.arange(B * T).view(B, T)
    sequence = place // T
    steps = []
    for k in range(1, K + 1):
        rows = predictions[k - 1, :, : T - k].reshape(-1, D)
        positive = place[:, k:].reshape(-1)
        kwargs = {"targets": positive, "normalize": normalize}
        if isinstance(negatives, Tensor):
            queue = unit(keys[negatives], normalize=normalize)[0]
            kwargs |= {"queue": queue, "query_ids": positive, "key_ids": negatives}
        elif negatives != "all":
            kwargs |= {"query_ids": sequence[:, k:].reshape(-1), "key_ids": sequence.reshape(-1)}
            kwargs["within"] = negatives == "sequence"
        steps.append(naive_info_nce(rows, keys, temperature, **kwargs).mean())
    return torch.stack(steps)


def loop_info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    queue: Tensor | None = None,
    targets: list[int] | None = None,
    query_ids: list[int] | None = None,
    key_ids: list[int] | None = None,
) -> Tensor:
    """InfoNCE of cosines by two loops, nothing shared with any implementation, [M] float64."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    losses = []
    for i, x in enumerate(queries.double()):
        target = i if targets is None else targets[i]
        positive = cosine(x, keys[target].double()) / temperature
        total = 1.0
        for j, y in enumerate((keys if queue is None else queue).double()):
            if queue is None and j == target:
                continue
            if query_ids is not None and query_ids[i] == key_ids[j] and query_ids[i] >= 0:
                continue
            total += torch.tensor(cosine(x, y) / temperature - positive).double().exp().item()
        losses.append(total)
    return torch.tensor(losses, dtype=torch.float64).log()
