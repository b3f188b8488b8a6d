"""The `sslops` command; what only prints text imports no torch."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import sslops
from sslops.training.cli import commands
from sslops.training.cli.catalogue import SUMMARIES
from sslops.training.cli.commands import columns
from sslops.training.config import RunOptions, TrainConfig, closest
from sslops.training.loggers.console import Console
from sslops.training.loggers.progress import shown_on
from sslops.training.run.packages import PIP, missing_text, need

if TYPE_CHECKING:
    from sslops.training.methods import Entry

__all__ = ["COMMANDS", "main"]

HELP = ("-h", "--help", "help")
OptionsT = TypeVar("OptionsT")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process if None.

    Returns:
        Exit code: 0; 1 for a failed run; 2 for wrong arguments; 3 where a file could not be
        written; 130 or 143 after SIGINT or SIGTERM, with a checkpoint saved; 141 where what reads
        the output has ended.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `sslops list | head`: it has read enough
        _give_up(sys.stdout)
        working = arguments[:1] in (["train"], ["ablate"], ["audit"], ["eval"])
        return _error("sslops: stopped, as nothing reads the output" if working else "", 141)
    except OSError as error:  # a full disk, a folder that may not be written to
        _give_up(sys.stdout)
        return _error(f"sslops: could not read or write a file: {error}", 3)


def _give_up(stream: TextIO) -> None:
    """Let what cannot be written go, or Python tries again at its end and returns 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in HELP:
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"sslops {sslops.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _error(f"sslops: no such command, got {name!r}{closest(name, COMMANDS)}", 2)
    try:
        with shown_on(Console()):
            return COMMANDS[name][0](rest)
    except ModuleNotFoundError as error:
        if error.name not in PIP:
            raise
        return _error(missing_text(name, [error.name]), 2)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError) as error:
        return _error(str(error), 2)
    except KeyboardInterrupt:
        return _error("sslops: stopped", 130)
    except RuntimeError as error:
        return _ended(error)


def _ended(error: RuntimeError) -> int:
    """Exit code of a run that ended early; any other error is raised again."""
    from sslops.training.engine.nonfinite import NonFiniteLoss
    from sslops.training.engine.signals import EvaluationFailed, Interrupted, ProcessLost

    if isinstance(error, Interrupted):
        return _error(f"sslops: {error}", error.exit_code)
    if isinstance(error, (NonFiniteLoss, EvaluationFailed, ProcessLost)):
        return _error(str(error), 1)
    raise error


def _usage() -> str:
    lines = ["sslops COMMAND [--help]", ""]
    lines += [f"  {name:<8}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "first steps: sslops train simclr"])


def _error(text: str, code: int) -> int:
    try:
        if text:
            print(text, file=sys.stderr, flush=True)
    except OSError:  # `2>&1 | head`: the code alone says it
        _give_up(sys.stderr)
    return code


def _train(argv: list[str]) -> int:
    if not argv or argv[0] in HELP:
        print("sslops train METHOD [--help] [--data NAME or FOLDER] [--out FOLDER] ...")
        print("sslops train --replay RUN/nonfinite.pt\n\nmethods:")
        print(columns(SUMMARIES))
        return 0 if argv else 2
    method, *flags = argv
    if method == "--replay":
        return _replay(flags)
    entry = _find("train", method)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    where, _ = first.parse_known_args(flags)
    defaults = _defaults(method, flags, RunOptions(out=where.out, resume=where.resume))
    prog, about = f"sslops train {method}", f"Train {method}."
    config, options = _parse(prog, about, entry.config, defaults, RunOptions(), flags)
    if options.dry_run:
        print(json.dumps({"method": method, **asdict(config)}, indent=2))
        return 0
    from sslops.training.run.run import execute

    execute(method, config, options, Console())
    return 0


def _replay(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "sslops train --replay", description="Make a failed step again."
    )
    parser.add_argument("file", type=Path, help="nonfinite.pt of a run folder")
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args(argv)
    need("train --replay")
    from sslops.training.experiments.replay import replay

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
    method = chosen.method
    entry = _find("ablate", method)
    prog, about = f"sslops ablate {method}", "The flags of train, for every run."
    defaults = _defaults(method, flags)
    config, options = _parse(prog, about, entry.config, defaults, RunOptions(), flags)
    from sslops.training.experiments.ablate import ablate, parse_value

    field = chosen.field.removeprefix("--").replace("-", "_")
    out = Path(options.out or f"runs/{method}-{Path(config.data).name}-{field}")
    values = [parse_value(text) for text in chosen.values]
    ablate(method, field, values, config, out, options.seeds, Console())
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
    method = chosen.method
    entry = _find("audit", method)
    from sslops.training.experiments.audit import STEPS, audit, guards_of

    guards_of(method)
    prog, about = f"sslops audit {method}", "The flags of train, for every training."
    defaults = replace(_defaults(method, flags), steps=STEPS)
    config, options = _parse(prog, about, entry.config, defaults, RunOptions(), flags)
    out = Path(options.out or f"runs/audit-{method}-{Path(config.data).name}")
    audit(method, config, out, Console(), lens=chosen.lens)
    return 0


def _plan(argv: list[str]) -> int:
    if not argv or argv[0] in HELP:
        print(
            "sslops plan METHOD [--help] [--memory GIB] [--arch A] [--image-size PX] [--batch B]"
            " ..."
        )
        return 0 if argv else 2
    method, *flags = argv
    # What it was called before train's name for it was taken.
    flags = [re.sub(r"^--image(?==|$)", "--image-size", flag) for flag in flags]
    entry = _find("plan", method)
    from sslops.training.experiments.plan.command import PlanOptions, describe

    prog, about = f"sslops plan {method}", f"Memory and time of {method}, and what makes it fit."
    defaults = _defaults(method, flags)
    config, options = _parse(prog, about, entry.config, defaults, PlanOptions(), flags)
    given = _early(flags)
    # A size alone describes images; sound and video are known by their data only.
    load = entry.config.kind != "image" or "data" in given or "size" not in given
    text, fits = describe(method, config, options, load=load)
    print(text)
    return 0 if fits else 1


def _find(command: str, method: str) -> "Entry":
    """The method, once it is known that the command's packages are there."""
    if method not in SUMMARIES:  # said without waiting for torch
        raise ValueError(f"{command}: no such method, got {method!r}{closest(method, SUMMARIES)}")
    need(command)
    from sslops.training.methods import find_method

    return find_method(method)


def _defaults(method: str, flags: list[str], options: RunOptions | None = None) -> TrainConfig:
    """The configuration that flags change: of the data set and the recipe among them."""
    from sslops.training.storage.folder import default_config

    given = _early(flags)
    given.pop("size", None)
    return default_config(method, given, options or RunOptions())


def _early(flags: list[str]) -> dict[str, Any]:
    """The flags that decide the defaults of the others, or what is loaded."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("data", "recipe", "version", "arch"):
        first.add_argument(f"--{name}")
    first.add_argument("--image-size", "--image_size", dest="size")
    known, _ = first.parse_known_args(flags)
    return {name: value for name, value in vars(known).items() if value is not None}


def _parse(
    prog: str,
    about: str,
    cls: type[TrainConfig],
    defaults: TrainConfig,
    options: OptionsT,
    flags: list[str],
) -> tuple[TrainConfig, OptionsT]:
    """Flags of the config and of the command, side by side."""
    import tyro

    flat: Any = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Flags", [("config", flat[cls]), ("options", flat[type(options)])])
    parsed: Any = tyro.cli(
        both,
        prog=prog,
        description=f"{about} The defaults shown are those of the data set's recipe.",
        args=flags,
        default=both(defaults, options),
    )
    return parsed.config, parsed.options


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
