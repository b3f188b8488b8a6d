"""Which images a step sees, and how they come to the device."""

import torch
from torch import Tensor

from sslops._names import shown
from sslops.training.data.dataset import Batch, Split
from sslops.training.distributed.process import World

__all__ = ["Feed", "Sampler", "groups_of"]


class Sampler:
    """A new permutation each epoch, the incomplete last batch left out.

    The step number is the whole position: nothing else has to be saved to go on exactly.

    Args:
        N: images.
        batch: images a step over all processes.
        seed: same seed, same order.
        world: this process takes its share of each batch.
        groups: [N] int64; a batch then holds images of one group, drawn anew each epoch, and the
            incomplete last batch of each group is left out.
    """

    def __init__(
        self, N: int, batch: int, seed: int, world: World, groups: Tensor | None = None
    ) -> None:
        if batch > N or batch % world.size:
            raise ValueError(
                f"train: batch must be at most the {N} training images and a multiple of the"
                f" {world.size} processes, got {batch}"
            )
        self.N = N
        self.batch = batch
        self.seed = seed
        self.groups = torch.zeros(N, dtype=torch.int64) if groups is None else groups
        self.steps_per_epoch = int((self.groups.bincount() // batch).sum())
        if not self.steps_per_epoch:
            raise ValueError(
                f"train: batch must be at most the {int(self.groups.bincount().max())} recordings"
                f" of the largest group, got {batch}"
            )
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
            self._order = self._draw(generator)
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch][self._share]

    def _draw(self, generator: torch.Generator) -> Tensor:
        """The batches of an epoch, one after another."""
        order = torch.randperm(self.N, generator=generator)
        sizes = self.groups.bincount()
        if len(sizes) == 1:
            return order
        batches = [
            order[self.groups[order] == group][: int(size) // self.batch * self.batch]
            for group, size in enumerate(sizes)
        ]
        whole = torch.cat(batches).view(-1, self.batch)
        return whole[torch.randperm(len(whole), generator=generator)].flatten()


def groups_of(split: Split, name: str | None) -> Tensor | None:
    """What `Sampler` groups by: the labels ("label") or a factor of the split.

    Raises:
        ValueError: the split has no such values.
    """
    if name is None:
        return None
    known = (
        dict(split.factors) if split.labels is None else {"label": split.labels, **split.factors}
    )
    if name not in known:
        raise ValueError(
            f"train: group_by must be one of {shown(known, ', ') or '(nothing is labelled)'}, got"
            f" {name!r}"
        )
    return known[name]


class Feed:
    """The images of a split, resident where they are used.

    On a GPU with room they are copied there once; else each batch is pinned and copied without
    waiting. Recordings and videos stay on the host.

    Args:
        split: images and labels.
        device: of the training.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.device = device
        self.images, self.labels = split.images, split.labels
        self.staged = device.type == "cuda" and isinstance(split.images, Tensor)
        if self.staged and isinstance(self.images, Tensor):
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes < free / 4:  # the rest is for activations
                self.images = self.images.to(device)
                self.labels = None if self.labels is None else self.labels.to(device)
                self.staged = False

    def __call__(self, indices: Tensor) -> Batch:
        """The batch at `indices` [B]."""
        if not isinstance(self.images, Tensor):
            images = self.images[indices]
        elif self.staged:
            images = self.images[indices].pin_memory().to(self.device, non_blocking=True)
        else:
            images = self.images[indices.to(self.images.device)]
        labels = self.labels
        if labels is not None:
            labels = labels[indices.to(labels.device)].to(self.device, non_blocking=True)
        return Batch(images, labels)
