"""A method over several processes: replicated or sharded, batch norm over all rows."""

from typing import Literal

from torch import nn

from sslops.training.distributed.process import World
from sslops.training.distributed.sync_bn import convert_sync_batchnorm

__all__ = ["parallelise"]


def parallelise(method: nn.Module, world: World, how: Literal["ddp", "fsdp"]) -> nn.Module:
    """What to call instead of `method`, which is changed in place.

    Batch norm takes its statistics over all processes: local ones would tell a row which rows
    share its process, a shortcut for the loss. A method that keeps them local on purpose (MoCo,
    which shuffles) says so by its attribute `local_bn`; then each process keeps its own.

    Args:
        method: on its device.
        world: this process among all; alone, nothing changes.
        how: "ddp" keeps everything on every process, "fsdp" divides parameters, gradients and
            optimiser state.
    """
    if world.size == 1:
        return method
    local = getattr(method, "local_bn", False)
    if not local:
        convert_sync_batchnorm(method, cuda=world.device.type == "cuda")
    if how == "fsdp":
        from sslops.training.distributed.fsdp import shard

        return shard(method, world)
    replicated = nn.parallel.DistributedDataParallel(method)
    if local:
        replicated.broadcast_buffers = False  # the argument of this name is deprecated
    return replicated
