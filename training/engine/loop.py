"""The one training loop: every method, any number of processes, exact to resume."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sslops.training.augment import SharedGenerator
from sslops.training.config import TrainConfig
from sslops.training.data import Split
from sslops.training.data.loader import Feed, Sampler, groups_of
from sslops.training.distributed.machine import peak_memory_gb, resolve_precision
from sslops.training.distributed.process import World, main_value
from sslops.training.engine.collapse import Diagnosis, feature_spread
from sslops.training.engine.nonfinite import (
    FiniteCheck,
    NonFiniteLoss,
    random_state,
    save_failure,
)
from sslops.training.engine.optim import clip_gradient, learning_rate, make_optimizer, scaled_lr
from sslops.training.engine.signals import (
    Interrupted,
    StopRequest,
    watch_processes,
)
from sslops.training.engine.step import make_step
from sslops.training.loggers.console import Console
from sslops.training.loggers.metrics import Clock, MetricsFile, Window, truncate_metrics
from sslops.training.loggers.words import BATCHED
from sslops.training.methods import Batch, Method
from sslops.training.storage.checkpoint import StorageError, restore_rng
from sslops.training.storage.state import load_run, save_run

__all__ = ["Loop"]


class Loop:
    """Trains a method on a split.

    Args:
        method: on its device already.
        train: images and labels.
        config: all knobs.
        world: this process among all.
        console: where to report.
        folder: run folder for metrics and checkpoints; None keeps nothing.
        monitor: accuracy of an encoder on the validation part, if there is one.

    Attributes:
        step: updates made.
        steps: updates in all.
        seconds: time in training, over all resumptions.
        best: highest accuracy that `monitor` gave.
    """

    def __init__(
        self,
        method: Method,
        train: Split,
        config: TrainConfig,
        world: World,
        *,
        console: Console,
        folder: Path | None = None,
        monitor: Callable[[nn.Module], float] | None = None,
    ) -> None:
        self.method, self.config, self.world = method, config, world
        self.console, self.folder, self.monitor = console, folder, monitor
        self.sharded = config.parallel == "fsdp"
        groups = groups_of(train, config.group_by)
        self.sampler = Sampler(len(train), config.batch, config.seed, world, groups)
        self.feed = Feed(train, world.device)
        self.steps = config.steps or config.epochs * self.sampler.steps_per_epoch
        warmup = round(config.warmup_epochs * self.sampler.steps_per_epoch)
        self.warmup = min(warmup, self.steps // 2)
        self.peak_lr = scaled_lr(config.lr, config.batch, config.lr_scaling)
        self.precision = resolve_precision(config.precision, world.device)
        self._compute = make_step(method, config, world, self.precision)  # before the optimiser
        self.optimizer = make_optimizer(
            config.optimizer,
            method.optimizer_groups(),
            lr=self.peak_lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            trust=config.trust,
        )
        # The parameters of views are drawn on the host, so that it never waits for a GPU.
        self.generator = SharedGenerator()
        self.generator.manual_seed(config.seed * 1_000_003)
        self.generator.rank, self.generator.size = world.rank, world.size
        self.step, self.seconds, self.best, self.lr = 0, 0.0, -math.inf, 0.0
        self.window = Window()
        self.diagnosis = Diagnosis(self.steps, self.warmup, method.hints)
        self._noted: set[str] = set()
        self.stop = StopRequest()
        self.before: dict[str, Any] = {}  # random states that the step under way began with
        self._finite = FiniteCheck(world.device)
        self._norm = torch.zeros(())

    def run(self) -> None:
        """Train to the end, from wherever `resume` has put the loop.

        Raises:
            NonFiniteLoss: before the update it would have spoilt; the batch is saved.
            Interrupted: by SIGINT or SIGTERM, after the step under way and a checkpoint.
        """
        clock = Clock(self.seconds)
        folder = self.folder if self.world.main else None
        metrics = MetricsFile(folder, tensorboard=self.config.tensorboard)
        self.method.train()
        with self.stop.listen(), watch_processes(self.world):
            while self.step < self.steps:
                out = self._update(clock)
                self.window.add(out)
                self.seconds = clock.seconds
                if self._logs():
                    self._log(out, clock, metrics)
                if self._at_epoch(self.config.checkpoint_every):
                    self.save("last")
                if self.world.size == 1 or self._logs():
                    number = self.stop.agreed(self.world)
                    if number is not None:
                        self.save("last")
                        raise Interrupted(number, self.step)

    def _update(self, clock: Clock) -> dict[str, Tensor]:
        self.lr = learning_rate(
            self.step,
            total=self.steps,
            warmup=self.warmup,
            peak=self.peak_lr,
            schedule=self.config.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get("lr_scale", 1.0)
        with clock.waiting():
            batch = self.feed(self.sampler.indices(self.step))
        self.before = random_state(self.generator, self.world.device)
        views = self.method.views(batch, self.generator)
        self.method.before_step(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)  # first: they take no room in the forward pass
        out = self._compute(views, self._finite.watch)
        self._norm = out["grad_norm"] = clip_gradient(self.method, self.config.clip)
        if not (self._finite.holds() and math.isfinite(self._norm)):
            self._give_up(batch, views)
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1
        return out

    def _at_epoch(self, every: int) -> bool:
        """Whether the step just made ends `every` epochs, or the run."""
        period = every * self.sampler.steps_per_epoch
        return every > 0 and (self.step % period == 0 or self.step == self.steps)

    def _measures(self) -> bool:
        return self.monitor is not None and self._at_epoch(self.config.knn_every)

    def _logs(self) -> bool:
        regular = self.step % self.config.log_every == 0
        return regular or self.step == self.steps or self._measures()

    def _log(self, out: dict[str, Tensor], clock: Clock, metrics: MetricsFile) -> None:
        images = self.window.steps * self.config.batch
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.sampler.steps_per_epoch,
            **self.window.read(self.world),
            "chance": self.method.chance,
            "lr": self.lr,
            **({"feature_spread": feature_spread(out["features"])} if "features" in out else {}),
            **clock.lap(images),
            "memory_gb": peak_memory_gb(self.world.device),
        }
        if self.monitor is not None and self._measures():
            with clock.stopped():  # every process: each encodes its share
                record["knn"] = main_value(self.monitor(self.method.encoder), self.world)
            self.method.train()
        metrics.write(record)
        totals = {
            "epochs": self.steps / self.sampler.steps_per_epoch,
            "steps": self.steps,
            "batched": BATCHED[self.config.kind],
            "eta": clock.seconds / self.step * (self.steps - self.step),
        }
        self.console.progress({**record, **totals}, last=self.step == self.steps)
        for warning in self.diagnosis(record):
            self.console.warn(warning)
        for name, note in self.method.notes(record).items():
            if name not in self._noted:
                self.console.print(f"note: {note}")
            self._noted.add(name)
        if record.get("knn", -math.inf) > self.best:
            self.best = record["knn"]
            self.save("best")

    def _give_up(self, batch: Batch, views: Any) -> NoReturn:
        loss, norm = float(self._finite.value), float(self._norm)
        message = f"train: loss and gradient must be finite, got a loss of {loss} and a gradient"
        message += f" of norm {norm} in step {self.step + 1}; the update was not made."
        if self.folder is not None:
            try:
                path = save_failure(
                    self.folder,
                    self.method,
                    self.config,
                    self.world,
                    batch,
                    views,
                    precision=self.precision,
                    step=self.step,
                    before=self.before,
                    loss=loss,
                    grad_norm=norm,
                )
                message += f" Look into it with: sslops train --replay {path}."
            except StorageError as error:  # of the two, what went wrong first matters more
                message += f" The step could not be kept for --replay: {error}."
        raise NonFiniteLoss(message + " Try a smaller --lr, --clip 1 or --precision fp32.")

    def save(self, name: str) -> None:
        """Write the checkpoint NAME; every process must call it."""
        if self.folder is not None:
            save_run(
                self.folder / "checkpoint" / name,
                self.method,
                self.optimizer,
                self._progress(),
                self.world,
                sharded=self.sharded,
            )

    def _progress(self) -> dict[str, Any]:
        """All that a checkpoint holds but networks, optimiser and the random states of torch."""
        shape = self.method.shape
        return {
            "config": asdict(self.config),
            "shape": None if shape is None else list(shape),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "window": self.window.state_dict(),
            "views": self.generator.get_state(),  # one stream for all, see SharedGenerator
        }

    def resume(self, name: str = "last") -> None:
        """Put everything back; the metrics written after the checkpoint are dropped.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is damaged, or of other networks.
        """
        assert self.folder is not None
        path, world = self.folder / "checkpoint" / name, self.world
        state = load_run(path, self.method, self.optimizer, world, sharded=self.sharded)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.window.load_state_dict(state["window"])
        self.generator.set_state(state["views"].cpu())
        if len(state["rng"]) == world.size:
            restore_rng(state["rng"][world.rank])
        else:  # other processes than before: no stream of theirs to go on with
            torch.manual_seed(self.config.seed * 1_000_003 + self.step * 4099 + world.rank)
        if self.world.main:
            truncate_metrics(self.folder, self.step)
