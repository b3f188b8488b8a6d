"""Module of NT-Xent."""

from typing import Literal

from torch import Tensor

from sslops._join import stack
from sslops._names import shown
from sslops.nn._temperature import WithTemperature
from sslops.ops._checks import autocasts, check_floating, check_reduction
from sslops.ops.nt_xent import NTXentStats, nt_xent
from sslops.parallel import Group

__all__ = ["NTXentLoss"]


class NTXentLoss(WithTemperature):
    r"""Module of `sslops.nt_xent`; formula, shapes, dtypes and errors are documented there.

    Args:
        temperature: tau > 0; the start value if it is learnt.
        learn_temperature: make tau a parameter, held as `log_temperature` so that it stays
            positive.
        num_views: V for inputs [M, D]; default 2.
        reduction: "mean", "sum" or "none".
        normalize: False for rows that are compared by dot product.
        return_stats: return (loss, `NTXentStats`).
        group: whose rows are compared with as well; None for this process alone.

    Example:
        >>> import torch
        >>> loss = NTXentLoss(temperature=0.5)
        >>> z1, z2 = torch.randn(8, 16), torch.randn(8, 16)
        >>> bool(loss(z1, z2) == loss(torch.stack([z1, z2])))
        True
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        learn_temperature: bool = False,
        num_views: int | None = None,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        self.num_views = num_views
        check_reduction(type(self).__name__, reduction)
        self.reduction: Literal["none", "mean", "sum"] = reduction
        self.normalize = normalize
        self.return_stats = return_stats
        self.group = group

    def forward(
        self, *views: Tensor, ids: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor | tuple[Tensor, NTXentStats]:
        """Loss of V tensors [B, D], or of one tensor [V, B, D] or [M, D].

        Under autocast the tensors may differ in dtype.

        `ids` and `weights` are those of `nt_xent`.
        """
        if not views:
            raise ValueError("NTXentLoss: needs at least one tensor, got none")
        for view in views:
            check_floating("NTXentLoss", "views", view)
        if len(views) > 1 and any(view.shape != views[0].shape for view in views):
            shapes = shown((tuple(view.shape) for view in views), ", ")
            raise ValueError(f"NTXentLoss: views must share their shape, got {shapes}")
        devices, dtypes = {view.device for view in views}, {view.dtype for view in views}
        if len(devices) > 1 or (len(dtypes) > 1 and not autocasts(views[0])):
            kinds = shown((f"{view.dtype} on {view.device}" for view in views), ", ")
            raise ValueError(f"NTXentLoss: views must share dtype and device, got {kinds}")
        z = views[0] if len(views) == 1 else stack(views)
        return nt_xent(
            z,
            num_views=self.num_views,
            temperature=self.temperature,
            ids=ids,
            weights=weights,
            reduction=self.reduction,
            normalize=self.normalize,
            return_stats=self.return_stats,
            group=self.group,
        )
