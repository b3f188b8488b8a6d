"""Peak memory of an update from tensors without content: no model is too large to be looked at."""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sslops import KeyQueue
from sslops.training.config import TrainConfig
from sslops.training.data import Clips, Video, Waves
from sslops.training.engine.optim import make_optimizer
from sslops.training.engine.step import Step, prepare_encoder
from sslops.training.methods import Batch, ContrastiveMethod, DataShape, Method, find_method

__all__ = ["Memory", "make_batch", "simulate"]

PARTS = ("parameters", "gradients", "optimiser", "EMA", "queue", "buffers", "views", "activations",
         "loss")  # fmt: skip
GROWS = ("views", "loss")  # with the batch, whatever the micro-batch


@dataclass(frozen=True)
class Memory:
    """Bytes in use at the peak of an update, by what they are for.

    Attributes:
        parts: parameters, gradients, optimiser (its state), EMA (networks without gradient),
            queue, buffers, views (images too), activations (with the workspace of the backward
            pass), loss (with the embeddings of the whole batch).
    """

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """What dominates."""
        return max(self.parts, key=lambda name: self.parts[name])


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages by category, and keeps the counts of the highest total."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.category = "activations"
        self.live: Counter[str] = Counter()
        self.total, self.peak, self.at_peak = 0, 0, Counter[str]()
        self._known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._category: dict[int, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    self.add(tensor, self.category)
        return out

    def add(self, tensor: Tensor, category: str) -> None:
        """Count a tensor's storage until it is freed; a known one moves to the category."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key], self._category[key] = storage, category
        weakref.finalize(storage, self._free, key, size)
        self.live[category] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.live.copy()

    def move(self, tensor: Tensor, category: str) -> None:
        """Count a known tensor under another category."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            self.live[self._category[storage._cdata]] -= storage.nbytes()
            self.live[category] += storage.nbytes()
            self._category[storage._cdata] = category

    def _free(self, key: int, size: int) -> None:
        self.live[self._category.pop(key)] -= size
        self.total -= size


def make_batch(shape: DataShape, size: int, device: torch.device | str = "cpu") -> Batch:
    """Random images and labels, or recordings of a second, or videos."""
    if shape.rate:
        starts = torch.arange(size) * shape.rate
        samples = torch.randint(-32768, 32768, (size * shape.rate,)).to(torch.int16)
        sound = Waves(samples, starts, torch.full_like(starts, shape.rate), shape.rate)
        return Batch(sound, None)
    if shape.frames:
        starts = torch.arange(size) * shape.frames
        side = shape.image_size
        frames = torch.randint(256, (size * shape.frames, shape.channels, side, side))
        content = Video(frames.to(torch.uint8))
        return Batch(Clips(content, starts, torch.full_like(starts, shape.frames)), None)
    images = torch.randint(256, (size, shape.channels, shape.image_size, shape.image_size))
    labels = torch.arange(size) % max(1, shape.classes)
    return Batch(images.to(torch.uint8).to(device), labels.to(device))


def simulate(
    name: str, config: TrainConfig, shape: DataShape, *, bf16: bool, processes: int = 1
) -> Memory:
    """Run an update of `config` on tensors that have shapes and no content.

    Of micro-batches two are run; views, embeddings and loss are then those of all.

    Args:
        name: of the method.
        config: its batch is that of all processes.
        shape: of the images.
        bf16: whether autocast is on.
        processes: among which the batch is divided.
    """
    share = config.batch // processes
    micro = config.micro_batch
    whole = micro is None or micro >= share
    rows = share if micro is None or whole else min(share, 2 * micro)
    # Built as for the whole batch: constructors may divide it.
    method = find_method(name).build(replace(config, compile=False), shape)
    method.train()
    small = [method.views(make_batch(shape, n), torch.Generator().manual_seed(0)) for n in (2, 3)]
    prepare_encoder(method.encoder, replace(config, compile=False))

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    _empty(method, fake)
    tracker = _Tracker()
    for tensor, category in _static(method):
        tracker.add(tensor, category)
    for param in method.parameters():
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p: tracker.move(p.grad, "gradients")
            )
    watch = _mark_phases(method, tracker, whole)
    step = Step(method, method, config, share=share, device=torch.device("cpu"), bf16=bf16)
    with fake:
        images = make_batch(shape, rows).images
        views = _grown(small[0], small[1], rows)
        resident = [images] if isinstance(images, Tensor) else []  # others stay on the host
        for tensor in [*resident, *_leaves(views)]:
            tracker.add(tensor, "views")
        with tracker:
            out = step(views, watch)
        del out
    parts = dict.fromkeys(PARTS, 0) | dict(tracker.at_peak)
    for part in GROWS:
        parts[part] = parts[part] * share // rows
    parts["loss"] *= processes  # everybody's embeddings
    return Memory(_with_optimiser(method, config, parts))


def _mark_phases(method: Method, tracker: _Tracker, whole: bool) -> Callable[[Tensor], None]:
    """Say what new tensors are for; returns what is to be called between the two passes."""
    if not isinstance(method, ContrastiveMethod):
        return lambda loss: None
    embed, replaying = method.embed, False

    def embed_marked(views: Any) -> tuple[Tensor, ...]:
        tracker.category = "activations"
        out = embed(views)
        if not replaying:
            for tensor in out:
                tracker.move(tensor, "loss")
            tracker.category = "loss"
        return out

    def watch(loss: Tensor) -> None:
        nonlocal replaying
        replaying = True
        if whole:  # there is no second embedding to end the backward pass of the loss
            tracker.category = "activations"

    method.__dict__["embed"] = embed_marked
    return watch


def _static(method: Method) -> list[tuple[Tensor, str]]:
    """What is there before an update begins."""
    queues = {
        id(buffer)
        for module in method.modules()
        if isinstance(module, KeyQueue)
        for buffer in module.buffers()
    }
    found = [(p, "parameters" if p.requires_grad else "EMA") for p in method.parameters()]
    return found + [(b, "queue" if id(b) in queues else "buffers") for b in method.buffers()]


def _with_optimiser(method: Method, config: TrainConfig, parts: dict[str, int]) -> dict[str, int]:
    """Add the optimiser's state, as many tensors for a parameter as it makes for one of a probe."""
    probe = nn.Linear(8, 8, bias=False)
    probe.weight.grad = torch.ones(8, 8)
    optimizer = make_optimizer(
        config.optimizer, probe, lr=0.1, weight_decay=0.0, momentum=config.momentum
    )
    optimizer.step()
    state = optimizer.state[probe.weight].values()
    copies = sum(isinstance(value, Tensor) and value.numel() == 64 for value in state)
    weights = [p.numel() * p.element_size() for p in method.parameters() if p.requires_grad]
    return parts | {"optimiser": copies * sum(weights)}


def _empty(module: nn.Module, fake: FakeTensorMode) -> None:
    """Replace all parameters and buffers by ones without content; shared ones stay shared."""
    made: dict[int, Tensor] = {}

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new: Tensor = fake.from_tensor(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, tensor.requires_grad)
            made[id(tensor)] = new
        return made[id(tensor)]

    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = empty(tensor)  # type: ignore[assignment]


def _grown(two: Any, three: Any, rows: int) -> Any:
    """Views of `rows` images, from those of two and of three."""
    if not isinstance(two, Tensor):
        parts = (_grown(a, b, rows) for a, b in zip(two, three, strict=True))
        return type(two)(*parts) if hasattr(two, "_fields") else type(two)(parts)
    sides = zip(two.shape, three.shape, strict=True)
    return two.new_empty([a if a == b else a // 2 * rows for a, b in sides])


def _leaves(views: Any) -> list[Tensor]:
    if isinstance(views, Tensor):
        return [views]
    return [leaf for each in views for leaf in _leaves(each)]
