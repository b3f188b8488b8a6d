"""Sections one looks at: t-SNE, nearest neighbours, augmented views, the method's pictures."""

from collections.abc import Sequence

import numpy as np

from sslops.training.report.page import figure, legend, missing, picture, section, titled
from sslops.training.report.run_folder import Run
from sslops.training.report.svg import scatter
from sslops.training.report.tracking import FOLLOWED

__all__ = ["feature_space", "method_pictures", "neighbours", "pictures_beside"]

NEIGHBOURS = {"neighbours-before": "Before training", "neighbours": "After training"}
NEAREST = (
    "Left a test image, drawn at random, then the training images whose features are most similar "
    "(cosine)."
)
FRAMED = " Green frame: same class. Red frame with a corner: another class."
UNFRAMED = " Without labels it is for you to say whether they belong together."
LEGEND_CLASSES = 20
CAPTIONS = {
    "views": "Each column is one training image: on top as it is, below as the method sees it. The "
    "method learns that what stands in a column belongs together.",
    "frames": "Each column is one training video: the frames that colours are copied from, the "
    "frame to colour, the same as the network sees it, and the clusters of its colours.",
    "copied-colours": "Each column is one training video: a frame that colours are copied from, "
    "the frame to colour as the network sees it, with the colours it copied, and as it is.",
    "rotations": "Each column is one training image: on top as it is, below its view in the four "
    "positions that the network must tell apart.",
    "patches": "Each column is one training image: nine patches in their own colours, and below as "
    "the network sees them.",
    "patches-put-in-place": "Each column is one training image: its patches, and below each where "
    "the network puts it around the middle one.",
    "places-taken-for": "One small grid for each place around the middle, from the upper left: how "
    "often its patches are put into each place, the most frequent white.",
    "puzzles": "Each column is one training image: its tiles as the network sees them, and two of "
    "the orders it is shown.",
    "puzzles-put-back-solutions": "Each column is one training image: a puzzle, what it becomes in "
    "the order that the network names, and the solution.",
    "holes": "Each column is one training image: a view, and below what the network sees of it.",
    "from-top-input-nearest-fill-prediction-truth": "Each column is one training image: what the "
    "network sees, the hole filled with the nearest pixels, filled by the network, and the truth.",
    "image-lightness-colours-asked-for": "Each column is one training image: as it is, the "
    "lightness that the network sees, and the colours it is asked for, at their resolution.",
    "predicted-against-true": "Each column is one recording, each row a number of steps ahead: "
    "from top to bottom the times of predicting, from left to right those of what came, bright "
    "where the two fit. A network that knows is bright on a line beside the diagonal.",
    "attention": "Each column is one training image, and below it where the class token of the "
    "last block looks.",
    "attention-by-stage": "Each column is one image, and below it where the activations of each "
    "stage are large.",
    "lightness-its-colours-colours-their-lightness-true": "Each column is one training image: "
    "its lightness, the colours that one half gives it, its colours, the lightness that the other "
    "half gives them, and the image.",
}
PAINTED = "Each column is one image: without its colours, with those of the network, and as it is."


def caption(name: str) -> str:
    """What stands under a method's picture; empty for one of a method from outside."""
    if name in NEIGHBOURS:
        return NEAREST
    return PAINTED if name.startswith("grey-") else CAPTIONS.get(name, "")


def feature_space(run: Run) -> str:
    """t-SNE before and after; once more in the colours of each factor, such as the speaker."""
    factors = [name.removeprefix("labels_") for name in run.points if name.startswith("labels_")]
    return "".join(_feature_space(run, factor) for factor in ["", *factors])


def _feature_space(run: Run, factor: str) -> str:
    title = "The feature space, before and after" + (f": {factor}" if factor else "")
    suffix = f"_{factor}" if factor else ""
    pairs = [(name, run.points[name]) for name in ("before", "after") if name in run.points]
    pairs = [(name, xy) for name, xy in pairs if xy.ndim == 2 and xy.shape[1] == 2 and len(xy)]
    if not pairs:
        return section(title, missing("No t-SNE coordinates were saved (features.npz)."))
    labels = run.points.get(f"labels{suffix}")
    if labels is not None and any(len(labels) != len(xy) for _, xy in pairs):
        labels = None
    names = _class_names(run, labels, suffix)
    heads = {"before": "Untrained encoder", "after": f"After {run.method}"}
    figures = "".join(
        figure(
            heads[name],
            scatter(
                xy.astype(np.float64),
                labels,
                names if len(names) <= LEGEND_CLASSES else (),
                title=f"t-SNE of features, {heads[name]}",
            ),
        )
        for name, xy in pairs
    )
    key = ""
    if labels is not None and 0 < len(names) <= LEGEND_CLASSES:
        present = np.unique(labels)
        key = legend({names[i]: f"c{i % 20}" for i in present if i < len(names)}, dotted=True)
    coloured = "" if labels is None else f" coloured by {factor or 'class'}"
    grouped = run.config.get("group_by") == (factor or "label")  # batches were formed by it
    if coloured and run.method != "supervised" and not grouped:
        coloured += ", which neither network was shown"
    return section(
        title,
        key,
        f'<div class="charts">{figures}</div>',
        lead=f"t-SNE of {len(pairs[0][1]):,} test {run.samples}{coloured}. Neighbourhoods mean "
        "something; distances between islands and their sizes do not.",
    )


def neighbours(run: Run) -> str:
    """Nearest training images of test queries."""
    title = "Nearest neighbours"
    shown = [(name, text) for name, text in NEIGHBOURS.items() if name in run.pictures]
    if not shown and run.sound:
        return ""
    if not shown:
        return section(title, missing("No picture of neighbours was saved."))
    figures = "".join(
        figure(text, picture(run.pictures[name], f"Nearest neighbours, {text.lower()}"))
        for name, text in shown
    )
    lead = NEAREST + (FRAMED if "labels" in run.points or run.labelled else UNFRAMED)
    return section(title, f'<div class="charts">{figures}</div>', lead=lead)


def method_pictures(run: Run) -> str:
    """What the method looked at, and whatever else it drew."""
    names = [
        name for name in run.pictures if name not in NEIGHBOURS and not name.startswith(FOLLOWED)
    ]
    if not names and run.sound:
        return ""
    if not names:
        return section("What the method sees", missing("No picture of augmented images was saved."))
    figures = []
    for name in sorted(names, key=lambda n: (n != "views", n)):
        head = "Augmented views" if name == "views" else titled(name)
        figures.append(
            figure(head, picture(run.pictures[name], head, wide=True), caption(name), wide=True)
        )
    return section("What the method sees", f'<div class="charts">{"".join(figures)}</div>')


def pictures_beside(runs: Sequence[Run]) -> str:
    """Pictures of the same name below one another, without those that are alike in all runs."""
    names = sorted({name for run in runs for name in run.pictures} - {"neighbours-before"})
    sections = []
    for name in names:
        shown = [run for run in runs if name in run.pictures]
        if len({run.pictures[name] for run in shown}) < 2:
            continue
        wide = name not in NEIGHBOURS
        figures = "".join(
            figure(
                str(run.folder),
                picture(run.pictures[name], f"{titled(name)}, {run.folder}", wide=wide),
                own_settings(run, shown),
                wide=wide,
            )
            for run in shown
        )
        sections.append(
            section(titled(name), f'<div class="charts">{figures}</div>', lead=caption(name))
        )
    return "".join(sections)


def own_settings(run: Run, runs: Sequence[Run]) -> str:
    """The settings in which a run differs from one of the others of its method."""
    same = [other.config for other in runs if other.method == run.method]
    return " · ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in run.config.items()
        if any(other.get(name) != value for other in same)
    )


def _class_names(run: Run, labels: object, suffix: str) -> list[str]:
    if labels is None:
        return []
    if f"classes{suffix}" in run.points:
        return [str(name) for name in run.points[f"classes{suffix}"]]
    return [str(name) for name in run.protocol.get("class_names", ())]
