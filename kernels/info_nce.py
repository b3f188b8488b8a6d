"""InfoNCE on Triton; the [M, N] logits never reach memory.

    x[i]     = queries[i] / max(|queries[i]|, 1e-12), k from keys; y = k, or the negatives
    s[i, j]  = scale * <x[i], y[j]>;  s+[i] = scale * <x[i], k[t(i)]>
    neg[i]   = logsumexp_{j in A(i)} s[i, j]        A(i): no positive, no pair that ids leave out
    loss[i]  = log(1 + exp(neg[i] - s+[i]));  lse[i] = s+[i] + loss[i]
    dx[i]    = scale * (sum_j g[i, j] y[j] - p[i] k[t(i)])
    g[i, j]  = w[i] exp(s[i, j] - lse[i]) + v[j] exp(s[i, j] - key_lse[j])     v: of the keys' loss
    p[i]     = w[i] (1 - exp(-loss[i])) + v[i] (1 - exp(-key_loss[i]))

Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4. Derivation: docs/math/info_nce.md.

Tiles hold negatives only, so nothing cancels in them; the positives are subtracted in float32 at
the end. A gradient of keys that are several rows' positives adds them in the order of the rows.
Reading order: _tile.py, _info_nce_fwd.py, _info_nce_bwd.py, _finish.py, _info_nce_frozen_keys.py,
_config.py, then here the launchers. As in nt_xent.py, logits are in base 2, and sums share a fixed
offset where unit rows and the scale bound them.

Products are in the dtype of the queries; with negatives in half precision in theirs, and queries
and keys are rounded to it; float32 negatives of half-precision queries are rounded to these. Each
row is rounded once, the same for positives and negatives. What float32 means: `matmul_precision`.

Extra memory: rows padded once, 4 * 64 bytes a row in the forward (and a column, twice with
statistics), a float32 copy of each side that gets a gradient. The single pass pads no negatives;
its partial sums are a float32 copy of the queries a split, and there is more than one split only
while they all fit into eleven blocks of BLOCK_M rows a multiprocessor.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved, result_shapes, split_backward
from sslops.kernels._architectures import family
from sslops.kernels._config import MAX_ROWS, cases, options
from sslops.kernels._finish import Positives, factors, finish, grad_max_of, segments
from sslops.kernels._info_nce_bwd import info_nce_bwd_kernel
from sslops.kernels._info_nce_frozen_keys import (
    info_nce_combine_kernel,
    info_nce_frozen_keys_kernel,
)
from sslops.kernels._info_nce_fwd import info_nce_fwd_kernel, info_nce_loss_kernel
from sslops.kernels._tile import WHOLE_D, matmul_precision, strips, unit_rows

LOSS_OPTIONS = {"ROWS": 32, "COLS": 64, "num_warps": 4}
COMBINE_OPTIONS = {"COLS": 64, "num_warps": 4}
BUSY = 0.85  # share of the multiprocessors that the splits must keep at work; not measured
MAX_SPLITS = 128
HALF = (torch.float16, torch.bfloat16)


class Rows(NamedTuple):
    """Both sides as the kernels read them."""

    x: Tensor  # [M_pad, D_pad]
    x_norm: Tensor  # [M_pad]
    k: Tensor  # [N_pad, D_pad]
    k_norm: Tensor  # [N_pad]
    precision: str


def _rows(a: InfoNCEArgs) -> Rows:
    dtype = a.queries.dtype
    if a.negatives is not None and a.negatives.dtype in HALF:
        dtype = a.negatives.dtype
    precision = matmul_precision(dtype, a.queries.device)
    x, x_norm = unit_rows(a.queries, a.normalize, precision, dtype)
    k, k_norm = unit_rows(a.keys, a.normalize, precision, dtype)
    return Rows(x, x_norm, k, k_norm, precision)


def _padded(rows: Rows, negatives: Tensor | None) -> tuple[Tensor, Tensor]:
    """The negatives' side: ([K_pad, D_pad], norms [K_pad])."""
    if negatives is None:
        return rows.k, rows.k_norm
    return unit_rows(negatives, False, rows.precision, rows.x.dtype)


def _cases(a: InfoNCEArgs, dtype: torch.dtype) -> tuple[list[bool], float]:
    (M, D), N = a.queries.shape, len(a.candidates)
    bounded = a.normalize and a.negatives is None and max(M, N) <= MAX_ROWS
    return cases(a.scale, a.scale_factor, bounded, D, dtype)


def info_nce_fwd(*args: Any) -> tuple[Tensor, ...]:
    """Launch the forward pass; arguments and results as of `sslops.reference.info_nce`."""
    a = _with_dense_vectors(InfoNCEArgs(*args))
    *saved, hit, key_hit = result_shapes(a)
    results = [a.queries.new_empty(shape, dtype=torch.float32) for shape in saved]
    results += [a.queries.new_empty(shape, dtype=torch.bool) for shape in (hit, key_hit)]
    (_frozen_keys if a.plan == "frozen_keys" else _statistics)(a, results)
    return tuple(results)


def _with_dense_vectors(a: InfoNCEArgs) -> InfoNCEArgs:
    """`a`, its targets and ids as kernels read them."""
    targets, query_ids, key_ids = map(_contiguous, (a.targets, a.query_ids, a.key_ids))
    return a._replace(targets=targets, query_ids=query_ids, key_ids=key_ids)


def _statistics(a: InfoNCEArgs, results: list[Tensor]) -> None:
    """The first pass of two: losses and hits."""
    losses, hits = results[:4], results[-2:]
    symmetric, stats, keys_are_negatives = a.symmetric, a.stats, a.negatives is None
    M, N = len(a.queries), len(a.candidates)

    def empty(*shape: int) -> Tensor:
        return a.queries.new_empty(shape, dtype=torch.float32)

    with torch.cuda.device_of(a.queries):
        rows = _rows(a)
        y, _ = _padded(rows, a.negatives)
        (M_pad, D_pad), N_pad = rows.x.shape, len(y)
        (row_strip, G), (col_strip, H) = strips(M), strips(N)
        sums, best = empty(H, M_pad), empty(H, M_pad) if stats else None
        cols = empty(G, N_pad) if symmetric else None
        col_best = empty(G, N_pad) if symmetric and stats else None
        positive = empty(M_pad) if stats and keys_are_negatives else None
        launches, limit = _cases(a, rows.x.dtype)
        narrow = stats or a.query_ids is not None or a.targets is not None
        for online in launches:
            case = (online, rows.x.dtype, rows.precision, D_pad)
            info_nce_fwd_kernel[(G, H)](
                rows.x, y, a.scale, a.targets, a.query_ids, a.key_ids,
                sums, cols, best, col_best, positive,
                M, N, M_pad, N_pad, D_pad, row_strip, col_strip, a.scale_factor, limit,
                keys_are_negatives, a.same_id_only,
                **options("fwd", case, family(y.device), narrow, raised=symmetric),
            )  # fmt: skip
        finishing: list[tuple[Any, ...]] = [
            (rows.x, rows.k, a.targets, sums, best, M, len(a.keys), H)
        ]
        if symmetric:
            finishing.append((rows.k, rows.x, None, cols, col_best, N, M, G))
        for side, (x, k, index, slots, top, m, n, count) in enumerate(finishing):
            info_nce_loss_kernel[(triton.cdiv(m, LOSS_OPTIONS["ROWS"]),)](
                x, k, a.scale, index, slots, top, positive,
                losses[2 * side], losses[2 * side + 1], hits[side] if stats else None,
                m, n, len(x), D_pad, count, a.scale_factor, limit, **LOSS_OPTIONS,
            )  # fmt: skip


def info_nce_bwd(
    grad_loss: Tensor, grad_key_loss: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the second pass of two; arguments and results as of `sslops.reference.info_nce`."""
    a, saved, needs = split_backward(rest)
    a = _with_dense_vectors(a)
    M, keys_are_negatives = len(a.queries), a.negatives is None
    third = saved.loss if a.negatives is None else a.negatives
    results = [t.new_empty(0) for t in (a.queries, a.keys, third)]
    dscale = saved.loss.new_full((), float("nan"))
    with torch.cuda.device_of(a.queries):
        rows = _rows(a)
        y, y_norm = _padded(rows, a.negatives)
        N, M_pad = len(a.candidates), len(rows.x)
        grad_max = grad_max_of(grad_loss)
        if grad_key_loss is not None:
            grad_max = torch.maximum(grad_max, grad_max_of(grad_key_loss))
        row_factors = factors(grad_loss, grad_max, saved.lse, saved.loss, M_pad)
        positive_w, col_factors = row_factors[3], None
        if grad_key_loss is not None:
            col_factors = factors(grad_key_loss, grad_max, saved.key_lse, saved.key_loss, len(y))
            positive_w = positive_w + col_factors[3]
        queries_side = (rows.x, M, row_factors, a.targets, a.query_ids)
        negatives_side = (y, N, col_factors, None, a.key_ids)
        total = functools.partial(_sum_tiles, a, rows.precision)
        common = (a.scale, a.scale_factor, a.normalize, grad_max)
        if needs[0]:
            positives = Positives(rows.k, len(a.keys), positive_w, a.targets)
            dx = total(queries_side, negatives_side)
            results[0], dscale = finish(
                a.queries, rows.x_norm, dx, *common, a.queries.dtype, positives
            )
        dy = total(negatives_side, queries_side) if needs[1 if keys_are_negatives else 2] else None
        if needs[1]:
            index, starts = None, None
            if a.targets is not None:
                index, starts = segments(a.targets, len(a.keys))
            positives = Positives(rows.x, M, positive_w, index, starts)
            dk = dy if keys_are_negatives else None
            results[1], _ = finish(a.keys, rows.k_norm, dk, *common, a.keys.dtype, positives)
        if needs[2] and a.negatives is not None:
            results[2], _ = finish(
                a.negatives, y_norm, dy, a.scale, a.scale_factor, False, grad_max, a.negatives.dtype
            )
    return results[0], results[1], results[2], dscale


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _sum_tiles(
    a: InfoNCEArgs, precision: str, side: tuple[Any, ...], other: tuple[Any, ...]
) -> Tensor:
    """sum_j g[i, j] y[j] / grad_max of the rows of `side`: [M_pad, D_pad] float32."""
    (x, M, row_factors, targets, ids), (y, N, col_factors, other_targets, other_ids) = side, other
    M_pad, D_pad = x.shape
    launches, limit = _cases(a, x.dtype)
    out: Tensor = x.new_empty(M_pad, D_pad, dtype=torch.float32)
    for online in launches:
        case = (online, x.dtype, precision, D_pad)
        chosen = options("bwd", case, family(x.device), narrow=ids is not None, raised=True)
        grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
        info_nce_bwd_kernel[grid](
            x, y, a.scale, row_factors, col_factors, targets, other_targets, ids, other_ids, out,
            M, N, M_pad, len(y), D_pad, a.scale_factor, limit, a.negatives is None,
            a.same_id_only, **chosen,
        )  # fmt: skip
    return out


def number_of_splits(programs: int, blocks: int, processors: int) -> int:
    """Into how many parts to cut `blocks` column blocks, for `programs` row blocks each."""
    most = min(blocks, MAX_SPLITS)
    for splits in range(1, most + 1):
        waves = triton.cdiv(programs * splits, processors)
        if programs * splits >= BUSY * waves * processors:
            return splits
    return most


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _frozen_keys(a: InfoNCEArgs, results: list[Tensor]) -> None:
    """The single pass: losses, hits, and each row's own gradient."""
    out, hit, queries, negatives = InfoNCESaved(*results[:-2]), results[-2], a.queries, a.negatives
    (M, D), keys_are_negatives = queries.shape, negatives is None
    with torch.cuda.device_of(queries):
        rows = _rows(a)
        (M_pad, D_pad), dtype = rows.x.shape, rows.x.dtype
        if negatives is None:
            y, N, width = rows.k, len(a.keys), D_pad
        else:
            # 2**24: a tile's row times the stride is held in 32 bits
            plain = negatives.stride(1) == 1 and negatives.stride(0) < 1 << 24
            y, N, width = negatives if plain else negatives.contiguous(), len(negatives), D
        whole = dtype in HALF and D <= WHOLE_D
        case = (not whole, dtype, rows.precision, D_pad)
        narrow = a.query_ids is not None or y.dtype != dtype
        chosen = options("heavy", case, family(queries.device), narrow)
        del chosen["ONLINE"]
        grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
        blocks = triton.cdiv(N, chosen["BLOCK_N"])
        splits = number_of_splits(grid[0] * grid[1], blocks, _processors(queries.device))
        split = triton.cdiv(blocks, splits) * chosen["BLOCK_N"]
        splits = triton.cdiv(N, split)
        top, sums, acc = (
            queries.new_empty(splits, M_pad, *rest, dtype=torch.float32)
            for rest in ((), (), (D_pad,))
        )
        positive = None
        if a.stats and keys_are_negatives:
            positive = queries.new_empty(M_pad, dtype=torch.float32)
        even = width % chosen["BLOCK_K"] == width % chosen["BLOCK_D"] == 0
        info_nce_frozen_keys_kernel[(*grid, splits)](
            rows.x, y, a.scale, a.targets, a.query_ids, a.key_ids, top, sums, acc, positive,
            M, N, width, M_pad, D_pad, y.stride(0), split, a.scale_factor,
            keys_are_negatives, a.same_id_only, even, **chosen,
        )  # fmt: skip
        padded = triton.next_power_of_2(splits)
        block = max(1, 64 // padded)
        info_nce_combine_kernel[(triton.cdiv(M, block),)](
            top, sums, acc, positive, rows.x, rows.k, a.targets, rows.x_norm, queries, a.scale,
            out.loss, out.lse, hit if a.stats else None, out.dqueries, out.dscale,
            M, len(a.keys), D, M_pad, D_pad, splits, *queries.stride(), a.scale_factor,
            a.normalize, padded, block, **COMBINE_OPTIONS,
        )  # fmt: skip
