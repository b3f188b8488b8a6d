"""The pairwise sigmoid loss on Triton; the [M, N] logits never reach memory.

    x[i], y[j]: queries and keys over max(norm, 1e-12);  s[i, j] = scale * <x[i], y[j]> + bias
    loss     = sum_i softplus(-s[i, i]) + sum_{j != i} softplus(s[i, j])
    dx[i]    = scale * (sum_{j != i} g[i, j] y[j] - pull[i] y[i]),  dy alike
    g[i, j]  = sigmoid(s[i, j]);  pull[i] = sigmoid(-s[i, i])
    dbias    = sum_{j != i} g[i, j] - sum_i pull[i]

Source: Zhai et al. 2023, arXiv:2303.15343, alg. 1. Derivation: docs/math/sigmoid_loss.md.

No pair needs another, so one walk over the keys gives the loss and dqueries, and one over the
queries dkeys. Pairs that ids leave out have s = -inf. As in info_nce.py, tiles hold negatives
only, and the positives' pull is subtracted in float32 at the end. Reading order: _tile.py,
_sigmoid_loss.py, _finish.py, _config.py, then here the launcher.

Extra memory: both sides padded once, and a float32 copy of each.
"""

import torch
import triton
from torch import Tensor

from sslops.kernels._architectures import family
from sslops.kernels._config import options
from sslops.kernels._finish import Pulls, finish
from sslops.kernels._sigmoid_loss import sigmoid_negatives_kernel, sigmoid_positives_kernel
from sslops.kernels._tile import WHOLE_D, matmul_precision, unit_rows

POSITIVES_OPTIONS = {"ROWS": 32, "COLS": 64, "num_warps": 4}


def sigmoid_loss_fwd(
    queries: Tensor,
    keys: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    bias: Tensor | None,
    bias_value: float,
    normalize: bool,
    grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch both walks; arguments and results as of `sslops.reference.sigmoid_loss`."""
    (M, D), N = queries.shape, len(keys)
    if query_ids is not None and key_ids is not None:
        query_ids, key_ids = query_ids.contiguous(), key_ids.contiguous()
    precision = matmul_precision(queries.dtype, queries.device)

    def empty(*shape: int) -> Tensor:
        return queries.new_empty(shape, dtype=torch.float32)

    with torch.cuda.device_of(queries):
        x, x_norm = unit_rows(queries, normalize, precision)
        y, y_norm = unit_rows(keys, normalize, precision)
        D_pad = x.shape[1]
        numbers = (scale_factor, bias_value)
        positive, pull = empty(2, M).unbind()
        sigmoid_positives_kernel[(triton.cdiv(M, POSITIVES_OPTIONS["ROWS"]),)](
            x, y, scale, bias, positive, pull, M, D_pad, *numbers, **POSITIVES_OPTIONS
        )
        whole = queries.dtype is not torch.float32 and D <= WHOLE_D
        case = (not whole, queries.dtype, precision, D_pad)
        chosen = options("heavy", case, family(queries.device), narrow=True)
        del chosen["ONLINE"]
        blocks = triton.cdiv(D_pad, chosen["BLOCK_D"]) if grads else 1
        dx, dy = (empty(len(side), D_pad) if grads else None for side in (x, y))
        negative, slope = empty(len(x)), empty(len(x)) if grads else None
        sigmoid_negatives_kernel[(triton.cdiv(M, chosen["BLOCK_M"]), blocks)](
            x, y, scale, bias, query_ids, key_ids, negative, slope, dx,
            M, N, D_pad, *numbers, **chosen,
        )  # fmt: skip
        loss = positive.sum() + negative[:M].sum()
        if slope is None:
            return loss, empty(0), empty(0), empty(0), empty(0)
        sigmoid_negatives_kernel[(triton.cdiv(N, chosen["BLOCK_M"]), blocks)](
            y, x, scale, bias, key_ids, query_ids, None, None, dy,
            N, M, D_pad, *numbers, **chosen,
        )  # fmt: skip
        common = (scale, scale_factor, normalize, None, torch.float32)
        dqueries, dscale = finish(queries, x_norm, dx, *common, Pulls(y, N, pull, None))
        dkeys, _ = finish(keys, y_norm, dy, *common, Pulls(x, M, pull, None))
        return loss, dqueries, dkeys, dscale, slope[:M].sum() - pull.sum()
