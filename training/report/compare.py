"""Several runs side by side, as text."""

from collections.abc import Sequence
from pathlib import Path

from sslops.training.evaluate.table import align
from sslops.training.report.run_folder import read_run

__all__ = ["compare"]


def compare(run_dirs: Sequence[str | Path]) -> str:
    """One row a run: its method's accuracies, clustering, loss, time and speed.

    Rows that were measured on other data or with other sample sizes are marked, as their numbers
    cannot be set side by side.

    Raises:
        ValueError: no folders.
        FileNotFoundError: a folder is no run folder.
    """
    if not run_dirs:
        raise ValueError("compare: needs at least one run folder, got none")
    runs = [read_run(Path(folder)) for folder in run_dirs]
    counts = sorted({int(n) for run in runs for n in run.arms.get(run.method, {}).get("few", {})})
    header = ["run", "method", "data", *(f"{n} label{'s' * (n > 1)}" for n in counts)]
    header += ["kNN", "linear", "NMI", "loss (chance)", "minutes", "images/s"]
    first = _basis(runs[0].protocol)
    lines, marked = [header], False
    for run in runs:
        own = run.arms.get(run.method, {})
        differs = bool(own) and _basis(run.protocol) != first
        marked |= differs
        few = own.get("few", {})
        loss, chance = run.last("loss"), run.last("chance")
        seconds = run.cost.get("seconds")
        rate = run.cost.get("images_per_second", run.last("images_per_second"))
        lines.append(
            [
                str(run.folder) + (" *" if differs else ""),
                run.method,
                run.data,
                *(
                    f"{100 * few[str(n)]['mean']:.1f} ± {100 * few[str(n)]['sd']:.1f}"
                    if str(n) in few
                    else "-"
                    for n in counts
                ),
                f"{100 * own['knn']:.1f}" if "knn" in own else "-",
                f"{100 * own['linear']:.1f}" if "linear" in own else "-",
                f"{own['nmi']:.3f}" if "nmi" in own else "-",
                "-" if loss is None else f"{loss:.3f}" + (f" ({chance:.2f})" if chance else ""),
                "-" if seconds is None else f"{seconds / 60:.1f}",
                "-" if rate is None else f"{rate:,.0f}",
            ]
        )
    text = align(lines)
    if marked:
        text += "\n* measured on other data, images or seed than the first: not comparable with it"
    return text


def _basis(protocol: object) -> tuple[object, ...]:
    get = getattr(protocol, "get", lambda name: None)
    return tuple(get(name) for name in ("data", "train_images", "test_images"))
