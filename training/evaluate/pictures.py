"""PNG files for the report: augmented views, nearest neighbours; and t-SNE coordinates."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from sslops.training.data import Dataset, Split, subset
from sslops.training.evaluate.features import extract
from sslops.training.evaluate.knn import neighbours
from sslops.training.evaluate.tsne import MAX_POINTS, tsne

__all__ = ["neighbours_png", "pairs_png", "write_pictures"]

LARGEST = 64  # pixels that an image is high in a sheet: larger ones are reduced
SMALLEST = 32  # smaller ones are enlarged, by whole factors; the page enlarges the sheet
SAME, OTHER, NEUTRAL = (47, 158, 68, 255), (224, 49, 49, 255), (139, 146, 157, 255)
QUERIES = 8
NEIGHBOURS = 5
GALLERY = 10_000  # training images among which neighbours are looked for


def write_pictures(
    run_dir: Path,
    data: Dataset,
    encoders: dict[str, nn.Module | None],
    views: Tensor | None,
    seed: int,
    *,
    points: int = 1000,
) -> None:
    """Write pictures/*.png and features.npz of a run.

    Args:
        run_dir: the run folder.
        data: queries are test images, their neighbours training images.
        encoders: the method first; "random-init" is shown as the state before training.
        views: [rows, B, C, H, W] in [0, 1], a column an image; None if they are drawn already.
        seed: of queries, subsets and t-SNE.
        points: test images in the t-SNE picture, at most 2,000.
    """
    folder = Path(run_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    if views is not None:
        (folder / "views.png").write_bytes(pairs_png(views))
    trained = [name for name, encoder in encoders.items() if encoder is not None]
    plain = ("random-init", "log-mel")
    after = next((name for name in trained if name not in plain), None)
    stages = {"neighbours-before": "random-init", "neighbours": after or ""}
    networks = {file: encoders[name] for file, name in stages.items() if name in trained}
    gallery = data.train if len(data.train) <= GALLERY else subset(data.train, GALLERY, seed)
    queries = pick_queries(data.test, QUERIES, seed)
    shown = data.test
    points = min(points, MAX_POINTS)
    if points < len(shown):
        shown = subset(shown, points, seed)
    arrays: dict[str, NDArray[np.generic]] = {}
    for file, encoder in networks.items():
        assert encoder is not None
        if not data.rate:
            png = neighbours_png(encoder, data.test, queries, gallery)
            (folder / f"{file}.png").write_bytes(png)
        if len(shown) >= 4:
            arm = "after" if file == "neighbours" else "before"
            arrays[arm] = tsne(extract(encoder, shown.images), seed)
    if shown.labels is not None:
        arrays["labels"] = shown.labels.numpy()
    arrays["classes"] = np.array(data.classes, dtype=np.str_)
    for name, values in data.factors.items():
        arrays[f"labels_{name}"] = shown.factors[name].numpy()
        arrays[f"classes_{name}"] = np.array(values, dtype=np.str_)
    np.savez_compressed(Path(run_dir) / "features.npz", **arrays)  # type: ignore[arg-type]


def pairs_png(views: Tensor, columns: int = 12, largest: int = LARGEST) -> bytes:
    """A grid of images [rows, B, C, H, W] in [0, 1], the first `columns` of B.

    A single tensor of two views [2, B, C, H, W] is such a grid. Images higher than `largest`
    pixels are reduced to it, images of less than 32 enlarged by a whole factor.
    """
    if views.ndim != 5:
        raise ValueError(f"pairs_png: views must be [rows, B, C, H, W], got {tuple(views.shape)}")
    grid = views[:, :columns].detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    rows, width = len(grid), grid.shape[1]
    box = _size(grid, largest)
    gap = _border(box)
    x, y = box[0] + gap, box[1] + gap
    sheet = Image.new("RGBA", (width * x - gap, rows * y - gap), (0, 0, 0, 0))
    for row in range(rows):
        for column in range(width):
            sheet.paste(_cell(grid[row, column], box), (column * x, row * y))
    return _png(sheet)


def neighbours_png(
    encoder: nn.Module, test: Split, queries: Tensor, gallery: Split, k: int = NEIGHBOURS
) -> bytes:
    """Each query at the left, then its `k` nearest images of the gallery in frames.

    A green frame says same class, a red one with a corner says another class, grey that the
    labels are not known.

    Args:
        encoder: whose features are compared by cosine.
        test: where the queries come from.
        queries: [Q] int64.
        gallery: where the neighbours come from.
        k: neighbours a query.
    """
    asked = extract(encoder, test.images[queries])
    keys = extract(encoder, gallery.images)
    k = min(k, len(keys))
    index = torch.cat([found for _, found in neighbours(asked, keys, k)])  # [Q, k]
    box = _size(gallery.images)
    edge = _border(box)  # frames and gaps are as wide
    x, y = box[0] + 3 * edge, box[1] + 3 * edge
    first = x + edge
    size = (first + k * x - edge, len(queries) * y - edge)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    for row, query in enumerate(queries.tolist()):
        sheet.paste(_cell(test.images[query], box), (edge, row * y + edge))
        for column, key in enumerate(index[row].tolist()):
            same = None
            if test.labels is not None and gallery.labels is not None:
                same = bool(test.labels[query] == gallery.labels[key])
            framed = _framed(_cell(gallery.images[key], box), edge, same)
            sheet.paste(framed, (first + column * x, row * y))
    return _png(sheet)


def pick_queries(test: Split, n: int, seed: int) -> Tensor:
    """`n` test images drawn at random, of different classes as far as there are; [n] int64."""
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    if test.labels is None:
        return order[:n]
    seen: dict[int, int] = {}
    rank = []  # how many of its class came before
    for i in order.tolist():
        label = int(test.labels[i])
        rank.append(seen.get(label, 0))
        seen[label] = rank[-1] + 1
    chosen = order[torch.tensor(rank).argsort(stable=True)[:n]]
    return chosen[test.labels[chosen].argsort(stable=True)]


def _framed(cell: Image.Image, edge: int, same: bool | None) -> Image.Image:
    width, height = cell.width + 2 * edge, cell.height + 2 * edge
    colour = NEUTRAL if same is None else SAME if same else OTHER
    framed = Image.new("RGBA", (width, height), colour)
    framed.paste(cell, (edge, edge))
    if same is False:
        legs = height // 3
        corner: Sequence[tuple[int, int]] = ((width - legs, 0), (width, 0), (width, legs))
        ImageDraw.Draw(framed).polygon(corner, fill=OTHER)
    return framed


def _size(images: Tensor, largest: int = LARGEST) -> tuple[int, int]:
    """Width and height in a sheet of images [..., H, W]."""
    height, width = images.shape[-2:]
    if height > largest:
        return max(1, round(width * largest / height)), largest
    zoom = max(1, SMALLEST // height)
    return width * zoom, height * zoom


def _border(box: tuple[int, int]) -> int:
    """Width of frames and gaps: even, so that WebP, whose colours are by 2 x 2, keeps edges."""
    return 2 * max(1, round(box[1] / 32))


def _cell(image: Tensor, box: tuple[int, int]) -> Image.Image:
    """[C, H, W] uint8, so large."""
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    resample = Image.Resampling.NEAREST if image.shape[1] <= box[1] else Image.Resampling.BOX
    return Image.fromarray(pixels).resize(box, resample).convert("RGBA")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
