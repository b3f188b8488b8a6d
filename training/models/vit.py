"""Vision transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.models.layers import Standardise, run_stages

__all__ = ["ViT", "sincos_positions"]

EPS = 1e-6  # of the layer norms
PERIOD = 10_000.0  # longest period of the positions, over 2 pi


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: of the tokens.
        heads: must divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    @torch.no_grad()
    def init_qkv(self) -> None:
        """Xavier initialisation of queries, keys and values as the three layers that they are."""
        for weight in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, width] -> queries, keys and values, each [B, heads, N, width / heads]."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> same shape."""
        mixed = F.scaled_dot_product_attention(*self.split(x))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and a two-layer MLP, each after a LayerNorm and added to its input (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> same shape."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class ViT(nn.Module):
    """Pre-norm transformer over patches, with a class token and fixed 2-D sin-cos positions.

    Args:
        channels: of the images.
        image_size: side in pixels of the images that it is meant for.
        patch: side of a patch in pixels; divides the sides of every image.
        width: of the tokens, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: of the attention.
        pool: None for the class token as features; otherwise the patches' tokens averaged to
            pool x pool cells, 1 being their mean.

    Raises:
        ValueError: `image_size` or `width` cannot be divided so.

    Source:
        Dosovitskiy et al. 2021, arXiv:2010.11929; positions and initialisation as in MoCo v3,
        Chen et al. 2021, arXiv:2104.02057.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        image_size: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        pool: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(
                f"ViT: width must be a multiple of 4 and of the {heads} heads, got {width}"
            )
        self.patch, self.width, self.pool = patch, width, pool
        self.grid = _cells(image_size, image_size, patch)
        self.dim = width * (pool or 1) ** 2
        self.standardise = Standardise(channels)
        self.patch_projection = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(width))  # 1-d: no weight decay
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        # Not in the state_dict: the arguments tell all of it.
        self.register_buffer("positions", sincos_positions(self.grid, width), persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in self.modules():
            if isinstance(layer, Attention):
                layer.init_qkv()
        nn.init.xavier_uniform_(self.patch_projection.weight.detach().flatten(1))
        assert self.patch_projection.bias is not None
        nn.init.zeros_(self.patch_projection.bias)
        nn.init.normal_(self.class_token, std=1e-6)

    def patches(self, x: Tensor) -> Tensor:
        """Embedded patches with their positions: [B, C, H, W] in [0, 1] -> [B, N, width].

        Images of another size than the network's are laid over its own grid.
        """
        grid = _cells(x.shape[2], x.shape[3], self.patch)
        positions = self.positions
        if grid != self.grid:
            positions = sincos_positions(grid, self.width, over=self.grid, device=x.device)
        x = self.patch_projection(self.standardise(x)).flatten(2).transpose(1, 2)
        return x + positions

    def encode(self, patches: Tensor) -> Tensor:
        """Tokens of embedded patches, of an image's all or some of them, in any order.

        [B, n, width] -> [B, 1 + n, width]; the first is the class token's, whose position is zero.
        """
        token = self.class_token.to(patches.dtype).expand(len(patches), 1, -1)
        tokens: Tensor = self.norm(self.blocks(torch.cat([token, patches], 1)))
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, dim]."""
        tokens = self.encode(self.patches(x))
        if self.pool is None:
            return tokens[:, 0]
        rows, columns = _cells(x.shape[2], x.shape[3], self.patch)
        cells = tokens[:, 1:].transpose(1, 2).reshape(len(x), self.width, rows, columns)
        return F.adaptive_avg_pool2d(cells, self.pool).flatten(1)

    def stage_modules(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] in [0, 1] -> the patch tokens after every block, [B, width, rows, columns].

        Those of the last are normalised, as features are.
        """
        patches = self.patches(x)
        token = self.class_token.to(patches.dtype).expand(len(patches), 1, -1)
        *early, last = run_stages(torch.cat([token, patches], 1), self.stage_modules())
        cells = _cells(x.shape[2], x.shape[3], self.patch)
        return [
            tokens[:, 1:].transpose(1, 2).unflatten(2, cells)
            for tokens in (*early, self.norm(last))
        ]

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """How the last block's class token attends to the patches: [B, heads, rows, columns]."""
        patches = self.patches(x)
        token = self.class_token.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = self.blocks[:-1](torch.cat([token, patches], 1))
        last = self.blocks[-1]
        assert isinstance(last, Block)
        q, k, _ = last.attention.split(last.attention_norm(tokens))
        logits = q[:, :, :1] @ k.transpose(2, 3) * q.shape[3] ** -0.5  # [B, heads, 1, 1 + N]
        weights: Tensor = logits.float().softmax(3)[:, :, 0, 1:]
        return weights.reshape(*weights.shape[:2], *_cells(x.shape[2], x.shape[3], self.patch))


def _cells(height: int, width: int, patch: int) -> tuple[int, int]:
    if height % patch or width % patch:
        raise ValueError(
            f"ViT: image sides must be multiples of the patch, {patch} pixels, got {height} x"
            f" {width}"
        )
    return height // patch, width // patch


def sincos_positions(
    grid: tuple[int, int],
    width: int,
    *,
    over: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Fixed positions of the patches of a grid, row by row: [rows * columns, width].

    Sine and cosine of the column at width / 4 frequencies, then those of the row.

    Args:
        grid: rows and columns.
        width: a multiple of 4.
        over: rows and columns of the grid whose coordinates are used; `grid` is stretched over it.
        device: of the result.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5, for each of the two coordinates.
    """
    frequencies = PERIOD ** -(torch.arange(width // 4, device=device) / (width // 4))
    angles = []
    for cells, span in zip(grid, over or grid, strict=True):
        # patches' middles; whole numbers where the grid is its own
        coordinates = (torch.arange(cells, device=device) + 0.5) * (span / cells) - 0.5
        angles.append(coordinates[:, None] * frequencies)  # [cells, width / 4]
    row, column = angles[0][:, None].expand(*grid, -1), angles[1][None].expand(*grid, -1)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], 2).flatten(0, 1)
