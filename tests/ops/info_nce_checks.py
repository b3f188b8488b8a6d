"""One check for everything that runs on info_nce's kernels: loss, lse, hits, all gradients."""

import math
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops.ops import _info_nce_op
from sslops.ops._info_nce_op import info_nce_rows
from tests.naive import clip_logits, info_nce_logits
from tests.numerics import assert_as_accurate_as

ALL = ("queries", "keys", "scale")


@dataclass
class Case:
    """A problem; the meaning of the fields is that of `sslops.info_nce`."""

    queries: Tensor
    keys: Tensor
    temperature: float = 0.1
    queue: Tensor | None = None
    targets: Tensor | None = None
    query_ids: Tensor | None = None
    key_ids: Tensor | None = None
    same_id_only: bool = False
    symmetric: bool = False
    normalize: bool = True


def make_case(
    M: int, N: int, D: int, dtype: torch.dtype, *, queue: torch.dtype | None = None, **kwargs: Any
) -> Case:
    """Queries that resemble their keys, or the softmax would be flat.

    With `queue`, the dtype of N negatives, there are M keys; with `targets=True` random ones.
    """
    keys = torch.randn(M if queue else N, D)
    if kwargs.get("targets") is True:
        kwargs["targets"] = torch.randint(len(keys), (M,))
    targets = kwargs.get("targets")
    queries = keys[torch.arange(M) if targets is None else targets] + 0.5 * torch.randn(M, D)
    if queue:
        kwargs["queue"] = torch.nn.functional.normalize(torch.randn(N, D), dim=1).to(queue)
    return Case(queries.to(dtype), keys.to(dtype), **kwargs)


def as_user(case: Case, dtype: torch.dtype, trained: tuple[str, ...], grad: Tensor):
    """(loss, lse, logits, gradients) of plain PyTorch in `dtype`; of both sides if symmetric."""
    leaves = {
        "queries": case.queries.to(dtype, copy=True),
        "keys": case.keys.to(dtype, copy=True),
        "scale": torch.tensor(1 / case.temperature, dtype=dtype),
    }
    for name in trained:
        leaves[name].requires_grad_()
    ids = (case.query_ids, case.key_ids)
    if case.symmetric:
        names = dict(zip(("image_ids", "text_ids"), ids, strict=True))
        logits = clip_logits(*leaves.values(), **names, normalize=case.normalize)
        sides, own = (logits, logits.T), torch.arange(len(logits))
    else:
        queue = None if case.queue is None else case.queue.to(dtype)
        names = dict(zip(("query_ids", "key_ids"), ids, strict=True))
        logits = info_nce_logits(
            *leaves.values(), queue=queue, targets=case.targets, **names,
            within=case.same_id_only, normalize=case.normalize,
        )  # fmt: skip
        sides, own = (logits,), torch.zeros(len(logits), dtype=torch.int64)
    cross_entropy = torch.nn.functional.cross_entropy
    losses = [cross_entropy(side, own, reduction="none") for side in sides]
    loss = sum(losses) / len(losses)
    wanted = [leaves[name] for name in trained]
    grads = torch.autograd.grad(loss, wanted, grad.to(dtype)) if trained else ()
    lse = [side.detach().logsumexp(dim=1) for side in sides]
    logits = [side.detach() for side in sides]
    return [each.detach() for each in losses], lse, logits, dict(zip(trained, grads, strict=True))


def ours(
    case: Case,
    trained: tuple[str, ...],
    grad: Tensor,
    stats: bool = True,
    row_weights: Tensor | None = None,
):
    """(loss, InfoNCEStats, gradients) of whatever is chosen to run.

    With `row_weights` and trained keys the gradients come with the loss, if `grad` is a multiple.
    """
    leaves = {"queries": case.queries.detach(), "keys": case.keys.detach()}
    wide = torch.promote_types(case.queries.dtype, torch.float32)
    # a number where it is not trained: that is another path
    scale = torch.tensor(0.5 / case.temperature, dtype=wide) if "scale" in trained else None
    for name in trained:
        (scale if name == "scale" else leaves[name]).requires_grad_()
    args = InfoNCEArgs(
        *leaves.values(), case.queue, case.targets, case.query_ids, case.key_ids,
        row_weights=None if row_weights is None else row_weights.to(wide), scale=scale,
        scale_factor=1 / case.temperature if scale is None else 2.0,
        same_id_only=case.same_id_only, symmetric=case.symmetric, normalize=case.normalize,
        stats=stats,
    )  # fmt: skip
    loss, found = info_nce_rows(args, reduced=row_weights is not None)
    if not trained:
        return loss, found, {}
    wanted = [scale if name == "scale" else leaves[name] for name in trained]
    grads = dict(zip(trained, torch.autograd.grad(loss, wanted, grad.to(loss.dtype)), strict=True))
    if scale is not None:
        grads["scale"] = grads["scale"] / 2
    return loss.detach(), found, grads


def check(case: Case, grad: Tensor | None = None, trained: tuple[str, ...] = ALL) -> None:
    """Every result against float64, allowed twice the error of plain PyTorch in the dtype.

    By every plan: in two passes, with the similarities kept from one to the next, and, where keys
    are trained, with what each row counts said before.
    """
    dtype, M = case.queries.dtype, len(case.queries)
    grad = torch.rand(M) + 0.1 if grad is None else grad
    truths = as_user(case, torch.float64, trained, grad)
    # products with a bfloat16 queue are those of bfloat16
    halved = case.queue is not None and case.queue.dtype is torch.bfloat16
    plain_dtype = torch.bfloat16 if halved else dtype
    naive_loss, naive_lse, _, naive = as_user(case, plain_dtype, trained, grad)
    in_forward = "keys" in trained and case.queue is None
    for room, weights in ((0, None), (2, None), (2, grad))[: 3 if in_forward else 2]:
        with patch.object(_info_nce_op, "ROOM", room):
            _check_one(case, grad, trained, weights, (naive_loss, naive_lse, naive), truths)


def _check_one(case, grad, trained, weights, plain_results, truths) -> None:
    naive_loss, naive_lse, naive = plain_results
    truth_loss, truth_lse, logits, truth = truths
    loss, stats, grads = ours(case, trained, grad, row_weights=weights)
    plain, fewer, again = ours(case, trained, grad, stats=False, row_weights=weights)
    assert fewer.hit.numel() == fewer.key_hit.numel() == 0
    torch.testing.assert_close(plain, loss, rtol=1e-5, atol=1e-5 / case.temperature)
    assert again.keys() == grads.keys()

    others = case.keys if case.queue is None else case.queue
    X, K, Y = (each.double().norm(dim=1) for each in (case.queries, case.keys, others))
    x = 1.0 if case.normalize else float(X.max())
    y = max(
        1.0 if case.normalize else float(K.max()), float(Y.max()) if case.queue is not None else 0
    )
    logit = x * y / case.temperature + math.log(len(others) + 1)
    for n, (query_side, loss_, lse_) in enumerate(
        [(True, stats.loss, stats.lse), (False, stats.key_loss, stats.key_lse)]
    ):
        if not query_side and not case.symmetric:
            assert loss_.numel() == lse_.numel() == 0
            continue
        assert_as_accurate_as(loss_, naive_loss[n], truth_loss[n], name="loss", scale=logit)
        assert_as_accurate_as(lse_, naive_lse[n], truth_lse[n], name="lse", scale=logit)
        _check_hits(case, logits[n], stats.hit if query_side else stats.key_hit, x * y)

    # what meets in a row of each gradient: an error of eps * logit in a probability, times a row
    query_mass, key_mass = _masses(case, logits, grad.double().abs())
    bounds = {
        "queries": logit / case.temperature * y * query_mass * _inverse(X, case),
        "keys": logit / case.temperature * x * key_mass * _inverse(K, case),
        "scale": logit * x * y * float(grad.abs().sum()),
    }
    for name in trained:
        assert_as_accurate_as(
            grads[name], naive[name], truth[name], name="d" + name, scale=bounds[name]
        )


def _inverse(norm: Tensor, case: Case) -> float:
    return 1 / max(float(norm.min()), 1e-12) if case.normalize else 1.0


def _check_hits(case: Case, logits: Tensor, hit: Tensor, size: float) -> None:
    """Equal wherever the positive and the best negative differ by more than rounding."""
    if case.symmetric:
        own = torch.eye(len(logits), dtype=torch.bool)
        positive, negative = logits.diagonal(), logits.masked_fill(own, -math.inf)
    else:
        positive, negative = logits[:, 0], logits[:, 1:]
    margin = positive - negative.amax(dim=1)
    clear = margin.abs() > 8 * torch.finfo(case.queries.dtype).eps * size / case.temperature
    assert hit.dtype is torch.bool
    assert torch.equal(hit[clear], margin[clear] > 0)


def _masses(case: Case, logits: list[Tensor], w: Tensor) -> tuple[float, float]:
    """Largest total weight of the rows that are summed in a row of dqueries and of dkeys."""
    p = w[:, None] * logits[0].softmax(dim=1)
    if case.symmetric:
        q = w[:, None] * logits[1].softmax(dim=1)
        return float((q.sum(0) + 2 * w).max()), float((p.sum(0) + 2 * w).max())
    targets = torch.arange(len(w)) if case.targets is None else case.targets
    mass = torch.zeros(len(case.keys), dtype=torch.float64).index_add(0, targets, w)
    if case.queue is None:
        mass = mass + p[:, 1:].sum(0)
    return float(w.max()), float(mass.max())
