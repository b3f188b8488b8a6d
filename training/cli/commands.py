"""The smaller commands of `sslops`: what comes after and beside training."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sslops.training.cli.catalogue import SUMMARIES
from sslops.training.run.packages import need

__all__ = [
    "bench_command",
    "columns",
    "compare_command",
    "doctor_command",
    "eval_command",
    "export_command",
    "list_command",
]


def eval_command(argv: list[str]) -> int:
    """Evaluate a run folder again."""
    parser = argparse.ArgumentParser("sslops eval", description="Evaluate a run again.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--eval-data", help="probe on the labels of this data set or folder instead of the run's"
    )
    parser.add_argument("--eval-root", help="where the files of that data set lie")
    parser.add_argument(
        "--protocol",
        default="frozen",
        choices=["frozen", "rotnet"],
        help="frozen features against controls, or few labels on frozen first blocks (RotNet)",
    )
    rotnet = parser.add_argument_group("of --protocol rotnet")
    rotnet.add_argument("--freeze", type=int, default=2, help="blocks that stay as they are")
    rotnet.add_argument("--labels", type=int, nargs="+", default=[20, 100, 400, 1000, 5000],
                        help="labels a class")  # fmt: skip
    rotnet.add_argument("--steps", type=int, default=400, help="of every arm")
    chosen = parser.parse_args(argv)
    need("eval")
    from sslops.training.cli.afterwards import evaluate_again, evaluate_elsewhere
    from sslops.training.loggers.console import Console

    if chosen.protocol == "rotnet":
        from sslops.training.cli.afterwards import evaluate_few_labels
        from sslops.training.evaluate.rotnet import RotNetOptions

        options = RotNetOptions(chosen.freeze, tuple(chosen.labels), chosen.steps)
        evaluate_few_labels(chosen.run, options, chosen.device, Console())
    elif chosen.eval_data:
        evaluate_elsewhere(chosen.run, chosen.eval_data, chosen.eval_root, chosen.device, Console())
    else:
        evaluate_again(chosen.run, chosen.device, Console())
    return 0


def compare_command(argv: list[str]) -> int:
    """One table of several runs."""
    parser = argparse.ArgumentParser("sslops compare", description="One table of several runs.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument(
        "--out", type=Path, help="also write the table and its figure into this HTML file"
    )
    chosen = parser.parse_args(argv)
    need("compare")
    from sslops.training.report.compare import compare, write_comparison
    from sslops.training.report.run_folder import is_run

    # A pattern such as runs/* names whatever lies there; what does not exist was misspelt.
    others = [path for path in chosen.runs if path.exists() and not is_run(path)]
    runs = [path for path in chosen.runs if path not in others] or chosen.runs
    print(compare(runs))
    if chosen.out is not None:
        print(f"figure    {write_comparison(runs, chosen.out)}")
    if others:
        names = ", ".join(map(str, others))
        print(f"sslops compare: left out, as they are no run folders: {names}", file=sys.stderr)
    return 0


def list_command(argv: list[str]) -> int:
    """What there is."""
    argparse.ArgumentParser("sslops list", description="What there is.").parse_args(argv)
    from sslops.training import augment, data, models
    from sslops.training.recipes import RECIPES

    sections = {
        "methods": SUMMARIES,
        "data": dict.fromkeys([*data.names(), "PATH/TO/FOLDER"], ""),
        "recipes": {name: recipe.source for name, recipe in RECIPES.items()},
        "views": dict.fromkeys(augment.RECIPES, ""),
        "encoders": dict.fromkeys(models.encoder_names(), ""),
    }
    for title, entries in sections.items():
        print(f"{title}\n{columns(entries)}")
    return 0


def columns(entries: Mapping[str, str]) -> str:
    """A line for each name, all texts below one another."""
    width = max(map(len, entries), default=0) + 2
    return "\n".join(f"  {name:<{width}}{text}".rstrip() for name, text in entries.items())


def doctor_command(argv: list[str]) -> int:
    """What this machine can run."""
    parser = argparse.ArgumentParser("sslops doctor", description="What this machine can run.")
    parser.parse_args(argv)
    from sslops.doctor import report

    print(report())
    return 0


def bench_command(argv: list[str]) -> int:
    """The benchmarks, from a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__init__.py").is_file():
        print(
            "sslops bench: the benchmarks are in the repository, not in the installed package:"
            " clone it, `pip install -e .` there, and run `sslops bench` or `make bench`",
            file=sys.stderr,
        )
        return 1
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "bench", *argv]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode


def export_command(argv: list[str]) -> int:
    """An encoder from a checkpoint."""
    parser = argparse.ArgumentParser(
        "sslops export", description="Write the encoder of a checkpoint as .safetensors and .json."
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--checkpoint", default="last", choices=["last", "best"])
    parser.add_argument(
        "--out",
        "--to",
        type=Path,
        metavar="FILE.safetensors",
        help="file to write, and FILE.json beside it; RUN/encoder.safetensors if unset",
    )
    chosen = parser.parse_args(argv)
    path = chosen.out or chosen.run / "encoder.safetensors"
    if path.suffix != ".safetensors":
        raise ValueError(f"export: the file must end in .safetensors, the one format, got {path}")
    need("export")
    from sslops.training.cli.afterwards import export_checkpoint

    print(export_checkpoint(chosen.run, chosen.checkpoint, path))
    return 0
