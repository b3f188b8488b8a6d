"""Processes on this machine that find each other as those that torchrun starts."""

import os
import socket

import torch
import torch.multiprocessing as mp

__all__ = ["free_port", "spawn"]


def free_port():
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def spawn(worker, *args, count=2):
    """Run `worker(rank, *args)` in `count` processes of one thread each, and wait for them.

    Args:
        worker: a function of a module; it joins the process group itself.
        args: what can be pickled.
        count: processes.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of the first that failed.
    """
    mp.spawn(_run, (worker, free_port(), count, args), nprocs=count)


def _run(rank, worker, port, count, args):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    worker(rank, *args)
