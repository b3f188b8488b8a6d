"""NT-Xent on Triton; the [M, M] logits never reach memory.

    x[i]    = z[i] / max(|z[i]|, 1e-12);  s[i, j] = scale * <x[i], x[j]>
    lse[i]  = logsumexp_{j != i} s[i, j]
    loss[i] = lse[i] - mean_{p in P(i)} s[i, p]
    dx[i]   = scale * (sum_{j != i} g[i, j] x[j] - sum_{p in P(i)} (w[i] + w[p]) / (V - 1) x[p])
    g[i, j] = w[i] exp(s[i, j] - lse[i]) + w[j] exp(s[i, j] - lse[j])

Source: Chen et al. 2020, arXiv:2002.05709, eq. 1; streaming logsumexp after Milakov & Gimelshein
2018, arXiv:1805.02867, alg. 3. Derivation: docs/math/nt_xent.md.

Reading order: _tile.py (helpers, normalisation), _nt_xent_fwd.py, _nt_xent_bwd.py, then here the
choice of case and tile sizes, and the launchers. s is symmetric: the forward visits only tiles on
and above the diagonal. Logits are held in base 2. Where unit rows and scale * log2(e) <= limit
bound them, all sums share one fixed offset; elsewhere (ONLINE) every row and column keeps its own
maximum. With a tensor scale both are launched, and the device leaves one of them at once.

Extra memory: rows of z padded once, one float32 copy of z's shape in the backward pass, and
4 * 64 bytes a row in the forward (three times that with statistics).
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sslops.kernels._nt_xent_bwd import (
    nt_xent_bwd_kernel,
    nt_xent_dz_kernel,
    nt_xent_factors_kernel,
)
from sslops.kernels._nt_xent_fwd import STRIPS, nt_xent_fwd_kernel, nt_xent_loss_kernel
from sslops.kernels._tile import LOG2E, PAD, WHOLE_D, family, matmul_precision, unit_rows

FIXED_LIMIT = 88.0  # of scale * log2(e), a temperature of 0.0164: see HEADROOM and SPLIT
# float32 is ONLINE always: its products, not its exponentials, take the time.
FIXED_DTYPES = (torch.float16, torch.bfloat16)
MAX_ROWS = 1 << 24  # more terms could overflow a sum with the fixed offset

LOSS_OPTIONS = {"ROWS": 32, "COLS": 64, "num_warps": 4}
FACTORS_OPTIONS = {"ROWS": 128, "num_warps": 4}
DZ_OPTIONS = {"ROWS": 16, "COLS": 64, "num_warps": 4}


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
    stage: str, case: tuple[bool, torch.dtype, str, int], arch: str, stats: bool = False
) -> dict[str, Any]:
    """Constexprs and launch options of the "fwd" or "bwd" tile kernel."""
    online, dtype, precision, D_pad = case
    kind = "fixed" if not online else precision if dtype is torch.float32 else "half"
    width = D_pad
    if online:  # the widest row of the table that D_pad fills, else the narrowest
        widths = sorted(w for s, k, w in TABLE if (s, k) == (stage, kind))
        width = max((w for w in widths if w <= D_pad), default=widths[0])
    chosen = TABLE[stage, kind, width][arch]._asdict()
    if stage == "fwd":
        del chosen["BLOCK_D"]
    if stats:  # two more masked copies of the tile want the registers of half its columns
        chosen.update(BLOCK_N=chosen["BLOCK_N"] // 2, maxnreg=None)
    if chosen["maxnreg"] is None:
        del chosen["maxnreg"]
    return {"ONLINE": online, "WHOLE": not online, "PRECISION": precision, **chosen}


def cases(
    scale: Tensor | None, scale_factor: float, normalize: bool, D: int, dtype: torch.dtype
) -> tuple[list[bool], float]:
    """Which cases to launch (ONLINE or not), and the limit by which the device chooses."""
    if not normalize or D > WHOLE_D or dtype not in FIXED_DTYPES:
        return [True], -1.0
    if scale is not None:
        return [False, True], FIXED_LIMIT
    return ([True], -1.0) if scale_factor * LOG2E.value > FIXED_LIMIT else ([False], float("inf"))


def nt_xent_fwd(
    z: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass; arguments and results as of `sslops.reference.nt_xent`.

    Products of float32 inputs are exact in float32, or in TF32 with inputs rounded to nearest
    where `torch.backends.cuda.matmul.fp32_precision` is "tf32". Both passes read that setting, so
    change it only between steps.
    """
    M, D = z.shape
    if M > MAX_ROWS:
        raise ValueError(f"nt_xent: z must have at most {MAX_ROWS} rows on CUDA, got {M}")
    precision = matmul_precision(z.dtype, z.device)
    loss, lse = (z.new_empty(M, dtype=torch.float32) for _ in range(2))
    hit = z.new_empty(M if stats else 0, dtype=torch.bool)
    with torch.cuda.device_of(z):
        x, _ = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        strip = triton.cdiv(triton.cdiv(M, PAD), STRIPS.value) * PAD
        G = triton.cdiv(M, strip)
        sums = z.new_empty(G, M_pad, dtype=torch.float32)
        best = z.new_empty(2, G, M_pad, dtype=torch.float32) if stats else None
        launches, limit = cases(scale, scale_factor, normalize, D, z.dtype)
        samples, arch = M // num_views, family(z.device)
        for online in launches:
            nt_xent_fwd_kernel[(G * (G + 1) // 2,)](
                x, scale, sums, best,
                M, M_pad, D_pad, samples, strip, scale_factor, limit,
                **options("fwd", (online, z.dtype, precision, D_pad), arch, stats),
            )  # fmt: skip
        nt_xent_loss_kernel[(triton.cdiv(M, LOSS_OPTIONS["ROWS"]),)](
            x, scale, sums, best, loss, lse, hit if stats else None,
            M, M_pad, D_pad, samples, num_views, G, scale_factor, limit,
            **LOSS_OPTIONS,
        )  # fmt: skip
    return loss, lse, hit


def nt_xent_bwd(
    grad_loss: Tensor,
    z: Tensor,
    lse: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the backward pass; arguments and results as of `sslops.reference.nt_xent`."""
    M, D = z.shape
    precision = matmul_precision(z.dtype, z.device)
    dz = z.new_empty(M, D)
    with torch.cuda.device_of(z):
        x, norm = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        peak = torch.linalg.vector_norm(grad_loss, float("inf"), dtype=torch.float32)
        factors = z.new_empty(3, M_pad, dtype=torch.float32)
        nt_xent_factors_kernel[(M_pad // FACTORS_OPTIONS["ROWS"],)](
            grad_loss, peak, lse.contiguous(), factors,
            M, M_pad, grad_loss.stride(0), **FACTORS_OPTIONS,
        )  # fmt: skip
        pull = z.new_empty(M_pad, D_pad, dtype=torch.float32)
        launches, limit = cases(scale, scale_factor, normalize, D, z.dtype)
        arch = family(z.device)
        for online in launches:
            chosen = options("bwd", (online, z.dtype, precision, D_pad), arch)
            grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
            nt_xent_bwd_kernel[grid](
                x, scale, factors, pull, M, M_pad, D_pad, scale_factor, limit, **chosen
            )
        programs = triton.cdiv(M, DZ_OPTIONS["ROWS"])
        dscale = z.new_empty(programs, dtype=torch.float32)
        nt_xent_dz_kernel[(programs,)](
            pull, x, factors, norm, z, scale, peak, dz, dscale,
            M, D, D_pad, M // num_views, num_views, *z.stride(), scale_factor, normalize,
            **DZ_OPTIONS,
        )  # fmt: skip
    return dz, dscale.sum()
