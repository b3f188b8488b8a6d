"""The loss of a model that knows nothing: what a curve must leave to show learning."""

import math

__all__ = ["chance"]


def chance(loss: str, *, batch: int, num_views: int = 2) -> float:
    """Value of a loss when every similarity is equal, in nats.

    Args:
        loss: "nt_xent": log(V B - 1), as every row sees V B - 1 others.
        batch: B, the samples in one batch.
        num_views: V, views of each.

    Raises:
        ValueError: unknown loss, or a batch with nothing to tell apart.

    Example:
        >>> round(chance("nt_xent", batch=256), 2)
        6.24
    """
    if loss != "nt_xent":
        raise ValueError(f"chance: loss must be nt_xent, got {loss!r}")
    if batch < 1 or num_views < 2:
        raise ValueError(
            f"chance: needs batch >= 1 and num_views >= 2, got {batch} and {num_views}"
        )
    return math.log(batch * num_views - 1)
