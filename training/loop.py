"""The one training loop: every method, any number of processes, exact to resume."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslops.training import checkpoint
from sslops.training.config import TrainConfig
from sslops.training.console import Console
from sslops.training.data import Split
from sslops.training.diagnosis import Diagnosis
from sslops.training.distributed import World, main_value, wrap
from sslops.training.feed import Feed, Sampler
from sslops.training.guard import FiniteCheck, Interrupted, NonFiniteLoss, StopRequest
from sslops.training.machine import peak_memory_gb, resolve_precision
from sslops.training.methods import Batch, Method
from sslops.training.optim import learning_rate, make_optimizer, scaled_lr
from sslops.training.record import Clock, MetricsFile, Window, spread, truncate_metrics

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
        self.sampler = Sampler(len(train), config.batch, config.seed, world)
        self.feed = Feed(train, world.device)
        self.steps = config.steps or config.epochs * self.sampler.steps_per_epoch
        warmup = round(config.warmup_epochs * self.sampler.steps_per_epoch)
        self.warmup = min(warmup, self.steps // 2)
        self.peak_lr = scaled_lr(config.lr, config.batch, config.lr_scaling)
        self.optimizer = make_optimizer(
            config.optimizer,
            method,
            lr=self.peak_lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        self.precision = resolve_precision(config.precision, world.device)
        # The parameters of views are drawn on the host, so that it never waits for a GPU.
        self.generator = torch.Generator().manual_seed(config.seed * 1_000_003 + world.rank)
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.window = Window()
        self.diagnosis = Diagnosis(self.steps, self.warmup, method.hints)
        self._noted: set[str] = set()
        self.stop = StopRequest()
        self._finite = FiniteCheck(world.device)
        self._model = wrap(method, world)
        if config.compile:
            method.encoder.compile()

    def run(self) -> None:
        """Train to the end, from wherever `load_state_dict` has put the loop.

        Raises:
            NonFiniteLoss: before the update it would have spoilt; the batch is saved.
            Interrupted: by SIGINT or SIGTERM, after the step under way and a checkpoint.
        """
        clock = Clock(self.seconds)
        folder = self.folder if self.world.main else None
        metrics = MetricsFile(folder, tensorboard=self.config.tensorboard)
        self.method.train()
        with self.stop.listen():
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
        lr = learning_rate(
            self.step,
            total=self.steps,
            warmup=self.warmup,
            peak=self.peak_lr,
            schedule=self.config.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with clock.waiting():
            batch = self.feed(self.sampler.indices(self.step))
        views = self.method.views(batch, self.generator)
        self.method.before_step(self.step, self.steps)
        device = self.world.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            out: dict[str, Tensor] = self._model(views)
        self._finite.watch(out["loss"])
        self.optimizer.zero_grad(set_to_none=True)
        out["loss"].backward()  # type: ignore[no-untyped-call]
        if not self._finite.holds():
            self._give_up(batch, views)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip)
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
            **self.window.read(),
            "chance": self.method.chance,
            "lr": self.optimizer.param_groups[0]["lr"],
            **(spread(out["features"]) if "features" in out else {}),
            **clock.lap(images),
            "memory_gb": peak_memory_gb(self.world.device),
        }
        if self.monitor is not None and self._measures():
            with clock.stopped():
                # Running statistics may differ between processes; what follows must not.
                record["knn"] = main_value(self.monitor(self.method.encoder), self.world)
            self.method.train()
        metrics.write(record)
        totals = {
            "epochs": self.steps / self.sampler.steps_per_epoch,
            "steps": self.steps,
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
        message = f"train: the loss must be finite, got {float(self._finite.value)} in step"
        message += f" {self.step + 1}; the update was not made."
        if self.folder is not None:
            path = self.folder / f"nonfinite{self.world.rank or ''}.pt"
            content = {"images": batch.images, "labels": batch.labels, "views": views}
            state = {"step": self.step, **content, "method": self.method.state_dict()}
            checkpoint.save(path, state)
            message += f" The batch, its views and the weights are in {path}."
        raise NonFiniteLoss(message + " Try a smaller --lr, --clip 1 or --precision fp32.")

    def save(self, name: str) -> None:
        """Write checkpoint/NAME.pt; every process must call it."""
        if self.folder is None:
            return
        state = self.state_dict()
        if self.world.main:
            checkpoint.save(self.folder / "checkpoint" / f"{name}.pt", state)

    def state_dict(self) -> dict[str, Any]:
        """Everything, of all processes."""
        own = {"views": self.generator.get_state(), "rng": checkpoint.rng_state()}
        processes = [own]
        if self.world.size > 1:
            processes = [own] * self.world.size
            dist.all_gather_object(processes, own)
        return {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "window": self.window.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "processes": processes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back; the metrics written after the checkpoint are dropped.

        Raises:
            ValueError: the checkpoint is of another number of processes or of other networks.
        """
        if len(state["processes"]) != self.world.size:
            raise ValueError(
                f"train: --resume needs the {len(state['processes'])} processes of the run, got"
                f" {self.world.size}"
            )
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.window.load_state_dict(state["window"])
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError as error:
            raise ValueError(
                "train: --resume needs the networks that this version builds, got a checkpoint of"
                f" others: {str(error).splitlines()[1].strip()}"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        own = state["processes"][self.world.rank]
        self.generator.set_state(own["views"].cpu())
        checkpoint.restore_rng(own["rng"])
        if self.folder is not None and self.world.main:
            truncate_metrics(self.folder, self.step)
