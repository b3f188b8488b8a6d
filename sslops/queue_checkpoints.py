"""Queues of other projects' checkpoints, which this package's modules would not load."""

import os
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from sslops._names import shown
from sslops.queue import KeyQueue

__all__ = ["load_queue"]

# of facebookresearch/moco and solo-learn; of lightly's memory bank
NAMES = {"queue": "queue_ptr", "bank": "bank_ptr"}
UNIT = 0.02  # rows rounded to bfloat16 are longer or shorter by less


def load_queue(
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str | None = None,
    layout: Literal["auto", "KD", "DK"] = "auto",
    index: int | None = None,
    into: KeyQueue | None = None,
) -> KeyQueue:
    """Make a `KeyQueue` of the queue in a checkpoint of MoCo, solo-learn or lightly, or fill one.

    MoCo's code holds `queue` [D, K] and `queue_ptr`, solo-learn `queue` [2, D, K] (one for each
    view), lightly `bank` [K, D] ([D, K] in old releases) and `bank_ptr`. They store the next slot
    and not the number of keys, so all slots count as written, in the order of the ring.

    Args:
        state_dict: names to tensors, as `torch.load` gave it (often under `"state_dict"`).
        prefix: of the two names, such as "module."; default: the only place that has both.
        layout: "KD" rows are keys, "DK" columns are; "auto" takes the longer side as K.
        index: which queue of [2, D, K].
        into: is filled in its dtype, its ids become -1; default: a new one in the dtype found.

    Returns:
        `into`, or a new KeyQueue with normalize=True, without ids, on the device found.

    Raises:
        ValueError: no queue or several, a layout that "auto" cannot tell (a square, or unit vectors
            along the shorter side), a position outside the queue, an index that is missing or not
            asked for, or a size that `into` does not have. Nothing is written then.

    Example:
        >>> moco = {"module.queue": torch.eye(4, 16), "module.queue_ptr": torch.tensor([3])}
        >>> queue = load_queue(moco)
        >>> queue, int(queue.pointer)
        (KeyQueue(16, 4, dtype=torch.float32, init='random'), 19)
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"load_queue: state_dict must map names to tensors, got {_instead(state_dict)}"
        )
    if layout not in ("auto", "KD", "DK"):
        raise ValueError(f"load_queue: layout must be auto, KD or DK, got {layout!r}")
    name, stored, position = _find(state_dict, prefix)
    stored = _one_of(name, stored, index)
    keys = stored if _is_rows(name, stored, layout) else stored.T  # [K, D]
    K, D = keys.shape
    if position.numel() != 1 or not 0 <= int(position) < K:
        found = shown(position.flatten().tolist())
        raise ValueError(f"load_queue: the position must be one number in [0, {K}), got {found}")
    if into is None:
        into = KeyQueue(K, D, dtype=keys.dtype).to(keys.device)
    elif tuple(into.keys.shape) != (K, D):
        raise ValueError(
            f"load_queue: {name} must fit into [{len(into)}, {into.keys.shape[1]}], got K = {K},"
            f" D = {D} of shape {tuple(stored.shape)}"
        )
    state = {"keys": keys, "pointer": (position.to(torch.int64) + K).reshape(())}
    if into.ids is not None:
        state["ids"] = torch.full((K,), -1, dtype=torch.int64)
    into.load_state_dict(state)
    return into


def _instead(value: object) -> str:
    """The type of what is no mapping, and what to write in its place."""
    more = "; write module.state_dict()" if isinstance(value, nn.Module) else ""
    if isinstance(value, (str, os.PathLike)):
        more = "; write torch.load(path), or the part of it that has the queue"
    return type(value).__name__ + more


def _find(state_dict: Mapping[str, Tensor], prefix: str | None) -> tuple[str, Tensor, Tensor]:
    """Name of the queue, the queue, its position."""
    pairs = {
        key: key.removesuffix(queue) + pointer
        for key in state_dict
        for queue, pointer in NAMES.items()
        if key == queue or key.endswith("." + queue)
    }
    found = [
        key
        for key, pointer in pairs.items()
        if pointer in state_dict and (prefix is None or key in [prefix + n for n in NAMES])
    ]
    if len(found) != 1:
        where = "" if prefix is None else f" with prefix {prefix!r}"
        raise ValueError(
            f"load_queue: needs one queue and queue_ptr, or bank and bank_ptr{where}, got"
            f" {shown(found or sorted(state_dict))}"
        )
    return found[0], state_dict[found[0]], state_dict[pairs[found[0]]]


def _one_of(name: str, stored: Tensor, index: int | None) -> Tensor:
    shape = tuple(stored.shape)
    if stored.ndim == 2 and index is None:
        return stored
    if stored.ndim != 3 or index is None or not 0 <= index < shape[0]:
        raise ValueError(
            f"load_queue: {name} must be a matrix, or several with an index of one, got shape"
            f" {shape} and index {index}"
        )
    return stored[index]


def _is_rows(name: str, stored: Tensor, layout: str) -> bool:
    """Whether the rows of `stored` are keys."""
    if layout != "auto":
        return layout == "KD"
    rows, columns = stored.shape
    longer, shorter = (1, 0) if rows > columns else (0, 1)  # the axes that norms are taken over
    if rows == columns or (_are_units(stored, shorter) and not _are_units(stored, longer)):
        raise ValueError(
            f"load_queue: {name} of shape {(rows, columns)} may be [K, D] or [D, K], got"
            ' layout="auto"; give "KD" or "DK"'
        )
    return rows > columns


def _are_units(stored: Tensor, dim: int) -> bool:
    """Whether all vectors along `dim` have length one, or nought where never written."""
    norm = torch.linalg.vector_norm(stored.float(), dim=dim)
    return bool((((norm - 1).abs() < UNIT) | (norm == 0)).all())
