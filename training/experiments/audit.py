"""Which guard of a pretext task closes which shortcut: short trainings with guards on and off.

A shortcut is what makes the task easier without making the features better. So each guard is
switched off in turn: where the accuracy of the task rises and that of a linear probe does not, the
guard closes one. More readings say what the network went by: the accuracy of the same network once
the guard is back, or on images without the chromatic aberration that it was trained with, and how
well a tile's features tell where in the image it lay.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslops.training.augment.aberration import add_aberration
from sslops.training.augment.patches import TileRecipe, make_tiles
from sslops.training.config import TrainConfig
from sslops.training.data import Split, subset
from sslops.training.data.loader import Feed
from sslops.training.distributed.process import World, join
from sslops.training.engine.loop import Loop
from sslops.training.engine.setup import build_method, load_data, shape_of
from sslops.training.evaluate.table import align
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS, Batch, DataShape, Method, find_method
from sslops.training.storage.folder import write_json

__all__ = ["LENS", "audit", "audit_splits", "audit_table", "guards_of", "verdicts"]

LENS = 0.02  # strength of the aberration that is added to photographs
STEPS = 600  # of each training, if nothing else is asked for
LABELLED = 2500  # training images that a linear probe is fitted to
LOCATED = 500  # images whose tiles tell their place, to fit and to score
STRENGTHS = (1.0, 100.0)  # C of the classifier that reads a tile's place
PLAIN = TileRecipe(normalise=False, flip=0.0)  # tiles of methods that have none
EASIER = 0.02  # a rise of the task's accuracy that counts
LOST = 0.5  # of what is known with the guard: whoever knows less with it has learned something else
SAME = 0.01  # a change of the probe's accuracy that may be chance, in a short run of one seed


@dataclass(frozen=True)
class Images:
    """What all settings are trained and measured on."""

    train: Split
    validation: Split
    plain: tuple[Split, Split] | None  # the same without the added aberration


def guards_of(method: str) -> dict[str, dict[str, Any]]:
    """What switches off each guard of a method.

    Raises:
        ValueError: no such method, or one without guards.
    """
    guards = find_method(method).config.guards
    if not guards:
        known = [name for name, entry in METHODS.items() if entry.config.guards]
        raise ValueError(
            f"audit: method must be one with guards ({', '.join(known)}), got {method!r}"
        )
    return {name: dict(fields) for name, fields in guards.items()}


def audit(
    method: str, config: TrainConfig, out: Path, console: Console, *, lens: float | None = None
) -> dict[str, Any]:
    """Train with all guards, without each and without all; measure on validation images alone.

    Args:
        method: one with guards, see `guards_of`.
        config: with all guards on; `steps` says how short.
        out: folder for audit.json.
        console: where to report.
        lens: strength of the chromatic aberration added to all images (CIFAR-10 has little of its
            own), 0 for none; 0.02 for colour images of a method that cuts tiles if None.

    Returns:
        What audit.json holds: "settings" (a row of numbers each), "verdicts" (a sentence for each
        guard), and how it was made.

    Raises:
        ValueError: a method without guards, unlabelled data, or sound.
    """
    guards_of(method)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Some of the training images are always held out: test images choose nothing.
    data, train, validation = load_data(replace(config, knn_every=max(1, config.knn_every)))
    if validation is None:
        raise ValueError(
            "audit: needs labels and a validation part to probe features, got none of"
            f" {config.data} with validation = {config.validation}"
        )
    world = World(0, 1, join(config.device).device)
    shape = shape_of(data)
    found = audit_splits(method, config, train, validation, shape, world, console, lens=lens)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", found)
    console.print(f"\n{audit_table(found)}\n\nnumbers   {out / 'audit.json'}")
    return found


def audit_splits(
    method: str,
    config: TrainConfig,
    train: Split,
    validation: Split,
    shape: DataShape,
    world: World,
    console: Console,
    *,
    lens: float | None = None,
) -> dict[str, Any]:
    """`audit` on images at hand; writes nothing."""
    guards = guards_of(method)
    probe = build_method(method, config, shape, world)
    if lens is None:
        lens = LENS if shape.channels == 3 and hasattr(probe, "tiles") else 0.0
    images = Images(train, validation, None)
    if lens:
        seen = tuple(replace(s, images=add_aberration(s.images, lens)) for s in (train, validation))
        images = Images(seen[0], seen[1], (train, validation))
    settings: dict[str, dict[str, Any]] = {"all guards on": {}}
    settings |= {f"without {name}": fields for name, fields in guards.items()}
    if len(guards) > 1:
        settings["all guards off"] = {k: v for each in guards.values() for k, v in each.items()}
    rows = {"untrained": _measure(probe.eval(), config, images, world, pretext=False)}
    for name, fields in settings.items():
        changed = replace(config, **fields)
        trained = build_method(method, changed, shape, world)
        quiet = Console(console.stream, quiet=True)
        Loop(trained, images.train, changed, world, console=quiet).run()
        rows[name] = _measure(trained.eval(), changed, images, world, pretext=True)
        if fields:
            guarded = build_method(method, config, shape, world).eval()
            guarded.load_state_dict(trained.state_dict())
            rows[name]["guarded"] = _pretext(guarded, images.validation, config, world)
        console.print(f"{name}: task {rows[name]['pretext']:.1%}, probe {rows[name]['probe']:.1%}")
    found = {
        "method": method,
        "config": asdict(config),
        "guards": guards,
        "lens": lens,
        "train_images": len(train),
        "validation_images": len(validation),
        "settings": rows,
    }
    return {**found, "verdicts": verdicts(found)}


@torch.no_grad()
def _measure(
    method: Method, config: TrainConfig, images: Images, world: World, *, pretext: bool
) -> dict[str, Any]:
    """The numbers of one setting."""
    row: dict[str, Any] = {}
    if pretext:
        row["pretext"] = _pretext(method, images.validation, config, world)
    row |= _probe(method, config, images, world)
    row["position"], cells = _position(method, images.train, images.validation, config, world)
    row["position_chance"] = 1 / cells
    if images.plain is not None:
        row["position_without_lens"] = _position(method, *images.plain, config, world)[0]
        if pretext:
            row["pretext_without_lens"] = _pretext(method, images.plain[1], config, world)
    return row


@torch.no_grad()
def _pretext(method: Method, split: Split, config: TrainConfig, world: World) -> float:
    """Accuracy of the task on whole batches of the split."""
    feed, batch = Feed(split, world.device), min(config.batch, len(split))
    index = torch.arange(len(split) // batch * batch).view(-1, batch)
    generator = torch.Generator().manual_seed(config.seed)
    return method.measure((feed(rows) for rows in index), generator)["accuracy"]


def _probe(method: Method, config: TrainConfig, images: Images, world: World) -> dict[str, Any]:
    """Linear probes of all stages, the best one chosen on training labels."""
    from sslops.training.evaluate.stages import measure_stages

    labelled = _some(images.train, LABELLED, config.seed)
    assert labelled.labels is not None
    found = measure_stages(
        method.encoder,
        labelled,
        images.validation,
        classes=int(labelled.labels.max()) + 1,
        seed=config.seed,
        device=world.device,
    )
    return {
        "probe": found["best_stage_linear"],
        "best_stage": found["best_stage"],
        "stages": [each["linear"] for each in found["stages"]],
    }


def _position(
    method: Method, train: Split, validation: Split, config: TrainConfig, world: World
) -> tuple[float, int]:
    """How often a linear classifier names a tile's cell from its features; number of cells."""
    from sslops.training.evaluate.linear import linear_probe

    generator = torch.Generator().manual_seed(config.seed)
    x, y = _tile_features(method, _some(train, LOCATED, config.seed), generator, world)
    x_test, y_test = _tile_features(method, _some(validation, LOCATED, 0), generator, world)
    cells = int(y.max()) + 1
    found = linear_probe(x, y, x_test, y_test, classes=cells, seed=config.seed, strengths=STRENGTHS)
    return found.accuracy, cells


def _tile_features(
    method: Method, split: Split, generator: torch.Generator, world: World
) -> tuple[Tensor, Tensor]:
    """Features of every tile of the images, and its cell."""
    feed = Feed(split, world.device)
    features, cells = [], []
    for rows in torch.split(torch.arange(len(split)), 256):
        batch = feed(rows)
        tiles = _tiles(method, batch, generator)
        features.append(method.encoder(tiles.flatten(0, 1)).float())
        cells.append(torch.arange(tiles.shape[1], device=tiles.device).repeat(len(tiles)))
    return torch.cat(features), torch.cat(cells)


def _tiles(method: Method, batch: Batch, generator: torch.Generator) -> Tensor:
    """Those that the method sees; of a method that sees whole images a plain grid."""
    own = getattr(method, "tiles", None)
    if own is None:
        return make_tiles(batch.images, PLAIN, generator)
    tiles: Tensor = own(batch, generator)
    return tiles


def _some(split: Split, n: int, seed: int) -> Split:
    return split if n >= len(split) else subset(split, n, seed)


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """A sentence for each guard, and one for all of them together.

    Args:
        found: content of audit.json, without its verdicts.
    """
    rows = found["settings"]
    on = rows["all guards on"]
    names = {f"without {name}": name for name in found["guards"]}
    names["all guards off"] = "all guards together"
    return {names[key]: _verdict(on, row) for key, row in rows.items() if key in names}


def _verdict(on: Mapping[str, Any], off: Mapping[str, Any]) -> str:
    task, probe = off["pretext"] - on["pretext"], off["probe"] - on["probe"]
    change = f"off: task {_points(task)}, probe {_points(probe)}"
    lens = _by_lens(off, "pretext") - _by_lens(on, "pretext")
    if task > EASIER and lens > EASIER:
        text = f"closes a shortcut, chromatic aberration ({change}): the network trained without it"
        text += f" falls from {off['pretext']:.1%} to {off['pretext_without_lens']:.1%} on images"
        text += " without aberration"
        if probe >= SAME:
            text += "; that features are better without it is the colours' doing"
    elif task > EASIER and (probe < SAME or off["guarded"] < LOST * on["pretext"]):
        text = f"closes a shortcut ({change})"
        if off["guarded"] < off["pretext"] - EASIER:
            text += (
                f": the network trained without it falls from {off['pretext']:.1%} to"
                f" {off['guarded']:.1%} when it is back"
            )
        if probe >= SAME:
            text += ", in spite of the features of its best stage"
    elif task > EASIER:
        text = f"no shortcut: what makes the task easier makes the features better too ({change})"
    elif probe < -SAME:
        text = f"nothing to close was found, but features gain by it ({change})"
    else:
        text = f"nothing to close was found ({change})"
    return text + _place(on, off)


def _by_lens(row: Mapping[str, Any], key: str) -> float:
    """What an accuracy owes to the chromatic aberration that was added."""
    return float(row[key] - row.get(f"{key}_without_lens", row[key]))


def _place(on: Mapping[str, Any], off: Mapping[str, Any]) -> str:
    """What a tile's features tell of its place, where the guard changes that."""
    if off["position"] - on["position"] <= EASIER:
        return ""
    text = f"; a tile's place is read better without it, {off['position']:.1%} against"
    text += f" {on['position']:.1%} (chance {on['position_chance']:.1%})"
    if _by_lens(off, "position") - _by_lens(on, "position") > EASIER:
        text += f", and {off['position_without_lens']:.1%} on images without aberration"
    return text


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points"


def audit_table(found: Mapping[str, Any]) -> str:
    """The settings as rows, in percent, and the verdicts below.

    Columns: accuracy of the task; of the same network with all guards, and on images without the
    added aberration; linear probe of the stage that the training labels chose, and of every stage;
    how often a tile's place is named from its features, and without the aberration.
    """
    rows = found["settings"]
    stages = len(next(iter(rows.values()))["stages"])
    lens = any("position_without_lens" in row for row in rows.values())
    header = ["", "task", "guarded", *(["no lens"] if lens else []), "probe"]
    header += [f"stage {i + 1}" for i in range(stages)]
    lines = [[*header, "place", *(["no lens"] if lens else [])]]
    for name, row in rows.items():
        cells = [row.get("pretext"), row.get("guarded")]
        cells += [row.get("pretext_without_lens")] if lens else []
        cells += [row["probe"], *row["stages"], row["position"]]
        cells += [row["position_without_lens"]] if lens else []
        lines.append([name, *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells)])
    text = [align(lines), ""]
    text += [f"{name}: {sentence}" for name, sentence in found["verdicts"].items()]
    return "\n".join(text)
