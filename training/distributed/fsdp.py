"""FSDP2: parameters, gradients and optimiser state divided among the processes."""

from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sslops.training.distributed.process import World

__all__ = ["full_state", "shard"]


def shard(method: nn.Module, world: World) -> nn.Module:
    """Divide a method's parameters: a unit for each block of a network, each network, the rest.

    A unit's parameters are whole only while it is called. A recurrent layer is one of its own, as
    its network may be asked for its frames and not be called itself.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in method.modules():
        if "inplace" in vars(module):  # on a view it would undo the hook for the way back
            vars(module)["inplace"] = False
    for parameter in method.parameters():  # channels-last ones cannot be divided
        parameter.data = parameter.data.contiguous()
    for network in method.children():
        if not any(True for _ in network.parameters()):
            continue
        for blocks in network.modules():
            if blocks is network:
                continue
            for block in _units(blocks):
                if any(True for _ in block.parameters()) and not _divided(block):
                    fully_shard(block, mesh=mesh)
        if not _divided(network):
            fully_shard(network, mesh=mesh)
    fully_shard(method, mesh=mesh)
    return method


def _units(module: nn.Module) -> list[nn.Module]:
    """What of a module is called by itself: the members of a container, a recurrent layer."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return list(module)
    return [module] if isinstance(module, nn.RNNBase) else []


def _divided(module: nn.Module) -> bool:
    """Whether every parameter of `module` already belongs to a unit."""
    return all(hasattr(parameter, "to_local") for parameter in module.parameters())


def full_state(module: nn.Module) -> dict[str, Any]:
    """Whole tensors on the CPU of process 0, nothing elsewhere; every process must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(module, options=options)
