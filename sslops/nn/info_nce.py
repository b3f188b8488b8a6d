"""Modules of info_nce, sup_con and cpc_loss."""

from typing import Literal

import torch
from torch import Tensor

from sslops.nn._temperature import WithTemperature
from sslops.ops._checks import check_reduction
from sslops.ops.cpc_loss import CPCStats, check_negatives, cpc_loss
from sslops.ops.info_nce import InfoNCEStats, info_nce
from sslops.ops.sup_con import SupConStats, sup_con
from sslops.parallel import Group

__all__ = ["CPCLoss", "InfoNCELoss", "SupConLoss"]


class InfoNCELoss(WithTemperature):
    r"""Module of `sslops.info_nce`; formula, shapes, dtypes and errors are documented there.

    Args:
        temperature: tau > 0; the start value if it is learnt.
        learn_temperature: make tau a parameter, held as `log_temperature` so that it stays
            positive.
        symmetric: both directions, for keys that have a gradient as well.
        reduction: "mean", "sum" or "none".
        normalize: False for rows that are compared by dot product.
        return_stats: return (loss, `InfoNCEStats`).
        group: whose rows are compared with as well; None for this process alone.

    Example:
        >>> loss = InfoNCELoss(temperature=0.2)
        >>> queries, keys = torch.randn(8, 16), torch.randn(8, 16)
        >>> queue = torch.nn.functional.normalize(torch.randn(64, 16), dim=1)
        >>> loss(queries, keys, queue=queue).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learn_temperature: bool = False,
        symmetric: bool = False,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        self.symmetric = symmetric
        check_reduction(type(self).__name__, reduction)
        self.reduction: Literal["none", "mean", "sum"] = reduction
        self.normalize = normalize
        self.return_stats = return_stats
        self.group = group

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        *,
        queue: Tensor | None = None,
        targets: Tensor | None = None,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        """Loss of queries [M, D] and keys [N, D]; the keywords are those of `info_nce`."""
        return info_nce(
            queries,
            keys,
            queue=queue,
            targets=targets,
            query_ids=query_ids,
            key_ids=key_ids,
            temperature=self.temperature,
            symmetric=self.symmetric,
            weights=weights,
            reduction=self.reduction,
            normalize=self.normalize,
            return_stats=self.return_stats,
            group=self.group,
        )


class SupConLoss(WithTemperature):
    r"""Module of `sslops.sup_con`; formula, shapes, dtypes and errors are documented there.

    Args:
        temperature: tau > 0; the start value if it is learnt.
        learn_temperature: make tau a parameter, held as `log_temperature`.
        mean: "outside" or "inside" the logarithm.
        reduction: "mean", "sum" or "none".
        normalize: False for rows that are compared by dot product.
        return_stats: return (loss, `SupConStats`).
        group: whose rows are compared with as well; None for this process alone.

    Example:
        >>> loss = SupConLoss(temperature=0.1)
        >>> loss(torch.randn(2, 4, 16), torch.tensor([0, 0, 1, 2])).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learn_temperature: bool = False,
        mean: Literal["outside", "inside"] = "outside",
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        if mean not in ("outside", "inside"):
            raise ValueError(f"SupConLoss: mean must be outside or inside, got {mean!r}")
        self.mean: Literal["outside", "inside"] = mean
        check_reduction(type(self).__name__, reduction)
        self.reduction: Literal["none", "mean", "sum"] = reduction
        self.normalize = normalize
        self.return_stats = return_stats
        self.group = group

    def forward(
        self, z: Tensor, labels: Tensor, *, weights: Tensor | None = None
    ) -> Tensor | tuple[Tensor, SupConStats]:
        """Loss of z [M, D] with labels [M], or of z [V, B, D] with labels [B]."""
        return sup_con(
            z,
            labels,
            temperature=self.temperature,
            mean=self.mean,
            weights=weights,
            reduction=self.reduction,
            normalize=self.normalize,
            return_stats=self.return_stats,
            group=self.group,
        )


class CPCLoss(WithTemperature):
    r"""Module of `sslops.cpc_loss`; formula, shapes, dtypes and errors are documented there.

    Args:
        temperature: tau > 0; the start value if it is learnt.
        learn_temperature: make tau a parameter, held as `log_temperature`.
        negatives: "all", "sequence", "other", or how many are drawn.
        normalize: False for rows that are compared by dot product.
        return_stats: return (loss, `CPCStats`).
        group: whose rows are compared with as well; None for this process alone.

    Example:
        >>> loss = CPCLoss(negatives="sequence")
        >>> loss(torch.randn(2, 4, 10, 8), torch.randn(4, 10, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        learn_temperature: bool = False,
        negatives: Literal["all", "sequence", "other"] | int = "all",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        check_negatives("CPCLoss", negatives)
        self.negatives: Literal["all", "sequence", "other"] | int = negatives
        self.normalize = normalize
        self.return_stats = return_stats
        self.group = group

    def forward(
        self,
        predictions: Tensor,
        targets: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, CPCStats]:
        """Loss of predictions [K, B, T, D] of the targets [B, T, D]."""
        return cpc_loss(
            predictions,
            targets,
            negatives=self.negatives,
            temperature=self.temperature,
            normalize=self.normalize,
            generator=generator,
            return_stats=self.return_stats,
            group=self.group,
        )
