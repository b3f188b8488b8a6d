"""Which images a step sees, and how they come to the device."""

import torch
from torch import Tensor

from sslops.training.data import Split
from sslops.training.distributed import World
from sslops.training.methods import Batch

__all__ = ["Feed", "Sampler"]


class Sampler:
    """A new permutation each epoch, the incomplete last batch left out.

    The step number is the whole position: nothing else has to be saved to go on exactly.

    Args:
        N: images.
        batch: images a step over all processes.
        seed: same seed, same order.
        world: this process takes its share of each batch.
    """

    def __init__(self, N: int, batch: int, seed: int, world: World) -> None:
        if batch > N or batch % world.size:
            raise ValueError(
                f"train: batch must be at most the {N} training images and a multiple of the"
                f" {world.size} processes, got {batch}"
            )
        self.N = N
        self.batch = batch
        self.seed = seed
        self.steps_per_epoch = N // batch
        self._share = slice(
            world.rank * batch // world.size, (world.rank + 1) * batch // world.size
        )
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Positions of the images of a step, [batch / processes]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # A large odd factor: the permutations of seed s + 1 are not those of s, one later.
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.N, generator=generator)
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch][self._share]


class Feed:
    """The images of a split, resident where they are used.

    On a GPU with room they are copied there once; else each batch is pinned and copied without
    waiting.

    Args:
        split: images and labels.
        device: of the training.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.device = device
        self.images, self.labels = split.images, split.labels
        self.staged = device.type == "cuda"
        if self.staged:
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes < free / 4:  # the rest is for activations
                self.images = self.images.to(device)
                self.labels = None if self.labels is None else self.labels.to(device)
                self.staged = False

    def __call__(self, indices: Tensor) -> Batch:
        """The batch at `indices` [B]."""
        if self.staged:
            images = self.images[indices].pin_memory().to(self.device, non_blocking=True)
        else:
            images = self.images[indices.to(self.images.device)]
        labels = self.labels
        if labels is not None:
            labels = labels[indices.to(labels.device)].to(self.device, non_blocking=True)
        return Batch(images, labels)
