"""What video colorization copies and how: clusters of colours, by attention to other frames."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sslops.training.augment.lab import rgb_to_lab
from sslops.training.data import Clips

__all__ = ["cluster_colours", "constant_copies", "copy_values", "fit_colours", "one_hot"]

PIXELS = 20_000  # that the clusters are fitted to
ITERATIONS = 30  # of k-means
ROWS = 8  # rows of queries at a time where a radius masks the keys


def fit_colours(clips: Clips, clusters: int, seed: int) -> Tensor:
    """Centres of k-means on the colours (a, b) of random pixels of the clips: [clusters, 2]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        return torch.randint(n, (PIXELS,), generator=generator)

    video = draw(len(clips))
    frame = clips.starts[video] + draw(1 << 40) % clips.lengths[video]
    frames = clips.content.frames
    height, width = frames.shape[2:]
    pixels = frames[frame, :, draw(height), draw(width)].float().div(255)  # [PIXELS, 3]
    ab = rgb_to_lab(pixels[..., None, None])[:, 1:, 0, 0]
    return _k_means(ab, clusters, generator)


def _k_means(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centres of the rows of `x` [N, D]: starts far apart (k-means++), then Lloyd's iterations."""
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(clusters - 1):
        distance = torch.cdist(x, centres).square().amin(1) + 1e-12
        chosen = torch.multinomial(distance, 1, generator=generator)
        centres = torch.cat([centres, x[chosen]])
    for _ in range(ITERATIONS):
        nearest = torch.cdist(x, centres).argmin(1)
        counts = nearest.bincount(minlength=clusters)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _nearest(x: Tensor, rows: Tensor) -> Tensor:
    """Which of `rows` [n, C] is nearest to each pixel of `x` [B, C, H, W]: [B, H, W] int64."""
    scores = torch.einsum("bchw,nc->bnhw", x, rows) - 0.5 * rows.square().sum(1)[:, None, None]
    return scores.argmax(1)


def one_hot(index: Tensor, clusters: int) -> Tensor:
    """[B, H, W] int64 -> [B, clusters, H, W] float32."""
    return F.one_hot(index, clusters).movedim(-1, 1).float()


def cluster_colours(images: Tensor, centres: Tensor, height: int, width: int) -> Tensor:
    """The commonest colour cluster of each cell: [B, 3, H, W] in [0, 1] -> [B, height, width].

    Pixels are named first and counted then: an average of colours would be one that no pixel has.
    """
    index = _nearest(rgb_to_lab(images.float())[:, 1:], centres)
    return F.adaptive_avg_pool2d(one_hot(index, len(centres)), (height, width)).argmax(1)


def copy_values(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    temperature: float,
    radius: int | None = None,
) -> Tensor:
    r"""A mean of values, weighted by how much each place of a frame resembles those of others.

    $$ y_i = \sum_j A_{ij} c_j, \quad A_{ij} = \exp(f_i^T f_j / \tau) / Z_i $$

    over all places j of all reference frames; Z_i makes the weights sum to 1. The matrix A is not
    kept: memory grows with the number of places, not with its square, in the backward pass too.

    Args:
        queries: [B, D, h, w], features of the target frame.
        keys: [B, R, D, h, w], features of the references.
        values: [B, R, C, h, w], what is copied; C at most D.
        temperature: divisor of the similarities.
        radius: a query sees the keys at most so many rows and columns away; all if None.

    Returns:
        [B, C, h, w] float32. Of one-hot values a probability for each.

    Raises:
        ValueError: C is above D, or a temperature that is not positive.
    """
    B, D, h, w = queries.shape
    R, C = values.shape[1:3]
    if C > D:
        raise ValueError(f"copy_values: needs values no wider than features, got {C} and {D}")
    if not temperature > 0:
        raise ValueError(f"copy_values: temperature must be positive, got {temperature}")
    q = queries.float().flatten(2).transpose(1, 2).contiguous()  # [B, h w, D]
    k, v = (x.float().permute(0, 1, 3, 4, 2).reshape(B, R * h * w, -1) for x in (keys, values))
    v = F.pad(v, (0, D - C))  # the fused kernels want one width

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # Without autocast: a probability near 1 keeps 8 bits in bfloat16, and its logarithm none.
        with torch.autocast(q.device.type, enabled=False):
            return F.scaled_dot_product_attention(
                q[:, None], k[:, None], v[:, None], attn_mask=mask, scale=1 / temperature
            )[:, 0]

    if radius is None:
        y = attend(q, k, v, None)
    else:
        parts = []
        for top in range(0, h, ROWS):
            rows = torch.arange(top, min(h, top + ROWS), device=q.device)
            near = _near(rows, h, w, radius).repeat(1, R)  # [rows w, R h w]
            block = q[:, top * w : top * w + len(near)]
            parts.append(checkpoint(attend, block, k, v, near, use_reentrant=False))
        y = torch.cat(parts, 1)
    return y[..., :C].transpose(1, 2).reshape(B, C, h, w)


def _near(rows: Tensor, h: int, w: int, radius: int) -> Tensor:
    """Which places of a frame are near those of some rows: [len(rows) w, h w] bool."""
    columns, all_rows = torch.arange(w, device=rows.device), torch.arange(h, device=rows.device)
    vertical = (rows[:, None] - all_rows).abs() <= radius  # [rows, h]
    horizontal = (columns[:, None] - columns).abs() <= radius  # [w, w]
    both = vertical[:, None, :, None] & horizontal[None, :, None, :]
    return both.reshape(len(rows) * w, h * w)


def constant_copies(labels: Tensor, clusters: int, least: float) -> dict[str, Tensor]:
    """Cross-entropies of copying that looks at no picture, each at its best in hindsight.

    Args:
        labels: [R + 1, B, h, w] int64, of the references and, last, the target.
        clusters: of colours.
        least: probability that a colour gets at least.
    """
    target, references = labels[-1], labels[:-1]
    R, B = references.shape[:2]
    share = torch.bincount(target.flatten(), minlength=clusters) / target.numel()
    copies = one_hot(references.flatten(0, 1), clusters)  # [R B, clusters, h, w]
    there = copies.view(R, B, *copies.shape[1:]).mean(0)
    everywhere = there.mean((2, 3), keepdim=True).expand_as(there)

    def cross_entropy(probability: Tensor) -> Tensor:
        return -probability.gather(1, target[:, None]).clamp(min=least).log().mean()

    mixtures = [w * there + (1 - w) * everywhere for w in torch.linspace(0, 1, 21)[1:]]
    return {
        "constant_colour": torch.special.entr(share).sum(),
        "copy_everywhere": cross_entropy(everywhere),
        "copy_same_place": torch.stack([cross_entropy(each) for each in mixtures]).min(),
    }
