"""The projection and prediction heads of contrastive methods."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

__all__ = ["Projector", "plain_head"]


class Projector(nn.Module):
    """Linear-BN-ReLU ... linear-BN: BN follows every layer, the last included unless told not to.

    Args:
        dim_in: width of the features.
        hidden: width of all layers but the last.
        dim_out: width of the projection.
        layers: number of linear layers, at least 1.
        last_bn: of the last layer: "affine", "plain" (no scale and shift) or "none".

    Source:
        Chen et al. 2020, arXiv:2002.05709, section 4.2; BN in the last layer as in the
        authors' code. The other two kinds: Chen et al. 2021, arXiv:2104.02057.
    """

    def __init__(
        self,
        dim_in: int,
        hidden: int,
        dim_out: int,
        layers: int = 2,
        *,
        last_bn: Literal["affine", "plain", "none"] = "affine",
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"Projector: layers must be at least 1, got {layers}")
        widths = [dim_in, *[hidden] * (layers - 1), dim_out]
        self.layers = nn.Sequential()
        for a, b in pairwise(widths):
            linear = nn.Linear(a, b, bias=False)  # BN would take any bias away again
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            self.layers.extend([linear, nn.BatchNorm1d(b), nn.ReLU(inplace=True)])
        del self.layers[-1]
        if last_bn == "none":
            del self.layers[-1]
        elif last_bn == "plain":
            self.layers[-1] = nn.BatchNorm1d(dim_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim_in] -> [B, dim_out]."""
        projection: Tensor = self.layers(x)
        return projection


def plain_head(dim_in: int, hidden: int | None, dim_out: int) -> nn.Module:
    """MoCo's heads, without any batch norm: linear, or linear-ReLU-linear where `hidden` is given.

    Source:
        He et al. 2020, arXiv:1911.05722, section 3.3; Chen et al. 2020, arXiv:2003.04297.
    """
    if hidden is None:
        return nn.Linear(dim_in, dim_out)
    first, last = nn.Linear(dim_in, hidden), nn.Linear(hidden, dim_out)
    return nn.Sequential(first, nn.ReLU(inplace=True), last)
