"""Train, be killed, go on, again and again: run by test_survival.py in a process of its own.

    python -m tests.training._survival FOLDER KILLS

Every attempt is a fork, so that the imports are paid for once. Prints what happened as JSON.
"""

import functools
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from sslops.training.loggers.console import Console
from sslops.training.methods import Method
from sslops.training.methods.simclr import SimCLR
from sslops.training.run import run
from sslops.training.storage import checkpoint
from sslops.training.storage.folder import has_checkpoint

SETTINGS = {
    "data": "digits", "width": 8, "proj_hidden": 32, "proj_dim": 16, "batch": 400, "steps": 300,
    "log_every": 1, "knn_every": 0, "checkpoint_every": 1, "evaluate": False, "views": "grey",
}  # fmt: skip


def attempt(folder: Path) -> int:
    """Start a child that trains in `folder`, or goes on there."""
    pid = os.fork()
    if pid == 0:
        try:
            again = has_checkpoint(folder)
            options = {"resume": again, "overwrite": not again}
            run.train("simclr", out=folder, console=Console(io.StringIO()), **options, **SETTINGS)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def wait_for_records(path: Path, number: int, pid: int) -> None:
    """Until the child has written `number` records of its own to `path`, or has ended.

    The first thing a resumed run does with the file is to cut it back to its checkpoint.
    """
    before = path.stat().st_mtime_ns if path.exists() else 0
    written, size = -1, 0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if path.exists() and path.stat().st_mtime_ns != before and path.stat().st_size != size:
            written, size = written + 1, path.stat().st_size
            if written >= number:
                return
        time.sleep(0.001)


def main(root: Path, kills: int) -> None:
    # Imports, data and first-time costs, so that the children spend their time in the loop.
    quiet = Console(io.StringIO())
    run.train("simclr", out=root / "warm", console=quiet, **{**SETTINGS, "steps": 3})
    whole = os.waitpid(attempt(root / "whole"), 0)[1]
    run.load_data = functools.cache(run.load_data)
    SimCLR.pictures = Method.pictures  # none
    moments = random.Random(0)
    folder = root / "killed"
    ends, steps = [], []
    for _ in range(kills):
        pid = attempt(folder)
        if moments.random() < 0.7:  # among steps and checkpoints; else while it opens the folder
            wait_for_records(folder / "metrics.jsonl", moments.randrange(12), pid)
        time.sleep(moments.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        ends.append(os.waitpid(pid, 0)[1])
        if has_checkpoint(folder):  # it must be whole
            steps.append(checkpoint.load(folder / "checkpoint" / "last.pt")["step"])
    ends.append(os.waitpid(attempt(folder), 0)[1])
    left = sorted(str(path.relative_to(folder)) for path in folder.glob("**/*.tmp"))
    print(json.dumps({"whole": whole, "ends": ends, "steps": steps, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
