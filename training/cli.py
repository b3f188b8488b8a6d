"""The `sslops` command."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path
from typing import Any

import sslops
from sslops.training import commands
from sslops.training.commands import columns, need
from sslops.training.config import RunOptions, TrainConfig, closest
from sslops.training.guard import EvaluationFailed, Interrupted, NonFiniteLoss, ProcessLost

__all__ = ["COMMANDS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process if None.

    Returns:
        Exit code: 0; 1 for a failed run; 2 for wrong arguments; 3 where a file could not be
        written; 130 or 143 after SIGINT or SIGTERM, with a checkpoint saved.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"sslops {sslops.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _error(f"sslops: no such command, got {name!r}{closest(name, COMMANDS)}", 2)
    try:
        return COMMANDS[name][0](rest)
    except Interrupted as stop:
        print(f"sslops: {stop}", file=sys.stderr)
        return stop.exit_code
    except (NonFiniteLoss, EvaluationFailed, ProcessLost) as error:
        return _error(str(error), 1)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError) as error:
        return _error(str(error), 2)
    except OSError as error:  # a full disk, a folder that may not be written to
        return _error(f"sslops: could not read or write a file: {error}", 3)
    except KeyboardInterrupt:
        return _error("sslops: stopped", 130)


def _usage() -> str:
    lines = ["sslops COMMAND [--help]", ""]
    lines += [f"  {name:<8}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "first steps: sslops train simclr"])


def _error(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _train(argv: list[str]) -> int:
    from sslops.training.console import Console
    from sslops.training.methods import METHODS, find_method
    from sslops.training.run import default_config, execute

    if not argv or argv[0] in ("-h", "--help"):
        print("sslops train METHOD [--help] [--data NAME or FOLDER] [--out FOLDER] ...")
        print("sslops train --replay RUN/nonfinite.pt\n\nmethods:")
        print(columns({name: entry.summary for name, entry in METHODS.items()}))
        return 0 if argv else 2
    method, *flags = argv
    if method == "--replay":
        return _replay(flags)
    entry = find_method(method)
    need("tyro", "sklearn", "safetensors", "PIL", "matplotlib")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    where, _ = first.parse_known_args(flags)
    resumed = RunOptions(out=where.out, resume=where.resume)
    defaults = default_config(method, _early(flags), resumed)
    config, options = _parse(method, entry.config, defaults, flags)
    if options.dry_run:
        print(json.dumps({"method": method, **asdict(config)}, indent=2))
        return 0
    execute(method, config, options, Console())
    return 0


def _replay(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sslops train --replay", description="Make a failed step again."
    )
    parser.add_argument("file", type=Path, help="nonfinite.pt of a run folder")
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args(argv)
    from sslops.training.console import Console
    from sslops.training.replay import replay

    return 0 if replay(chosen.file, chosen.device, Console()) else 1


def _ablate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sslops ablate",
        description="Train with several values of one setting; one table. Takes train's flags too.",
    )
    parser.add_argument("method", help="see `sslops list`")
    parser.add_argument("--field", required=True, help="setting to vary: a flag of train")
    parser.add_argument("--values", required=True, nargs="+", help="what it takes in turn")
    chosen, flags = parser.parse_known_args(argv)
    from sslops.training.ablate import ablate, parse_value
    from sslops.training.console import Console
    from sslops.training.methods import find_method

    entry = find_method(chosen.method)
    need("tyro", "sklearn", "safetensors", "PIL", "matplotlib")
    defaults = _defaults(chosen.method, flags)
    config, options = _parse(chosen.method, entry.config, defaults, flags)
    field = chosen.field.removeprefix("--").replace("-", "_")
    out = Path(options.out or f"runs/{chosen.method}-{Path(config.data).name}-{field}")
    values = [parse_value(text) for text in chosen.values]
    ablate(chosen.method, field, values, config, out, options.seeds, Console())
    return 0


def _audit(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sslops audit",
        description="Which guard of a pretext task closes which shortcut: short trainings with"
        " each on and off. Takes train's flags too.",
    )
    parser.add_argument("method", help="one with guards, such as relative-patch")
    parser.add_argument(
        "--lens",
        type=float,
        help="chromatic aberration added to colour images, 0 for none (0.02 for tiles)",
    )
    chosen, flags = parser.parse_known_args(argv)
    from sslops.training.audit import STEPS, audit, guards_of
    from sslops.training.console import Console
    from sslops.training.methods import find_method

    guards_of(chosen.method)
    need("tyro", "sklearn", "PIL")
    defaults = replace(_defaults(chosen.method, flags), steps=STEPS)
    config, options = _parse(chosen.method, find_method(chosen.method).config, defaults, flags)
    out = Path(options.out or f"runs/audit-{chosen.method}-{Path(config.data).name}")
    audit(chosen.method, config, out, Console(), lens=chosen.lens)
    return 0


def _defaults(method: str, flags: list[str]) -> TrainConfig:
    """The configuration that flags change: of the data set and the recipe among them."""
    from sslops.training.run import default_config

    return default_config(method, _early(flags), RunOptions())


def _early(flags: list[str]) -> dict[str, Any]:
    """The flags that decide the defaults of the others."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("data", "recipe", "version", "arch"):
        first.add_argument(f"--{name}")
    known, _ = first.parse_known_args(flags)
    return {name: value for name, value in vars(known).items() if value is not None}


def _parse(
    method: str, cls: type[TrainConfig], defaults: TrainConfig, flags: list[str]
) -> tuple[TrainConfig, RunOptions]:
    """Flags of the config and of the run, side by side."""
    import tyro

    flat: Any = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Train", [("config", flat[cls]), ("options", flat[RunOptions])])
    parsed: Any = tyro.cli(
        both,
        prog=f"sslops train {method}",
        description=f"Train {method}. The defaults shown are those of the data set's recipe.",
        args=flags,
        default=both(defaults, RunOptions()),
    )
    return parsed.config, parsed.options


def _plan(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("sslops plan METHOD [--help] [--memory GIB] [--arch A] [--image PX] [--batch B] ...")
        return 0 if argv else 2
    method, *flags = argv
    need("tyro", "sklearn", "PIL")
    from sslops.training.plan.command import run

    return run(method, _early(flags), flags)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train a method, evaluate it against controls, write a report"),
    "plan": (_plan, "memory and time of a configuration, and what makes it fit a device"),
    "ablate": (_ablate, "train with several values of one setting, compare them in one table"),
    "audit": (_audit, "which guard of a pretext task closes which shortcut"),
    "eval": (commands.eval_command, "evaluate a run folder again"),
    "compare": (commands.compare_command, "one table of several run folders"),
    "list": (commands.list_command, "methods, data sets, recipes"),
    "export": (commands.export_command, "the encoder of a checkpoint as .safetensors"),
    "doctor": (commands.doctor_command, "versions, kernels, what each op runs on this machine"),
    "bench": (
        commands.bench_command,
        "measure ops against other packages (from a clone of the repository)",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
