"""Tile sizes of the similarity kernels, and which case of them a call launches.

Nothing here was measured: sizes, warps, stages and `maxnreg` are candidates, chosen by registers,
spills and shared memory of the compiled code (docs/tuning.md).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslops.kernels._tile import LOG2E, WHOLE_D

FIXED_LIMIT = 88.0  # of scale * log2(e), a temperature of 0.0164: see HEADROOM and SPLIT
# float32 is ONLINE always: its products, not its exponentials, take the time.
FIXED_DTYPES = (torch.float16, torch.bfloat16)
MAX_ROWS = 1 << 24  # more terms could overflow a sum with the fixed offset


class Tile(NamedTuple):
    """Tile sizes of one configuration."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    BLOCK_D: int  # 0 in the forward pass
    num_warps: int
    num_stages: int
    maxnreg: int | None = None  # 128 where two programs of 8 warps then share a multiprocessor


# (pass, case or input precision, D_pad) -> family -> sizes. "sm_80" must fit the 99 KiB of shared
# memory that sm_86, sm_89 and sm_120 have. ONLINE walks over any width; D_pad only sets BLOCK_D.
TABLE: dict[tuple[str, str, int], dict[str, Tile]] = {
    ("fwd", "fixed", 64): {
        "sm_80": Tile(128, 128, 64, 0, 8, 2),
        "sm_90": Tile(128, 128, 64, 0, 8, 3, 128),
        "sm_100": Tile(128, 64, 64, 0, 8, 3),
        "hip": Tile(64, 64, 64, 0, 4, 2),
    },
    ("fwd", "fixed", 128): {
        "sm_80": Tile(128, 128, 128, 0, 8, 2),
        "sm_90": Tile(128, 128, 128, 0, 8, 2, 128),
        "sm_100": Tile(128, 64, 128, 0, 8, 2),
        "hip": Tile(64, 64, 128, 0, 4, 2),
    },
    ("fwd", "fixed", 256): {
        "sm_80": Tile(64, 64, 256, 0, 4, 2),
        "sm_90": Tile(128, 64, 256, 0, 8, 2),
        "sm_100": Tile(64, 64, 256, 0, 8, 2),
        "hip": Tile(64, 64, 256, 0, 4, 2),
    },
    ("fwd", "half", 0): {
        "sm_80": Tile(128, 128, 64, 0, 8, 2),
        "sm_90": Tile(128, 64, 64, 0, 8, 3, 128),
        "sm_100": Tile(128, 64, 64, 0, 8, 3),
        "hip": Tile(128, 128, 32, 0, 8, 2),
    },
    ("fwd", "tf32", 0): {
        "sm_80": Tile(128, 64, 32, 0, 8, 3),
        "sm_90": Tile(128, 64, 32, 0, 8, 3),
        "sm_100": Tile(128, 64, 32, 0, 8, 3),
    },
    ("fwd", "ieee", 0): {
        "sm_80": Tile(64, 64, 32, 0, 4, 2),
        "sm_90": Tile(64, 64, 32, 0, 4, 2),
        "sm_100": Tile(64, 64, 32, 0, 4, 2),
        "hip": Tile(64, 64, 32, 0, 4, 2),
    },
    ("bwd", "fixed", 64): {
        "sm_80": Tile(128, 64, 64, 64, 4, 3),
        "sm_90": Tile(128, 128, 64, 64, 8, 3),
        "sm_100": Tile(128, 64, 64, 64, 8, 3),
        "hip": Tile(128, 64, 64, 64, 8, 2),
    },
    ("bwd", "fixed", 128): {
        "sm_80": Tile(128, 64, 128, 128, 8, 2),
        "sm_90": Tile(128, 128, 128, 128, 8, 2),
        "sm_100": Tile(128, 128, 128, 128, 8, 2),
        "hip": Tile(128, 64, 128, 128, 8, 2),
    },
    ("bwd", "fixed", 256): {
        "sm_80": Tile(64, 64, 256, 256, 8, 2),
        "sm_90": Tile(128, 64, 256, 256, 8, 2),
        "sm_100": Tile(128, 64, 256, 256, 8, 2),
        "hip": Tile(64, 32, 256, 256, 8, 2),
    },
    # backward kernels that hold more than nt_xent's: a running maximum, labels, a logarithm
    ("heavy", "fixed", 64): {
        "sm_80": Tile(128, 64, 64, 64, 4, 3),
        "sm_90": Tile(128, 128, 64, 64, 8, 3),
        "sm_100": Tile(128, 64, 64, 64, 8, 3),
        "hip": Tile(64, 64, 64, 64, 4, 2),
    },
    ("heavy", "fixed", 128): {
        "sm_80": Tile(128, 64, 128, 128, 8, 2),
        "sm_90": Tile(128, 128, 128, 128, 8, 2),
        "sm_100": Tile(128, 64, 128, 128, 8, 2),
        "hip": Tile(64, 64, 128, 128, 4, 2),
    },
    ("heavy", "fixed", 256): {
        "sm_80": Tile(64, 64, 256, 256, 8, 2),
        "sm_90": Tile(128, 64, 256, 256, 8, 2),
        "sm_100": Tile(64, 64, 256, 256, 8, 2),
        "hip": Tile(64, 32, 256, 256, 8, 2),
    },
    ("heavy", "half", 64): {
        "sm_80": Tile(128, 64, 64, 64, 8, 2),
        "sm_90": Tile(128, 64, 64, 64, 8, 2),
        "sm_100": Tile(128, 64, 64, 64, 8, 2),
        "hip": Tile(64, 64, 64, 64, 8, 2),
    },
    ("heavy", "half", 256): {
        "sm_80": Tile(64, 64, 64, 256, 8, 2),
        "sm_90": Tile(128, 64, 64, 256, 8, 2),
        "sm_100": Tile(64, 64, 64, 256, 8, 2),
        "hip": Tile(64, 32, 64, 256, 8, 2),
    },
    ("bwd", "half", 64): {
        "sm_80": Tile(128, 64, 64, 64, 8, 2),
        "sm_90": Tile(128, 64, 64, 64, 8, 2),
        "sm_100": Tile(128, 64, 64, 64, 8, 2),
        "hip": Tile(64, 64, 64, 64, 8, 2),
    },
    ("bwd", "half", 256): {
        "sm_80": Tile(64, 64, 64, 256, 8, 2),
        "sm_90": Tile(128, 64, 64, 256, 8, 2),
        "sm_100": Tile(128, 64, 64, 256, 8, 2),
        "hip": Tile(64, 32, 64, 256, 8, 2),
    },
    ("bwd", "tf32", 128): {
        "sm_80": Tile(64, 64, 32, 128, 8, 2),
        "sm_90": Tile(128, 64, 32, 128, 8, 2),
        "sm_100": Tile(128, 64, 32, 128, 8, 2),
    },
    ("bwd", "ieee", 128): {
        "sm_80": Tile(64, 32, 16, 128, 8, 2),
        "sm_90": Tile(64, 32, 16, 128, 8, 2),
        "sm_100": Tile(64, 32, 16, 128, 8, 2),
        "hip": Tile(64, 32, 32, 128, 8, 2),
    },
}


def options(
    stage: str,
    case: tuple[bool, torch.dtype, str, int],
    arch: str,
    narrow: bool = False,
    raised: bool = False,
) -> dict[str, Any]:
    """Constexprs and launch options of a "fwd", "bwd" or "heavy" tile kernel.

    Args:
        stage: row of the table.
        case: whether ONLINE, dtype and precision of the products, columns of the padded copy.
        arch: column of the table, from `family`.
        narrow: half as many columns a tile, for a kernel that holds more masked copies of it.
        raised: allow all registers, for a kernel that holds a little more than the table's own.
    """
    online, dtype, precision, D_pad = case
    kind = "fixed" if not online else precision if dtype is torch.float32 else "half"
    width = D_pad
    if stage == "heavy" and dtype is torch.float32:
        stage = "bwd"
    if online:  # the widest row of the table that D_pad fills, else the narrowest
        widths = sorted(w for s, k, w in TABLE if (s, k) == (stage, kind))
        width = max((w for w in widths if w <= D_pad), default=widths[0])
    chosen = TABLE[stage, kind, width][arch]._asdict()
    if stage == "fwd":
        del chosen["BLOCK_D"]
    if narrow:
        chosen["BLOCK_N"] //= 2
    if arch == "hip" or not (narrow or raised):
        if chosen["maxnreg"] is None:
            del chosen["maxnreg"]
    else:
        chosen["maxnreg"] = 255  # or ptxas spills some, for the sake of one more program beside it
    return {"ONLINE": online, "WHOLE": not online, "PRECISION": precision, **chosen}


def cases(
    scale: Tensor | None, scale_factor: float, normalize: bool, D: int, dtype: torch.dtype
) -> tuple[list[bool], float]:
    """Which cases to launch (ONLINE or not), and the limit by which the device chooses.

    With a tensor scale both are launched, and the device leaves one of them at once.
    """
    if not normalize or D > WHOLE_D or dtype not in FIXED_DTYPES:
        return [True], -1.0
    if scale is not None:
        return [False, True], FIXED_LIMIT
    return ([True], -1.0) if scale_factor * LOG2E.value > FIXED_LIMIT else ([False], float("inf"))
