"""The evaluation of a run: its encoder beside controls, numbers and pictures."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from sslops.training.config import TrainConfig, VideoConfig
from sslops.training.data import Dataset, Split
from sslops.training.distributed.process import World
from sslops.training.engine.setup import build_method, shape_of
from sslops.training.evaluate.baselines import plain_features, simclr_arm, supervised_arms
from sslops.training.evaluate.video import evaluate_tracking, video_sets
from sslops.training.loggers.console import Console
from sslops.training.storage.encoder import Trained
from sslops.training.storage.folder import write_json

__all__ = ["evaluate_arms", "evaluate_run", "forget_seen"]


def evaluate_run(
    trained: Trained,
    data: Dataset,
    train: Split,
    before: Mapping[str, Any],
    world: World,
    console: Console,
) -> dict[str, Any]:
    """Evaluate the encoder of a run against controls; write results.json and pictures.

    The controls are raw pixels (of sound log-mel), the same encoder untrained, and the same
    encoder trained with labels. On videos objects are followed, and the controls are the same
    encoder untrained and the first mask in every frame.

    Args:
        trained: what is evaluated.
        data: the data set of the run.
        train: the part that it was trained on.
        before: the results so far; their "cost" and "pretext" are kept.
        world: gives the device.
        console: where to report.

    Returns:
        What results.json holds.
    """
    started = time.perf_counter()
    folder, name, config, encoder = trained
    shape = shape_of(data)
    untrained = build_method(name, config, shape, world).encoder.eval()
    arms: dict[str, nn.Module | None] = {name: encoder, "random-init": untrained}
    if config.kind == "video":
        arms["identity"] = None
        how = cast(VideoConfig, config)
        sets = video_sets(data, how)
        results = evaluate_tracking(arms, sets, how, folder, world.device, console)
        results["protocol"] |= {
            "data": data.name,
            "licence": data.licence,
            "source": data.source,
            "train_videos": len(data.train),
            "test_videos": len(data.test),
        }
    else:
        arms |= plain_features(data)
        if not config.uses_labels:
            arms |= supervised_arms(folder, config, data, train, shape, world, console)
        if config.simclr_control and "simclr" not in arms and config.kind == "image":
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


def forget_seen(results: dict[str, Any], config: TrainConfig) -> None:
    """Drop a supervised control's accuracies on unseen values whose labels it was trained with."""
    held_out = getattr(config, "held_out", None)
    kept = None if held_out is None else f"unseen.{held_out.partition('=')[2]}"
    for name in results:
        if name.startswith("supervised"):
            for key in [key for key in results[name] if key.startswith("unseen.")]:
                if name != "supervised-unseen" or key != kept:
                    del results[name][key]
