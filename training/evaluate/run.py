"""After training: the method beside its controls, pictures, numbers, report."""

import time
from pathlib import Path
from typing import Any

from torch import nn

from sslops.training.config import TrainConfig
from sslops.training.data import Dataset
from sslops.training.distributed.process import World
from sslops.training.engine.setup import DataSource, build_method, load_data, shape_of
from sslops.training.engine.signals import EvaluationFailed, Interrupted
from sslops.training.evaluate.baselines import plain_features, simclr_arm, supervised_arms
from sslops.training.evaluate.video import evaluate_tracking, video_sets
from sslops.training.loggers.console import Console
from sslops.training.methods.video_colorization import VideoColorizationConfig
from sslops.training.storage import encoder as export
from sslops.training.storage.folder import read_config, read_json, write_json
from sslops.training.storage.older import today_results

__all__ = [
    "evaluate_and_report",
    "evaluate_arms",
    "evaluate_run",
    "forget_seen",
]


def evaluate_run(
    folder: Path, world: World, console: Console, source: DataSource | None = None
) -> dict[str, Any]:
    """Evaluate the exported encoder of a run against controls; write results.json and pictures.

    The controls are raw pixels (of sound log-mel), the same encoder untrained, and the same
    encoder trained with labels. On videos objects are followed, and the controls are the same
    encoder untrained and the first mask in every frame.

    Returns:
        What results.json holds.
    """
    started = time.perf_counter()
    name, config = read_config(folder)
    before = today_results(read_json(folder / "results.json"))
    data, train, _ = load_data(config, source)
    shape = shape_of(data)

    trained = export.load_encoder(folder).to(world.device)
    untrained = build_method(name, config, shape, world).encoder.eval()
    arms: dict[str, nn.Module | None] = {name: trained, "random-init": untrained}
    if isinstance(config, VideoColorizationConfig):
        arms["identity"] = None
        sets = video_sets(data, config)
        results = evaluate_tracking(arms, sets, config, folder, world.device, console)
        results["protocol"] |= {
            "data": data.name,
            "licence": data.licence,
            "source": data.source,
            "train_videos": len(data.train),
            "test_videos": len(data.test),
        }
    else:
        arms |= plain_features(data)
        if name != "supervised":
            arms |= supervised_arms(folder, config, data, train, shape, world, console)
        if config.simclr_control and name != "simclr" and not shape.rate:
            arms["simclr"] = simclr_arm(folder, config, train, shape, world, console)
        results = _evaluate_features(arms, data, config, folder, world, console)
    spent = time.perf_counter() - started
    results["cost"] = {**before.get("cost", {}), "evaluation_seconds": spent}
    results["pretext"] = before.get("pretext", {})
    write_json(folder / "results.json", results)
    return results


def _evaluate_features(
    arms: dict[str, nn.Module | None],
    data: Dataset,
    config: TrainConfig,
    folder: Path,
    world: World,
    console: Console,
) -> dict[str, Any]:
    """What features tell of labels, with pictures of the feature space."""
    from sslops.training.evaluate.pictures import write_pictures

    console.print(f"evaluating {', '.join(arms)} ...")
    results = evaluate_arms(arms, data, config, world)
    forget_seen(results, config)
    write_pictures(folder, data, arms, None, config.seed, points=config.tsne_images)
    return results


def evaluate_arms(
    arms: dict[str, nn.Module | None], data: Dataset, config: TrainConfig, world: World
) -> dict[str, Any]:
    """`evaluate` as the config of a run says: seed, images, stages."""
    from sslops.training.evaluate import evaluate

    results: dict[str, Any] = evaluate(
        arms,
        data,
        seed=config.seed,
        max_train=config.eval_train,
        max_test=config.eval_test,
        device=world.device,
        stages=config.eval_stages,
    )
    return results


def evaluate_and_report(
    folder: Path,
    world: World,
    console: Console,
    source: DataSource | None = None,
    *,
    again: bool = False,
) -> dict[str, Any]:
    """`evaluate_run`, then the report.

    Args:
        folder: of a run whose training is over.
        world: gives the device.
        console: where to report.
        source: has the data set, if it was loaded before.
        again: asked for by itself, so that doing just this is no advice where it fails.

    Raises:
        FileNotFoundError: training is not over.
        EvaluationFailed: it raised; the weights are saved, and the message says so.
    """
    weights = export.find(folder)
    try:
        results = evaluate_run(folder, world, console, source)
        from sslops.training.report.report import write_report

        write_report(folder)
    except (Interrupted, KeyboardInterrupt):
        if not again:
            console.print(f"the weights are saved; evaluate them with: sslops eval {folder}")
        raise
    except Exception as error:
        advice = "" if again else f"; try again with: sslops eval {folder}"
        raise EvaluationFailed(
            f"{'eval' if again else 'train'}: the evaluation failed ({type(error).__name__}:"
            f" {error}); the trained weights are in {weights}{advice}"
        ) from error
    return results


def forget_seen(results: dict[str, Any], config: TrainConfig) -> None:
    """Drop a supervised control's accuracies on unseen values whose labels it was trained with."""
    held_out = getattr(config, "held_out", None)
    kept = None if held_out is None else f"unseen.{held_out.partition('=')[2]}"
    for name in results:
        if name.startswith("supervised"):
            for key in [key for key in results[name] if key.startswith("unseen.")]:
                if name != "supervised-unseen" or key != kept:
                    del results[name][key]
