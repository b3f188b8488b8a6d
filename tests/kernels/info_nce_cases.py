"""Inputs of the tests of InfoNCE's Triton kernels, and the loss as a user writes it."""

import pytest
import torch
import torch.nn.functional as F


def skip_what_the_interpreter_cannot(device: str, *dtypes: torch.dtype) -> None:
    if device == "cpu" and torch.bfloat16 in dtypes:
        pytest.skip("Triton's interpreter computes bfloat16 as if it were uint16")


def make_inputs(M, N, K, D, normalize, dtype, device):
    """Positives that resemble their queries, or the softmax would be flat."""
    keys = torch.randn(N, D)
    queries = keys[torch.arange(M) % N] + 0.5 * torch.randn(M, D)
    if not normalize:
        keys, queries = (5 * F.normalize(t, dim=1) for t in (keys, queries))
    negatives = None if K is None else F.normalize(torch.randn(K, D), dim=1).to(device, dtype)
    return queries.to(device, dtype), keys.to(device, dtype), negatives


def make_masks(M, N, kind, device):
    """(targets, query_ids, key_ids, same_id_only); N is the number of columns that ids mask."""
    targets = torch.randint(N, (M,), device=device) if "targets" in kind else None
    if "ids" not in kind:
        return targets, None, None, False
    ids = [torch.randint(-1, 4, (n,), device=device) * 2**40 for n in (M, N)]
    return targets, *(torch.where(i < 0, -1, i) for i in ids), "within" in kind


def naive(q, k, n, targets, query_ids, key_ids, scale, same_id_only, columns, normalize):
    """(rows' losses, columns' losses) as a user writes them: the similarities are stored."""
    x, y = (F.normalize(t, dim=1) if normalize else t for t in (q, k))
    M = len(x)
    where = torch.arange(M, device=x.device) if targets is None else targets
    logits = x @ (y if n is None else n).T * scale
    out = torch.zeros_like(logits, dtype=torch.bool)
    if query_ids is not None:
        out = (query_ids[:, None] == key_ids) & (query_ids >= 0)[:, None]
        out = ~out if same_id_only else out
    if n is None:
        out = out.scatter(1, where[:, None], False)
    logits = logits.masked_fill(out, float("-inf"))
    if n is not None:
        logits = torch.cat([(x * y[where]).sum(dim=1, keepdim=True) * scale, logits], dim=1)
        where = torch.zeros_like(where)
    rows = F.cross_entropy(logits, where, reduction="none")
    return rows, F.cross_entropy(logits.T, where, reduction="none") if columns else None
