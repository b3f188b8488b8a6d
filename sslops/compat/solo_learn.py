"""`simclr_loss_func` and `mocov2plus_loss_func` of solo-learn, as of its 1.0.6.

Differences: docs/migration/solo_learn.md.
"""

from typing import cast

import torch
from torch import Tensor

from sslops import info_nce, sup_con
from sslops.compat._shared import as_ids
from sslops.distributed import all_gather, all_gather_with_grad, rank

__all__ = ["mocov2plus_loss_func", "simclr_loss_func"]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    r"""SimCLR's loss with the sum over a row's positives inside the logarithm.

    $$ -\frac{1}{M} \sum_i \log \sum_{p \in P(i)} p_{ip} $$

    With two views of each sample this is NT-Xent. With several processes each returns the mean
    over its own rows against everyone's; after DistributedDataParallel's mean the gradient is that
    of one process with the whole batch.

    Args:
        z: [M, D] floating, all crops; normalised here.
        indexes: [M] integers, the sample (or class) of each crop.
        temperature: tau > 0.

    Returns:
        Scalar: the mean over the rows that have a positive.

    Raises:
        ValueError: indexes that are not an integer for each row, as two views are; what
            `sslops.sup_con` refuses.

    Example:
        >>> z = torch.randn(8, 16, requires_grad=True)
        >>> simclr_loss_func(z, torch.arange(4).repeat(2)).backward()
    """
    M = len(z)
    if indexes.shape != (M,) or indexes.is_floating_point():
        raise ValueError(
            f"simclr_loss_func: indexes must be [{M}] integers, got {indexes.dtype} of shape"
            f" {tuple(indexes.shape)}"
        )
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


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """MoCo's loss: a row's negatives are the columns of the queue alone.

    Args:
        query: [N, D] unit rows, as solo-learn passes them: nothing is normalised here.
        key: [N, D] unit rows.
        queue: [D, K] unit columns; gets no gradient.
        temperature: tau > 0.

    Returns:
        Scalar mean.

    Example:
        >>> query, key = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=2)
        >>> queue = torch.nn.functional.normalize(torch.randn(16, 64), dim=0)
        >>> mocov2plus_loss_func(query, key, queue).shape
        torch.Size([])
    """
    loss = info_nce(query, key, queue=queue.T, temperature=temperature, normalize=False)
    return cast(Tensor, loss)
