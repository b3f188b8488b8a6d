"""Random numbers for a batch of N images, all from one generator."""

import torch
from torch import Tensor

__all__ = ["Draw"]


class Draw:
    """Draws for `N` images on the host, where the order of colour changes is decided.

    Args:
        N: number of images; the first dimension of everything drawn.
        generator: its device does the drawing; a CPU generator never waits for a GPU.
    """

    def __init__(self, N: int, generator: torch.Generator) -> None:
        self.N = N
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[N, *shape] in [low, high)."""
        x = torch.rand(self.N, *shape, generator=self.generator, device=self.generator.device)
        return x.mul_(high - low).add_(low).cpu()

    def normal(self, *shape: int) -> Tensor:
        """[N, *shape], mean 0, sd 1."""
        return torch.randn(
            self.N, *shape, generator=self.generator, device=self.generator.device
        ).cpu()

    def coin(self, p: float) -> Tensor:
        """[N] bool, True with probability `p`, exactly so at 0 and 1."""
        return self.uniform(0, 1) < p

    def integer(self, n: int) -> Tensor:
        """[N] int64 in 0..n-1."""
        return torch.randint(
            n, (self.N,), generator=self.generator, device=self.generator.device
        ).cpu()
