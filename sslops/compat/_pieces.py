"""Features of many texts, cut into pieces of few."""

from typing import Any

import torch
from torch import Tensor

from sslops._names import shown

Features = dict[str, Any]

# flattened images and videos: their grids [items, 3], their patches, and the items of each text
_GRIDS = (
    ("image_grid_thw", "pixel_values", "num_images_per_sample"),
    ("video_grid_thw", "pixel_values_videos", "num_videos_per_sample"),
)
_OF_IMAGES = ("pixel_values", "image_position_ids", "image_sizes")  # one row an image, no grid
_NAME = "CachedMultipleNegativesRankingLoss"


def pieces(features: Features, size: int, num_tokens: int | None = None) -> list[Features]:
    """`features` cut into dicts of `size` texts, or of texts of `num_tokens` tokens together.

    Flattened sequences are cut between two of them; images go with their text.

    Raises:
        ValueError: a tensor has rows that belong to no text, or tokens cannot be counted.
    """
    flat = features.get("cu_seq_lens_q")
    if flat is not None:
        lengths = flat.diff()
        bounds = _bounds(lengths.tolist(), size, num_tokens)
        return [_of_flattened(features, begin, end) for begin, end in bounds]
    tensors = {k: v for k, v in features.items() if isinstance(v, Tensor) and v.ndim}
    most = max((len(each) for each in tensors.values()), default=0)
    count = len(tensors.get("input_ids", tensors.get("attention_mask", range(most))))
    if num_tokens is None:
        lengths = torch.ones(count)
    elif "attention_mask" in features:
        lengths = features["attention_mask"].sum(dim=1)
    else:
        raise ValueError(f"{_NAME}: mini_batch_num_tokens needs an attention_mask, got none")
    owned = _rows_of_texts(tensors, count)
    odd = {k: len(v) for k, v in tensors.items() if k not in owned and len(v) not in (1, count)}
    if odd:
        each = shown(f"{key} {n}" for key, n in odd.items())
        raise ValueError(
            f"{_NAME}: every tensor must have one row for each text, got {each} for {count} texts"
        )
    return [
        _cut(features, tensors, owned, count, *bound)
        for bound in _bounds(lengths.tolist(), size, num_tokens)
    ]


def _bounds(lengths: list[float], size: int, num_tokens: int | None) -> list[tuple[int, int]]:
    count = len(lengths)
    if num_tokens is None:
        return [(begin, min(begin + size, count)) for begin in range(0, count, size)]
    bounds, begin, total = [], 0, 0.0
    for n, length in enumerate(lengths):
        if n > begin and total + length > num_tokens:
            bounds.append((begin, n))
            begin, total = n, 0.0
        total += length
    return [*bounds, (begin, count)] if count else []


def _rows_of_texts(tensors: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    """Where the rows of each text end, of tensors with as many as its images need."""
    ends: dict[str, list[int]] = {}
    for grid_key, patches_key, items_key in _GRIDS:
        grid, patches, items = (tensors.get(k) for k in (grid_key, patches_key, items_key))
        if grid is None or patches is None or (items is None and len(grid) != count):
            continue
        of_text = torch.arange(1, count + 1) if items is None else items.cumsum(0).cpu()
        of_item = torch.cat([torch.zeros(1, dtype=torch.int64), grid.prod(dim=1).cumsum(0).cpu()])
        ends |= {grid_key: of_text.tolist(), patches_key: of_item[of_text].tolist()}
    items, patches = tensors.get("num_images_per_sample"), tensors.get("pixel_values")
    if items is not None and patches is not None and "pixel_values" not in ends:
        if len(patches) == int(items.sum()) != count:
            keys = [key for key in _OF_IMAGES if key in tensors]
            ends |= dict.fromkeys(keys, items.cumsum(0).tolist())
    return ends


def _cut(
    features: Features,
    tensors: dict[str, Tensor],
    owned: dict[str, list[int]],
    count: int,
    begin: int,
    end: int,
) -> Features:
    piece = {}
    for key, value in features.items():
        if key in owned:
            first, last = (0, *owned[key])[begin], owned[key][end - 1]
            if first < last:  # texts without an image have no tensor of images
                piece[key] = value[first:last]
        elif key in tensors and len(value) == count:
            piece[key] = value[begin:end]
        else:
            piece[key] = value
    return piece


def _of_flattened(features: Features, begin: int, end: int) -> Features:
    """The texts begin to end of sequences that lie one after the other."""
    offsets = features["cu_seq_lens_q"]
    first, last, total = (int(offsets[n]) for n in (begin, end, -1))
    starts = offsets[begin : end + 1] - offsets[begin]
    piece = {}
    for key, value in features.items():
        if key in ("cu_seq_lens_q", "cu_seq_lens_k"):
            piece[key] = starts
        elif key in ("max_length_q", "max_length_k"):
            piece[key] = int(starts.diff().max())
        elif key == "seq_idx":
            piece[key] = value[..., first:last] - begin
        elif isinstance(value, Tensor) and value.ndim and value.shape[-1] == total:
            piece[key] = value[..., first:last]
        else:
            piece[key] = value
    return piece
