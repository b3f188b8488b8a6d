"""`python -m bench` and, from a clone, `sslops bench`; its help imports no torch."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def parser() -> argparse.ArgumentParser:
    """The flags; lists are joined by commas."""
    flags = argparse.ArgumentParser(
        "sslops bench",
        description="Measure ops against what else there is. Lists are joined by commas.",
    )
    flags.add_argument(
        "--op", type=_names, help="such as nt_xent,clip_loss; default: all that --list names"
    )
    flags.add_argument(
        "--size", type=_names, default=(), help="such as 8192x128; default: the op's"
    )
    flags.add_argument("--dtype", type=_names, default=(), help="such as float32,float32/bfloat16")
    flags.add_argument(
        "--providers", type=_names, help="such as sslops,eager; default: all that --list names"
    )
    flags.add_argument(
        "--modes",
        type=_names,
        default=("both", "forward", "backward"),
        help="of both, forward, backward and graph (replays of a CUDA graph)",
    )
    flags.add_argument("--device", default="auto", help="auto: cuda where there is one, else cpu")
    flags.add_argument("--rounds", type=int, default=50, help="at most, of each case and mode")
    flags.add_argument("--seconds", type=float, default=3.0, help="for the rounds of one mode")
    flags.add_argument("--budget", type=float, default=float("inf"), help="seconds for everything")
    flags.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results")
    flags.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    flags.add_argument(
        "--flush", action=argparse.BooleanOptionalAction, default=True, help="empty the GPU's L2"
    )
    flags.add_argument("--quick", action="store_true", help="tiny sizes: that everything runs")
    flags.add_argument(
        "--beside", default="", help="what else runs meanwhile, such as build: for the rows alone"
    )
    flags.add_argument("--list", action="store_true", help="who can run here, and why not")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the grid.

    Returns:
        Exit code: 0; 1 if a result was wrong, this package failed or nothing was measured; 2 for
        wrong arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    import torch

    from bench.cases import OPS
    from bench.grid import Options, find_device, run
    from bench.providers import PROVIDERS

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = Options(
        args.op or tuple(OPS), args.size, args.dtype, args.providers or tuple(PROVIDERS),
        args.modes, device, args.rounds, args.seconds, args.budget, args.memory, args.flush,
        args.quick, shlex.join(["sslops", "bench", *arguments]), args.beside,
    )  # fmt: skip
    try:
        if args.list:
            for name, provider in PROVIDERS.items():
                reason = provider.available(find_device(device))
                print(f"{name:<26}{reason or 'runs ' + ', '.join(provider.ops)}")
            return 0
        rows = run(options, args.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(rows)} rows in {args.out}/grid.jsonl and grid.csv")
    if all(row["status"] != "ok" for row in rows):
        why = "; ".join(dict.fromkeys(str(row["reason"]) for row in rows))
        why = why or "no provider has these ops in these modes"
        print(f"bench: nothing was measured: {why}", file=sys.stderr)
        return 1
    ours = [row for row in rows if (row["provider"] or "").startswith("sslops")]
    return int(any(row["status"] in ("wrong", "failed") for row in ours))


if __name__ == "__main__":
    sys.exit(main())
