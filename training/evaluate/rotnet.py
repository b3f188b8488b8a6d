"""Few labels on frozen first blocks: the semi-supervised protocol of RotNet.

Gidaris et al. 2018, arXiv:1803.07728, section 4.1.3: the first blocks of the pretrained network
stay as they are, the others and a linear layer are trained from fresh weights with 20, 100, 400,
1,000 and 5,000 labels a class; the same network trained as a whole with the same labels stands
beside it. Both arms begin with the same fresh weights and see the same batches and views.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from sslops.training.config import TrainConfig
from sslops.training.data import Dataset, Split
from sslops.training.data.split import subset, take
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, shape_of
from sslops.training.evaluate.few_labels import draw_labels, feasible
from sslops.training.evaluate.table import align
from sslops.training.loggers.console import Console
from sslops.training.methods.base import DataShape
from sslops.training.methods.half_frozen import HalfFrozen, freeze_first
from sslops.training.storage.encoder import Trained
from sslops.training.storage.folder import write_json

__all__ = ["RotNetOptions", "rotnet", "rotnet_table"]

SCRATCH = "from scratch"
WARMUP = 0.1  # of the steps


@dataclass(frozen=True)
class RotNetOptions:
    """The budget of each arm, the same whatever the number of labels."""

    freeze: int = 2  # blocks
    labels: tuple[int, ...] = (20, 100, 400, 1000, 5000)  # a class
    steps: int = 400
    batch: int = 128
    lr: float = 3e-3  # of AdamW, peak of a cosine schedule
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"rotnet: {name} must be at least 1, got {getattr(self, name)}")
        if not self.labels or min(self.labels) < 1:
            raise ValueError(f"rotnet: labels must be numbers from 1 on, got {self.labels}")


def rotnet(
    trained: Trained, data: Dataset, options: RotNetOptions, world: World, console: Console
) -> dict[str, Any]:
    """Run the protocol on a finished run and write its rotnet.json.

    Args:
        trained: the run.
        data: its data set.
        options: the budget of each arm.
        world: gives the device.
        console: where to report.

    Returns:
        What rotnet.json holds: {"accuracy": {labels a class: {arm: share of 1}}, "protocol"}.

    Raises:
        ValueError: sound, too few labels, an encoder without blocks, or a wrong `freeze`.
    """
    folder, name, config, encoder = trained
    if data.rate or data.train.labels is None or data.test.labels is None:
        raise ValueError(f"rotnet: needs labelled images, got {config.data}")
    if not hasattr(encoder, "stage_modules"):
        raise ValueError(f"rotnet: needs an encoder with stages, got {config.arch}")
    counts = feasible(data.train.labels, options.labels, len(data.classes))
    if not counts:
        raise ValueError(
            f"rotnet: every class must have {min(options.labels)} labels, got fewer: {config.data}"
        )
    test = data.test
    if config.eval_test is not None and config.eval_test < len(test):
        test = subset(test, config.eval_test, config.seed)
    config = _settings(config, options)
    accuracy: dict[str, dict[str, float]] = {}
    for n in counts:
        assert data.train.labels is not None
        few = take(data.train, draw_labels(data.train.labels, n, len(data.classes), config.seed))
        accuracy[str(n)] = {}
        for arm, blocks in ((name, options.freeze), (SCRATCH, 0)):
            console.print(f"training with {n:,} labels a class: {arm} ...")
            method = _build(name, config, shape_of(data), encoder, blocks, world)
            _train(method, few, config, options, world)
            accuracy[str(n)][arm] = _accuracy(method, test, world.device)
    results = {
        "accuracy": accuracy,
        "protocol": {
            **asdict(options),
            "labels": counts,
            "test_images": len(test),
            "views": config.views,
            "seed": config.seed,
            "rest": "from the same fresh weights in both arms, not from the pretrained ones",
        },
    }
    write_json(folder / "rotnet.json", results)
    return results


def _settings(config: TrainConfig, options: RotNetOptions) -> TrainConfig:
    """Those of the run in what makes views and networks; the optimiser's are the protocol's."""
    return replace(
        config, steps=options.steps, micro_batch=None, optimizer="adamw", lr=options.lr,
        lr_scaling="none", schedule="cosine", weight_decay=options.weight_decay, clip=None,
        group_by=None, knn_every=0, parallel="ddp", compile=False, checkpointing=False,
    )  # fmt: skip


def _build(
    name: str, config: TrainConfig, shape: DataShape, trained: nn.Module, blocks: int, world: World
) -> HalfFrozen:
    """The method's encoder with fresh weights, its first `blocks` taken from `trained`."""
    encoder = build_method(name, config, shape, world).encoder
    frozen: list[nn.Module] = []
    if blocks:
        side = shape.image_size
        image = torch.zeros(1, shape.channels, side, side, device=world.device)
        frozen = freeze_first(encoder, blocks, image)
        weights = trained.state_dict()
        names = {id(value): key for key, value in encoder.state_dict(keep_vars=True).items()}
        with torch.no_grad():
            for module in frozen:
                tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                for each in tensors:
                    if id(each) in names:  # not what is never saved
                        each.copy_(weights[names[id(each)]])
    # build_method has set the seed: the linear layers of both arms begin alike.
    method = HalfFrozen(config, shape, encoder, frozen).to(world.device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def _train(
    method: HalfFrozen, few: Split, config: TrainConfig, options: RotNetOptions, world: World
) -> None:
    from sslops.training.engine.loop import Loop

    batch = min(options.batch, len(few))
    warmup = WARMUP * options.steps / (len(few) // batch)  # in epochs
    config = replace(config, batch=batch, warmup_epochs=warmup)
    Loop(method, few, config, world, console=Console(quiet=True)).run()


@torch.no_grad()
def _accuracy(method: HalfFrozen, test: Split, device: torch.device) -> float:
    method.eval()
    assert test.labels is not None
    right = 0
    for images, labels in zip(
        *(torch.split(part, 512) for part in (test.images, test.labels)), strict=True
    ):
        logits = method.classifier(method.encoder(images.to(device).float().div(255)))
        right += int((logits.argmax(1).cpu() == labels).sum())
    return right / len(test)


def rotnet_table(results: dict[str, Any]) -> str:
    """Test accuracy in percent, a row an arm, a column a number of labels a class."""
    accuracy = results["accuracy"]
    arms = list(next(iter(accuracy.values())))
    freeze = results["protocol"]["freeze"]
    lines = [["labels a class", *(f"{int(n):,}" for n in accuracy)]]
    for arm in arms:
        title = arm if arm == SCRATCH else f"{arm}, first {freeze} blocks frozen"
        lines.append([title, *(f"{100 * each[arm]:.1f}" for each in accuracy.values())])
    return align(lines)
