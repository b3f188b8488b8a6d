"""Networks inside of modules that only pass calls on: DDP, torch.compile, FSDP, checkpointing."""

from torch import nn

__all__ = ["plain_name", "unwrapped"]

# DistributedDataParallel and DataParallel, torch.compile, FullyShardedDataParallel, checkpointing
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside of any number of wrappers, or `module`.

    A wrapper holds one module under a name of theirs and nothing else, so that leaving its name
    out never gives two members of one network the same name.
    """
    while len(module._modules) == 1 and not module._parameters and not module._buffers:
        ((name, inner),) = module._modules.items()
        if name not in WRAPPERS or inner is None:
            break
        module = inner
    return module


def plain_name(name: str) -> str:
    """The name of a member of a state dict without those of wrappers."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
