"""Random numbers for a batch of images, all from one generator."""

import torch
from torch import Tensor

__all__ = ["Draw", "SharedGenerator"]


class SharedGenerator(torch.Generator):
    """A generator that all processes seed alike, each taking its own share of what is drawn.

    So a batch gets the same draws in one process as in several, and a run may be resumed in
    another number of them.

    Attributes:
        rank: this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1


class Draw:
    """Draws for V views of B images on the host, where the order of colour changes is decided.

    Args:
        N: V * B, of this process; the first dimension of everything drawn.
        generator: its device does the drawing; a CPU generator never waits for a GPU. Of a
            `SharedGenerator` the draws of the images of all processes are taken, and those of
            this process's images returned.
        num_views: V; the rows are views of B images, then the next views of the same.
    """

    def __init__(self, N: int, generator: torch.Generator, num_views: int = 1) -> None:
        self.N = N
        self.generator = generator
        self.num_views = num_views
        self.rank = getattr(generator, "rank", 0)
        self.size = getattr(generator, "size", 1)

    @property
    def _all(self) -> int:
        return self.N * self.size

    def _own(self, x: Tensor) -> Tensor:
        """The rows of this process, of those of all."""
        shares = x.view(self.num_views, self.size, -1, *x.shape[1:])
        return shares[:, self.rank].reshape(self.N, *x.shape[1:]).cpu()

    def uniform(
        self, low: float, high: float, *shape: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """[N, *shape] in [low, high)."""
        size, device = (self._all, *shape), self.generator.device
        x = torch.rand(size, generator=self.generator, device=device, dtype=dtype)
        return self._own(x.mul_(high - low).add_(low))

    def normal(self, *shape: int) -> Tensor:
        """[N, *shape], mean 0, sd 1."""
        device = self.generator.device
        return self._own(torch.randn(self._all, *shape, generator=self.generator, device=device))

    def coin(self, p: float) -> Tensor:
        """[N] bool, True with probability `p`, exactly so at 0 and 1."""
        return self.uniform(0, 1) < p

    def integer(self, n: int) -> Tensor:
        """[N] int64 in 0..n-1."""
        device = self.generator.device
        return self._own(torch.randint(n, (self._all,), generator=self.generator, device=device))
