"""ResNet-18 and ResNet-50 without their classifier."""

from itertools import accumulate
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.models.layers import Standardise, conv_bn_relu, init_kaiming, run_stages

__all__ = ["ResNet"]

EXPANSION = {18: 1, 50: 4}  # output channels of a block over its width
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 where `expansion` is 4.

    The stride sits in the 3x3 convolution of a bottleneck, as in all current implementations
    (the paper has it in the first 1x1). Weights saved when the last batch norm had a second name,
    as the last member of `branch`, load too.
    """

    def __init__(self, dim_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        dim_out = width * expansion
        if expansion == 1:
            head = [conv_bn_relu(dim_in, width, stride=stride)]
            last = nn.Conv2d(width, dim_out, 3, padding=1, bias=False)
        else:
            head = [
                conv_bn_relu(dim_in, width, kernel=1),
                conv_bn_relu(width, width, stride=stride),
            ]
            last = nn.Conv2d(width, dim_out, 1, bias=False)
        self.last_bn = nn.BatchNorm2d(dim_out)
        self.branch = nn.Sequential(*head, last)
        self.register_load_state_dict_pre_hook(_drop_second_name)  # type: ignore[no-untyped-call]
        self.shortcut = nn.Sequential()
        if stride != 1 or dim_in != dim_out:
            self.shortcut.extend(
                [nn.Conv2d(dim_in, dim_out, 1, stride, bias=False), nn.BatchNorm2d(dim_out)]
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim_in, H, W] -> [B, dim_out, H / stride, W / stride]."""
        return F.relu(self.last_bn(self.branch(x)) + self.shortcut(x), inplace=True)


def _drop_second_name(block: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Leave `branch.N.*` of the last batch norm out, which is `last_bn.*` as well."""
    second = f"{prefix}branch.{len(cast(Block, block).branch)}."
    for name in [name for name in state if name.startswith(second)]:
        del state[name]


class ResNet(nn.Module):
    """Features after global average pooling: 512 wide for depth 18, 2048 for 50.

    Args:
        channels: of the images.
        depth: 18 or 50.
        width: channels of the first stage; 64 in the paper.
        small_stem: 3x3 at stride 1 without pooling, for images up to 64 px; otherwise 7x7 at
            stride 2 and 3x3 max-pooling at stride 2.
        zero_init: start the last BN of every block at zero, so that each block is the identity.

    Source:
        He et al. 2016, arXiv:1512.03385; small stem after Chen et al. 2020, arXiv:2002.05709,
        appendix B.9; zero start after Goyal et al. 2017, arXiv:1706.02677, section 5.1.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        *,
        width: int = 64,
        small_stem: bool = False,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        self.depths = DEPTHS[depth]
        self.standardise = Standardise(channels)
        self.stem = conv_bn_relu(channels, width, kernel=3 if small_stem else 7,
                                 stride=1 if small_stem else 2)  # fmt: skip
        if not small_stem:
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential()
        expansion, dim = EXPANSION[depth], width
        for stage, blocks in enumerate(self.depths):
            for index in range(blocks):
                stride = 2 if stage and index == 0 else 1
                self.stages.append(Block(dim, width << stage, stride, expansion))
                dim = (width << stage) * expansion
        self.dim = dim
        init_kaiming(self)
        for block in self.stages:
            if zero_init and isinstance(block, Block):
                nn.init.zeros_(block.last_bn.weight)

    def stage_modules(self) -> list[nn.Module]:
        """The stem, and the blocks of each of the four resolutions."""
        ends = list(accumulate(self.depths))
        parts = [self.stages[end - n : end] for n, end in zip(self.depths, ends, strict=True)]
        return [self.stem, *parts]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] in [0, 1] -> the output of every stage, [B, c, h, w]."""
        return run_stages(self.standardise(x), self.stage_modules())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, dim]."""
        x = self.stages(self.stem(self.standardise(x)))
        return x.mean((2, 3))
