"""The forward and backward pass of an update: of the whole batch, or a micro-batch at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sslops import GradCache
from sslops._compile_cache import separate_by_processor
from sslops.grad_cache import kept_buffers
from sslops.training.config import SystemConfig, TrainConfig
from sslops.training.distributed.process import World
from sslops.training.distributed.wrap import parallelise
from sslops.training.methods import ContrastiveMethod, Method
from sslops.training.models.declared import called_parts, checkpoint_blocks, set_checkpointing

__all__ = ["Step", "make_step", "prepare_encoder", "restore_encoder"]

CALLED = ("feature_maps", "grid", "latents")  # what methods call of an encoder, but itself


class Step:
    """Fills the gradients from the views of a batch.

    Contrastive methods embed micro-batches and compare all of them (`sslops.GradCache`); where the
    loss is a mean over images, the gradients of micro-batches add up.

    Args:
        method: its networks.
        model: the method itself or what averages its gradients over processes.
        config: gives `micro_batch`.
        share: images of this process.
        device: of the training.
        bf16: compute in bfloat16 where autocast deems it safe.

    Raises:
        ValueError: a micro-batch is asked for, and the loss cannot be taken apart.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        config: TrainConfig,
        *,
        share: int,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self._method, self._model = method, model
        self._device, self._bf16 = device.type, bf16
        self._size = config.micro_batch
        self._run = self._whole
        if self._size is None or self._size >= share:
            return
        if isinstance(method, ContrastiveMethod):
            self._cache = GradCache(
                lambda views: model(views, whole=False),
                method.contrast,
                self._size,
                model=model,
                # A dict, as views may be a tuple, whose members would be arguments by themselves.
                split=lambda views, size: [{"views": part} for part in method.parts(views, size)],
            )
            self._run = self._cached
        elif method.mean_loss:
            self._run = self._added
        else:
            raise ValueError(
                "train: --micro-batch needs a contrastive method or a loss that is a mean over"
                f" images, got {type(method).__name__}"
            )

    def __call__(self, views: Any, watch: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """What the method's `step` returns, after the backward pass.

        Args:
            views: of the batch.
            watch: gets the loss as soon as it is known.
        """
        return self._run(views, watch)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._bf16)

    def _whole(self, views: Any, watch: Callable[[Tensor], None]) -> dict[str, Tensor]:
        with self._autocast():
            out: dict[str, Tensor] = self._model(views)
        return _backward(out, watch)

    def _cached(self, views: Any, watch: Callable[[Tensor], None]) -> dict[str, Tensor]:
        with self._autocast():
            out: dict[str, Tensor] = self._cache(views)
        return _backward(out, watch)

    def _added(self, views: Any, watch: Callable[[Tensor], None]) -> dict[str, Tensor]:
        assert self._size is not None
        parts = self._method.parts(views, self._size)
        rows = [_rows(part) for part in parts]
        total: dict[str, list[Tensor]] = {}
        for number, part in enumerate(parts):
            share = rows[number] / sum(rows)
            quiet: AbstractContextManager[Any] = nullcontext()
            if isinstance(self._model, DistributedDataParallel) and number + 1 < len(parts):
                quiet = self._model.no_sync()
            with quiet:
                with self._autocast():
                    out = self._model(part)
                (out["loss"] * share).backward()
            for name, value in out.items():
                weighted = value.detach() if value.ndim else value.detach() * share
                total.setdefault(name, []).append(weighted)
        whole = {
            name: torch.cat(values) if values[0].ndim else torch.stack(values).sum()
            for name, values in total.items()
        }
        watch(whole["loss"])
        return whole


def make_step(
    method: Method,
    config: TrainConfig,
    world: World,
    precision: Literal["fp32", "bf16"],
    processes: int | None = None,
) -> Step:
    """The step of a run, or of one made again; the method is changed in place.

    It may get new parameters, which an optimiser made before would not know.

    Args:
        method: on its device.
        config: of the run.
        world: this process among all.
        precision: of the forward pass.
        processes: that the batch is divided among; those of `world` if None.

    Raises:
        ValueError: as `Step` and `prepare_encoder`.
    """
    model = parallelise(method, world, config.parallel)
    prepare_encoder(method.encoder, config)
    share = config.batch // (processes or world.size)
    bf16 = precision == "bf16"
    return Step(method, model, config, share=share, device=world.device, bf16=bf16)


def _backward(out: dict[str, Tensor], watch: Callable[[Tensor], None]) -> dict[str, Tensor]:
    watch(out["loss"])
    out["loss"].backward()  # type: ignore[no-untyped-call]
    return out


def _rows(views: Any) -> int:
    while not isinstance(views, Tensor):
        views = views[0]
    return len(views)


def prepare_encoder(encoder: nn.Module, config: SystemConfig) -> None:
    """Checkpoint the activations of the encoder's blocks and compile it, as `config` says.

    An encoder with a `set_grad_checkpointing` of its own is asked to do it by itself.

    Raises:
        ValueError: `checkpointing` of an encoder without blocks.
    """
    if config.compile:
        separate_by_processor()
    own = set_checkpointing(encoder)
    if config.checkpointing and own is not None:
        own(True)
    if own is not None or not config.checkpointing:
        if config.compile:
            _compile(encoder)
        return
    blocks = checkpoint_blocks(encoder)
    if not blocks:
        raise ValueError(
            "train: --checkpointing needs an encoder with nn.Sequential or nn.ModuleList in it, got"
            f" {type(encoder).__name__}"
        )
    for block in blocks:
        # Each block is compiled by itself: a second pass and its buffers are not for a compiler.
        compute = torch.compile(block.forward) if config.compile else block.forward
        block.__dict__["forward"] = _Checkpointed(block, compute)


def restore_encoder(encoder: nn.Module, config: SystemConfig) -> None:
    """Undo `prepare_encoder`: a copy would go on computing with the weights of the original."""
    own = set_checkpointing(encoder)
    if config.checkpointing and own is not None:
        own(False)
    for module in encoder.modules():
        for name in ("forward", *CALLED):
            if callable(module.__dict__.get(name)):  # a transformer's `grid` is its size
                del module.__dict__[name]


def _compile(encoder: nn.Module) -> None:
    """Compile all that methods call: of the encoder, and of its parts that they call."""
    for part in (encoder, *called_parts(encoder)):
        part.compile()
        for name in CALLED:
            if callable(getattr(part, name, None)):
                part.__dict__[name] = torch.compile(getattr(part, name))


class _Checkpointed:
    """A forward that is run again in the backward pass, but writes its buffers once."""

    def __init__(self, block: nn.Module, compute: Callable[..., Any]) -> None:
        self.block, self.compute = block, compute

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.compute(*args)
        return checkpoint(self.compute, *args, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), kept_buffers(self.block)
