"""What MoCo says and draws of its queue: hints, notes, charts."""

from torch import Tensor

from sslops import KeyQueue
from sslops.training.methods.figures import Chart, histogram

__all__ = ["HINTS", "RISE", "WHOLE_BATCH", "queue_charts"]

HINTS = {
    "chance": "that positive_similarity rises above negative_similarity, that the keys change"
    " (queue_fill at 1, --key-momentum below 1), that the queue is no larger than an epoch of"
    " images (--queue) and the learning rate (--lr)",
    "shortcut": "batch norm, which tells the keys of a batch from the queue's if it sees q and k of"
    " the same images together (--bn-splits), and that the views differ enough (--views)",
}
RISE = (
    "the loss rises while the queue fills: it began with {:,} random directions, which are easy to"
    " tell from a key, and real keys replace them. It falls again when they have"
)
WHOLE_BATCH = (
    "batch norm sees the whole batch at once (--bn-splits 1) on one device: it tells the keys of a"
    " batch from those of the queue, a shortcut. --bn-splits 8 closes it"
)


def queue_charts(q: Tensor, k: Tensor, queue: KeyQueue, enqueued: int) -> dict[str, Chart | Tensor]:
    """Similarities of queries to their keys and to the queue's, and the ages of the queue's keys.

    Args:
        q: [B, D] unit rows.
        k: [B, D] unit rows, the positive of each.
        queue: the negatives.
        enqueued: keys a step.
    """
    keys = queue.keys.to(q.dtype)
    positive, negative = (q * k).sum(1), q @ keys.T
    beaten = (positive[:, None] > negative).all(1).float().mean()
    ages = queue.ages()
    ages = ages[ages >= 0] / enqueued
    steps = max(1.0, float(ages.max()) if len(ages) else 1.0)
    return {
        "similarity-to-the-queries": Chart(
            "bars",
            {
                "positive: the other view": histogram(positive, -1.0, 1.0),
                "negatives: the queue": histogram(negative, -1.0, 1.0),
            },
            x_label="cosine",
            y_label="share",
            caption=f"Means {float(positive.mean()):.2f} and {float(negative.mean()):.2f}. The"
            f" positive is above all {len(queue):,} keys of the queue for"
            f" {100 * float(beaten):.0f} % of {len(q):,} images (batch norm with its running"
            " statistics).",
        ),
        "age-of-the-queue": Chart(
            "bars",
            {"keys": histogram(ages, 0.0, steps, bins=20) if len(ages) else [(0.0, 0.0)]},
            x_label="steps since the key was made",
            y_label="share",
            caption=f"The key encoder has moved on since: the oldest of {len(ages):,} keys is"
            f" {steps:,.0f} steps old.",
        ),
    }
