"""Batch norm whose statistics are those of a group of the batch, as on several GPUs, on one."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SplitBatchNorm2d", "groups_here", "split_batch_norm"]


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that normalises each of `groups` equal runs of a training batch by itself.

    The running statistics are an ordinary batch norm's: they move by the mean over the groups, and
    in eval mode nothing is split. Names in `state_dict` are those of `nn.BatchNorm2d`.

    Args:
        features: C.
        groups: into how many runs of neighbouring images a batch falls, at least 1.
        eps, momentum: as of `nn.BatchNorm2d`.

    Raises:
        ValueError: groups below 1; in `forward`, a batch that is no multiple of `groups`, or
            groups of one value a channel.

    Source:
        He et al. 2020, arXiv:1911.05722, section 3.3, for statistics a GPU; their notebook on
        CIFAR-10 does it on one.
    """

    def __init__(
        self, features: int, groups: int, *, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(features, eps, momentum)
        if groups < 1:
            raise ValueError(f"SplitBatchNorm2d: groups must be at least 1, got {groups}")
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> same shape."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        if len(x) % self.groups:
            raise ValueError(
                f"SplitBatchNorm2d: the batch must be a multiple of {self.groups} groups, got"
                f" {len(x)} images"
            )
        if len(x) // self.groups * x[0, 0].numel() < 2:
            raise ValueError(
                f"SplitBatchNorm2d: each of {self.groups} groups needs 2 values a channel, got one"
                f" image of {x.shape[2]} x {x.shape[3]}: lower --bn-splits or raise --batch"
            )
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        means = self.running_mean.repeat(self.groups, 1)  # [groups, C]
        variances = self.running_var.repeat(self.groups, 1)
        out = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(x.chunk(self.groups), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
            self.num_batches_tracked += 1
        return torch.cat(out)

    def extra_repr(self) -> str:
        """The hyper-parameters, as `print(model)` shows them."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, groups={self.groups}"


def split_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Turn every `nn.BatchNorm2d` inside `module` into a split one that keeps its tensors.

    Returns:
        `module`, changed in place; the new layer where it is itself a batch norm.
    """
    if type(module) is nn.BatchNorm2d:
        return _split(module, groups)
    made: dict[nn.Module, nn.Module] = {}  # a layer may have two names
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                if child not in made:
                    made[child] = _split(child, groups)
                setattr(parent, name, made[child])
    return module


def _split(module: nn.BatchNorm2d, groups: int) -> SplitBatchNorm2d:
    momentum = cast(float, module.momentum)
    split = SplitBatchNorm2d(module.num_features, groups, eps=module.eps, momentum=momentum)
    split._parameters, split._buffers = module._parameters, module._buffers
    return split.train(module.training)


def groups_here(groups: int, batch: int, processes: int) -> int:
    """Groups of one process, where `groups` are meant to divide the batch of all `processes`.

    Raises:
        ValueError: groups below 1, or a process's part of the batch is no multiple of its groups.
    """
    here = max(1, groups // processes)
    if groups < 1 or batch // processes % here:
        raise ValueError(
            f"bn_splits: must be at least 1 and divide the batch of {batch}, got {groups}"
        )
    return here
