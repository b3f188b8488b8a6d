"""CPC's context of image patches: what the rows from the top down to each say together."""

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RowContext"]


class RowContext(nn.Module):
    """Contexts of a grid of latents; that of a row knows nothing of the rows below it.

    Args:
        dim: size of z and of the contexts.
        kind: "conv", residual blocks of masked convolutions over rows and columns (PixelCNN), or
            "gru", one GRU down each column.
        blocks: of "conv"; each lets a row see one more above and two more columns.

    Source:
        van den Oord et al. 2018, arXiv:1807.03748, section 3.2; masked convolutions after van den
        Oord et al. 2016, arXiv:1606.05328.
    """

    def __init__(self, dim: int, *, kind: Literal["conv", "gru"] = "conv", blocks: int = 4) -> None:
        super().__init__()
        self.kind = kind
        if kind == "gru":
            self.recurrent = nn.GRU(dim, dim, batch_first=True)
        else:
            self.blocks = nn.ModuleList(_Block(dim) for _ in range(blocks))

    def forward(self, z: Tensor) -> Tensor:
        """[B, rows, columns, dim] -> same shape."""
        if self.kind == "gru":
            columns = z.transpose(1, 2)  # [B, columns, rows, dim]
            c = self.recurrent(columns.flatten(0, 1))[0]
            return cast(Tensor, c.view(columns.shape).transpose(1, 2))
        c = z.permute(0, 3, 1, 2)
        for block in self.blocks:
            c = block(c)
        return F.relu(c).permute(0, 2, 3, 1)


class _Block(nn.Module):
    """1x1, three columns of this row, this row and the one above, 1x1; added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim // 2, 1)
        self.across = nn.Conv2d(dim // 2, dim // 2, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(dim // 2, dim // 2, (2, 1))
        self.expand = nn.Conv2d(dim // 2, dim, 1)

    def forward(self, c: Tensor) -> Tensor:
        """[B, dim, rows, columns] -> same shape."""
        x = self.across(F.relu(self.reduce(F.relu(c))))
        x = self.down(F.pad(x, (0, 0, 1, 0)))  # a row of zeros on top, none below: that is the mask
        return c + cast(Tensor, self.expand(F.relu(x)))
