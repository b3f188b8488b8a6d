"""SimCLR's and MoCo's losses of solo-learn, as of its 1.0.6 and of the 1.0.2 of the index.

Arguments and differences: docs/migration/solo_learn.md.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops import info_nce, nt_xent, sup_con
from sslops._join import cat, stack
from sslops.compat._shared import as_ids, factor_fits, rows_fit
from sslops.distributed import all_gather, all_gather_with_grad, rank

__all__ = ["moco_loss_func", "mocov2plus_loss_func", "simclr_loss_func"]


def simclr_loss_func(
    z: Tensor, indexes: Tensor, temperature: float = 0.1, extra_pos_mask: Tensor | None = None
) -> Tensor:
    r"""SimCLR's loss with the sum over a row's positives inside the logarithm.

    $$ -\frac{1}{M} \sum_i \log \sum_{p \in P(i)} p_{ip} $$

    With two views of each sample this is NT-Xent. With several processes each returns the mean
    over its own rows against everyone's; after DistributedDataParallel's mean the gradient is that
    of one process with the whole batch.

    Args:
        z: [M, D] floating, all crops; normalised here.
        indexes: [M], the sample (or class) of each crop; or, as solo-learn 1.0.2 has it, the second
            view [M, D] of `z`, in this process alone.
        temperature: tau; not positive: plain PyTorch.
        extra_pos_mask: with two views [2 M, 2 M] bool, further positives; the mean over a row's
            positives is then outside of the logarithm. Plain PyTorch.

    Returns:
        Scalar: the mean over the rows that have a positive.

    Raises:
        ValueError: `indexes` that are neither a number for each row nor a second view, a mask
            without a second view.

    Example:
        >>> z = torch.randn(8, 16, requires_grad=True)
        >>> simclr_loss_func(z, torch.arange(4).repeat(2)).backward()
    """
    if indexes.ndim == 2 and indexes.shape == z.shape:
        loss = fused_simclr_of_views(z, indexes, temperature, extra_pos_mask)
        if loss is NotImplemented:
            loss = _plain_views(z, indexes, temperature, extra_pos_mask)
        return cast(Tensor, loss)
    if indexes.shape != z.shape[:1] or extra_pos_mask is not None:
        raise ValueError(
            f"simclr_loss_func: indexes must be [{len(z)}], or with extra_pos_mask a second view,"
            f" got shape {tuple(indexes.shape)}"
        )
    loss = fused_simclr(z, indexes, temperature)
    return cast(Tensor, _plain(z, indexes, temperature) if loss is NotImplemented else loss)


def fused_simclr(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Any:
    """The loss of crops by kernels, or NotImplemented."""
    if (
        not (rows_fit(z) and factor_fits(temperature, z) and indexes.shape == z.shape[:1])
        or indexes.is_complex()
    ):
        return NotImplemented
    M = len(z)
    (ids,) = as_ids(all_gather(indexes))
    everyone = all_gather_with_grad(z)
    found = sup_con(everyone, ids, temperature=temperature, mean="inside", reduction="none")
    rows = cast(Tensor, found)
    ordered = ids.sort().values
    equal = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
    positives = (equal - 1)[rank() * M : (rank() + 1) * M].to(rows.dtype)  # [M]
    # sup_con takes the mean of the positives' probabilities, not their sum
    own = rows[rank() * M : (rank() + 1) * M] - positives.clamp_min(1).log()
    return own.sum() / (positives > 0).sum().clamp_min(1)


def _plain(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    M, z = len(z), F.normalize(z, dim=1)
    logits = z @ all_gather_with_grad(z).T / temperature
    own = torch.arange(M, device=z.device)[:, None] + rank() * M
    equal = indexes[:, None] == all_gather(indexes)
    positive = equal.scatter(1, own, False)
    logits = logits.masked_fill(equal ^ positive, -torch.inf)  # the crop itself
    rows = positive.any(dim=1)
    near = logits.masked_fill(~positive, -torch.inf)[rows].logsumexp(1)
    return (logits[rows].logsumexp(1) - near).sum() / rows.sum().clamp_min(1)


def fused_simclr_of_views(
    z1: Tensor, z2: Tensor, temperature: float = 0.1, extra_pos_mask: Tensor | None = None
) -> Any:
    """The loss of two views by kernels, or NotImplemented."""
    if not (
        rows_fit(z1, z2)
        and z1.shape == z2.shape
        and factor_fits(temperature, z1)
        and extra_pos_mask is None
    ):
        return NotImplemented
    return nt_xent(stack([z1, z2]), temperature=temperature)


def _plain_views(z1: Tensor, z2: Tensor, temperature: float, extra: Tensor | None) -> Tensor:
    if not len(z1) or z1.shape != z2.shape:
        raise ValueError(
            "simclr_loss_func: z1 and z2 must be [N, D], got shapes"
            f" {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    z = F.normalize(cat([z1, z2]), dim=-1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = own.roll(len(z1), dims=0)
    if extra is not None:
        positive = positive | extra
    logits = z @ z.T / temperature
    log_p = logits - logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    return -((positive * log_p).sum(1) / positive.sum(1)).mean()


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """MoCo's loss: a row's negatives are the columns of the queue alone.

    Args:
        query: [N, D] unit rows, as solo-learn passes them: nothing is normalised here.
        key: [N, D] unit rows.
        queue: [D, K] unit columns; one that requires a gradient gets it, by plain PyTorch.
        temperature: tau; not positive: plain PyTorch.

    Returns:
        Scalar mean.

    Example:
        >>> query, key = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=2)
        >>> queue = torch.nn.functional.normalize(torch.randn(16, 64), dim=0)
        >>> mocov2plus_loss_func(query, key, queue).shape
        torch.Size([])
    """
    loss = fused_moco(query, key, queue, temperature)
    if loss is NotImplemented:
        positive = torch.einsum("nc,nc->n", query, key)[:, None]
        logits = cat([positive, query @ queue], dim=1) / temperature
        target = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        return F.cross_entropy(logits, target)
    return cast(Tensor, loss)


moco_loss_func = mocov2plus_loss_func  # its name in 1.0.2


def fused_moco(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Any:
    """The loss by kernels, or NotImplemented."""
    if not (
        rows_fit(query, key, queue.T)
        and query.shape == key.shape
        and factor_fits(temperature, query)
        and not queue.requires_grad
    ):
        return NotImplemented
    return info_nce(query, key, queue=queue.T, temperature=temperature, normalize=False)
