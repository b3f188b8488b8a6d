"""A whole run: folder, data, method, loop, export, evaluation, report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslops.training.config import (
    RunOptions,
    TrainConfig,
    closest,
    default_out,
    departures,
    unread_fields,
)
from sslops.training.data import Dataset, Split
from sslops.training.distributed.machine import environment, peak_memory_gb
from sslops.training.distributed.process import World, join, leave, restarted, wait
from sslops.training.engine.loop import Loop
from sslops.training.engine.nonfinite import NonFiniteLoss
from sslops.training.engine.setup import DataSource, build_method, load_data, shape_of, whole
from sslops.training.engine.signals import EvaluationFailed, Interrupted, ProcessLost
from sslops.training.engine.step import restore_encoder
from sslops.training.evaluate.baselines import kept_control
from sslops.training.evaluate.knn_monitor import make_monitor
from sslops.training.evaluate.pretext import measure_pretext
from sslops.training.evaluate.run import evaluate_run
from sslops.training.evaluate.transfer import load_other, transfer
from sslops.training.evaluate.verdict import over_seeds
from sslops.training.loggers.console import Console
from sslops.training.loggers.progress import shown_on
from sslops.training.methods import Method, find_method
from sslops.training.models.subsampled import SAFE_CHANNELS, subsampled
from sslops.training.report.next_steps import next_steps
from sslops.training.report.summary import (
    print_closing,
    print_next,
    print_tables,
    summarise,
    summary_table,
)
from sslops.training.run.banner import count_parameters, print_banner
from sslops.training.run.drawing import draw_figures, draw_pictures
from sslops.training.run.packages import need
from sslops.training.storage.encoder import Trained, exported, save_encoder
from sslops.training.storage.folder import (
    check_folder,
    default_config,
    discard_folder,
    has_checkpoint,
    open_folder,
    write_json,
)

__all__ = [
    "Result",
    "evaluate_and_report",
    "execute",
    "train",
    "weights_are_safe",
]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        dir: run folder.
        results: content of results.json; of summary.json for several seeds.
        encoder: the trained encoder, in eval mode (of the last seed).
    """

    dir: Path
    results: dict[str, Any]
    encoder: nn.Module


def train(
    method: str,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    seeds: int = 1,
    console: Console | None = None,
    **fields: Any,
) -> Result:
    """Train a method, evaluate it against controls and write a report.

    Args:
        method: a name from `sslops list`.
        data: a name from `sslops list` or a folder of images; "digits" if None.
        out: run folder; runs/METHOD-DATA if None.
        overwrite: delete an existing run in it first.
        resume: go on from its last checkpoint, with its configuration.
        seeds: number of runs, with seeds from `seed` on.
        console: where to report; standard output if None.
        fields: fields of the method's config; they override the data set's recipe.

    Raises:
        TypeError: unknown field.
        ValueError: unknown method, data or value.
        FileNotFoundError: a package that training needs is not installed.
        FileExistsError: the folder is in use, and neither `overwrite` nor `resume` is set.
        NonFiniteLoss: the loss became NaN or infinite.
        Interrupted: by SIGINT or SIGTERM; the checkpoint is saved.
        EvaluationFailed: after training; the weights are saved.

    Example:
        >>> result = train("simclr", data="digits", out="runs/first")  # doctest: +SKIP
        >>> result.results["simclr"]["knn"], result.encoder  # doctest: +SKIP
    """
    find_method(method)
    need("train()")
    given = {**fields, **({} if data is None else {"data": data})}
    options = RunOptions(out, overwrite, resume, seeds)  # type: ignore[arg-type]  # paths fit
    if console is not None and not isinstance(console, Console):
        raise TypeError(
            f"train: console must be a Console, got {type(console).__name__}; Console(quiet=True)"
            " prints warnings only"
        )
    base = default_config(method, given, options)
    known = asdict(base)
    for name in given:
        if name not in known:
            raise TypeError(f"train: no such option, got {name!r}{closest(name, known)}")
    return execute(method, replace(base, **given), options, console or Console())


def execute(
    method: str,
    config: TrainConfig,
    options: RunOptions,
    console: Console,
    source: DataSource | None = None,
    *,
    part: bool = False,
) -> Result:
    """Run a resolved configuration, once or for several seeds.

    Args:
        method: a name from `sslops list`.
        config: all fields.
        options: what to do with the folder.
        console: where to report.
        source: has the data set, if it was loaded before.
        part: of more runs to come, so that there is nothing to propose yet.
    """
    source = source or DataSource()
    out = Path(options.out or default_out(method, config.data))
    if options.seeds < 1:
        raise ValueError(f"train: seeds must be at least 1, got {options.seeds}")
    if config.tensorboard:
        need("train()", "tensorboard")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    world = join(config.device)
    console = console if world.main else Console(quiet=True)
    try:
        with shown_on(console):
            if options.seeds == 1:
                return _one(method, config, out, options, world, console, source, part=part)
            return _several(method, config, out, options, world, console, source)
    finally:
        leave()


def _several(
    method: str,
    config: TrainConfig,
    out: Path,
    options: RunOptions,
    world: World,
    console: Console,
    source: DataSource,
) -> Result:
    runs = []
    for seed in range(config.seed, config.seed + options.seeds):
        folder = out / f"seed{seed}"
        each = replace(options, resume=options.resume and has_checkpoint(folder))
        own = replace(config, seed=seed)
        runs.append(_one(method, own, folder, each, world, console, source, part=True))
    summary = summarise([run.results for run in runs])
    if world.main:
        write_json(out / "summary.json", summary)
        console.print(f"\n{options.seeds} seeds, mean ± sd\n{summary_table(summary)}")
        if sentence := over_seeds(summary, method):
            console.print(f"\n{sentence}")
        console.print(f"\nsummary   {out / 'summary.json'}")
        print_next(next_steps("seeds", method, config, out, runs[-1].results), console)
    return Result(out, summary, runs[-1].encoder)


def _one(
    name: str,
    config: TrainConfig,
    folder: Path,
    options: RunOptions,
    world: World,
    console: Console,
    source: DataSource,
    *,
    part: bool,
) -> Result:
    if restarted():  # by torchrun, after a process died
        again = has_checkpoint(folder)
        options = replace(options, resume=again, overwrite=not again)
    if world.main:
        check_folder(folder, options, name, config)
    data, split, validation = load_data(config, source)
    shape = shape_of(data)
    method = build_method(name, config, shape, world)
    method.fit(split.images)
    alone = World(0, 1, world.device)
    loop = Loop(
        method,
        split,
        config,
        world,
        console=console,
        folder=folder,
        monitor=None
        if validation is None
        else make_monitor(split, validation, config.seed, alone if method.local_bn else world),
    )
    if options.resume:
        loop.resume()
    if world.main:
        open_folder(folder, options, name, config)
    wait(world)
    try:
        print_banner(name, data, split, method, loop, folder, console)
        if world.main:
            write_json(folder / "env.json", environment(world.device, loop.precision))
            draw_pictures(method, split, folder, world)
            _caution(name, config, method, world, console)
        loop.run()
    except (Interrupted, ProcessLost):
        if has_checkpoint(folder):  # a process may be lost before the first one
            console.print(f"go on with: sslops train {name} --out {folder} --resume")
        raise
    except NonFiniteLoss:  # has written what it is about
        raise
    except Exception:
        if world.main and loop.step == 0:  # settings that no step can be made with
            discard_folder(folder)
        raise
    restore_encoder(method.encoder, config)
    encoder = whole(method, config, shape, world)
    if not world.main:
        return Result(folder, {}, encoder.eval())

    facts = {"method": name, "data": config.data, "steps": loop.step}
    save_encoder(folder / "encoder.safetensors", encoder, config, shape, **facts)
    results: dict[str, Any] = {"cost": _cost(method, loop)}
    if not loop.sharded:  # one process alone has no weights then
        if len(data.test) < config.batch:
            console.print(
                f"note: the task is measured on batches of {len(data.test)}, as there are no more"
                f" to test on, and not of {config.batch} as in training"
            )
        results["pretext"] = measure_pretext(method, data, config, world)
    write_json(folder / "results.json", results)
    if not loop.sharded:
        draw_figures(method, split, folder, world)
    if config.evaluate:
        trained = Trained(folder, name, config, exported(encoder, config, shape).to(world.device))
        with weights_are_safe(folder, console):
            results = evaluate_and_report(trained, data, split, results, alone, console)
        if config.eval_data is not None:
            other = load_other(trained, shape, config.eval_data, config.eval_root, source)
            supervised = kept_control(folder, "supervised")
            print_tables(transfer(trained, shape, other, alone, console, supervised), console)
    print_closing(name, config, folder, results, console, None if part else "train")
    return Result(folder, results, encoder.eval())


def evaluate_and_report(
    trained: Trained,
    data: Dataset,
    train: Split,
    before: Mapping[str, Any],
    world: World,
    console: Console,
) -> dict[str, Any]:
    """`evaluate_run`, then the report."""
    from sslops.training.report.report import write_report  # needs Pillow

    results = evaluate_run(trained, data, train, before, world, console)
    write_report(trained.folder)
    return results


@contextmanager
def weights_are_safe(folder: Path, console: Console, *, again: bool = False) -> Iterator[None]:
    """Say of an evaluation inside the block that fails where the trained weights are.

    Args:
        folder: of the run.
        console: where to report.
        again: asked for by itself, so that doing just this is no advice where it fails.

    Raises:
        EvaluationFailed: the block raised.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        if not again:
            console.print(f"the weights are saved; evaluate them with: sslops eval {folder}")
        raise
    except Exception as error:
        advice = "" if again else f"; try again with: sslops eval {folder}"
        raise EvaluationFailed(
            f"{'eval' if again else 'train'}: the evaluation failed ({type(error).__name__}:"
            f" {error}); the trained weights are in {folder / 'encoder.safetensors'}{advice}"
        ) from error


def _caution(
    name: str, config: TrainConfig, method: Method, world: World, console: Console
) -> None:
    """Say what is done otherwise than one would think, and what is wrong with the settings."""
    changed = departures(name, config)
    for field, reader in unread_fields(config).items():
        if field in changed:
            flag = f"--{field.replace('_', '-')}"
            by = f"by {reader} alone" if reader else "by nothing in this run"
            console.print(f"note: {flag} is read {by}")
    if world.device.type == "cpu" and (layers := subsampled(method)):
        console.print(
            f"note: strided 1x1 convolutions of fewer than {SAFE_CHANNELS} channels take their"
            f" pixels first, as PyTorch's may write outside of its memory: {len(layers)}, from"
            f" {layers[0]} on"
        )
    for caution in method.cautions:
        console.warn(caution)


def _cost(method: Method, loop: Loop) -> dict[str, Any]:
    return {
        "training_seconds": loop.seconds,
        "images_per_second": loop.step * loop.config.batch / max(loop.seconds, 1e-9),
        "peak_memory_gb": peak_memory_gb(loop.world.device),
        "encoder_parameters": count_parameters(method.encoder),
        "parameters": count_parameters(method),
        "steps": loop.step,
        "epochs": loop.step / loop.sampler.steps_per_epoch,
        "train_images": loop.sampler.N,
        "processes": loop.world.size,
    }
