"""Bytes, FLOP and memory of a rank, by formula; `python -m bench.scale` prints the table.

The table is that of docs/scale.md; tests/distributed/test_group_ranks.py and
bench/bench_distributed.py hold the formulae against what 1, 2 and 4 processes send and need.
"""

from dataclasses import dataclass

# what the times assume of one GPU, chosen and not measured
FLOPS = 300e12  # bfloat16 products of these shapes, a second
LINK = 50e9  # bytes a second out of one GPU, between machines
GIB, GB = 2**30, 1e9


@dataclass(frozen=True)
class Job:
    """One forward and backward pass of a loss whose rows and travelling rows are as many.

    Attributes:
        ranks: W.
        rows: n, of each rank: V views of its samples, or its pairs.
        features: D.
        item: bytes of an element of the embeddings.
        forward_extra: bytes of a row that go with it forwards: 4 in `clip_loss`, 8 for ids.
        backward_extra: the same backwards: 8 in `clip_loss`, 8 for ids.
    """

    ranks: int
    rows: int
    features: int
    item: int = 2
    forward_extra: int = 0
    backward_extra: int = 0

    @property
    def sent(self) -> int:
        """Bytes out of a rank: rows twice, gradients in float32 once; the same for both ways."""
        row = self.features * self.item
        forward, backward = row + self.forward_extra, row + self.backward_extra
        return (self.ranks - 1) * self.rows * (forward + backward + 4 * self.features)

    @property
    def flop(self) -> int:
        """Products of the rows with those of others, forwards 2 and backwards 6, and its own 4."""
        own = 4 * self.rows**2 * self.features
        return own + 8 * self.rows * (self.ranks - 1) * self.rows * self.features

    @property
    def ring_bytes(self) -> int:
        """Blocks on a rank, one compared and one arriving, and the gradients of three."""
        if self.ranks == 1:
            return 0
        return self.rows * self.features * (2 * self.item + 3 * 4)

    @property
    def gather_bytes(self) -> int:
        """All blocks on a rank and their gradients; then the gradients as sent and as received."""
        if self.ranks == 1:
            return 0
        comparing = self.ranks * self.item + (self.ranks - 1) * 4
        return self.rows * self.features * max(comparing, 2 * (self.ranks - 1) * 4)

    @property
    def compute_ms(self) -> float:
        """At FLOPS."""
        return 1e3 * self.flop / FLOPS

    @property
    def send_ms(self) -> float:
        """At LINK."""
        return 1e3 * self.sent / LINK


def table(features: int = 256) -> list[str]:
    """Markdown rows for batches of samples with two views each."""
    lines = [
        "| GPUs | batch | rows a GPU | TFLOP a GPU | compute | sent a GPU | send |"
        " blocks, ring | blocks, gather |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ranks in (1, 8, 64, 256, 1024):
        for batch in (4096, 32768, 262144, 1048576):
            if batch < ranks:
                continue
            job = Job(ranks, 2 * batch // ranks, features)
            lines.append(
                f"| {ranks:,} | {batch:,} | {job.rows:,} | {job.flop / 1e12:,.3g} |"
                f" {job.compute_ms:,.3g} ms | {job.sent / GB:,.3g} GB | {job.send_ms:,.3g} ms |"
                f" {job.ring_bytes / GIB:,.3g} GiB | {job.gather_bytes / GIB:,.3g} GiB |"
            )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
