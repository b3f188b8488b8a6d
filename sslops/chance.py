"""The loss of a model that knows nothing: what a curve must leave to show learning."""

import math
from numbers import Integral

__all__ = ["chance"]

LOSSES = ("nt_xent", "info_nce", "clip_loss", "sup_con", "cpc_loss")


def chance(
    loss: str,
    *,
    batch: int,
    num_views: int = 2,
    queue: int | None = None,
    length: int | None = None,
    negatives: str | int = "all",
) -> float:
    """Value of a loss when every similarity is equal, in nats: the log of the candidates' number.

    Args:
        loss: "nt_xent" or "sup_con" (either mean): log(V B - 1), as every row sees V B - 1 others;
            "info_nce": log(B), or log(queue + 1); "clip_loss": log(B); "cpc_loss": log of B T,
            T, (B - 1) T + 1 or n + 1. The sigmoid loss has no such value: it depends on its
            scale and bias.
        batch: B, the samples in one batch.
        num_views: V, views of each; for "sup_con" 1 is allowed.
        queue: length of the queue, for "info_nce".
        length: T, positions of a sequence, for "cpc_loss".
        negatives: as of `sslops.cpc_loss`. For n drawn ones a bound: a row whose positive was
            drawn has one less.

    Raises:
        ValueError: unknown loss, or a batch with nothing to tell apart.

    Example:
        >>> round(chance("nt_xent", batch=256), 2)
        6.24
        >>> round(chance("info_nce", batch=256, queue=65536), 2)
        11.09
    """
    if loss not in LOSSES:
        raise ValueError(f"chance: loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    given = {"batch": batch, "num_views": num_views, "queue": queue, "length": length}
    for name, value in given.items():
        if not isinstance(value, Integral) and (
            value is not None or name in ("batch", "num_views")
        ):
            raise TypeError(f"chance: {name} must be a whole number, got {value!r}")
    least = 1 if loss == "sup_con" else 2
    if batch < 1 or num_views < least:
        raise ValueError(
            f"chance: needs batch >= 1 and num_views >= {least}, got {batch} and {num_views}"
        )
    if loss in ("nt_xent", "sup_con"):
        candidates = batch * num_views - 1
    elif loss == "cpc_loss":
        candidates = _of_cpc(batch, length, negatives)
    else:
        candidates = batch if queue is None or loss == "clip_loss" else queue + 1
    if candidates < 1:
        raise ValueError(f"chance: {loss} needs something to choose from, got batch = {batch}")
    return math.log(candidates)


def _of_cpc(batch: int, length: int | None, negatives: str | int) -> int:
    if length is None or length < 2:
        raise ValueError(f"chance: cpc_loss needs length >= 2, got {length}")
    if isinstance(negatives, int):
        return negatives + 1
    counts = {"all": batch * length, "sequence": length, "other": (batch - 1) * length + 1}
    if negatives not in counts:
        raise ValueError(f"chance: negatives must be all, sequence, other or n, got {negatives!r}")
    return counts[negatives]
