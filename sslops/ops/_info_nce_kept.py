"""InfoNCE that leaves its similarities for the gradient: schema, fake kernels.

For few rows of many features: all similarities are then no more than the inputs, and a quarter of
the arithmetic is the second time that they are computed. For the CPU.
"""

from typing import Any

from torch import Tensor

from sslops._library import define, register_autograd
from sslops.ops._info_nce import _BACKWARD, _FORWARD, _backward, _fake_bwd, _fake_fwd, _setup
from sslops.reference.info_nce_kept import info_nce_kept, info_nce_kept_bwd, kept_shape


def _fake(queries: Tensor, keys: Tensor, negatives: Tensor | None, *args: Any) -> Any:
    rows = _fake_fwd(queries, keys, negatives, *args)
    shape = kept_shape(queries, keys if negatives is None else negatives)
    return *rows, rows[0].new_empty(shape)


def _fake_kept_bwd(*args: Any) -> Any:
    return _fake_bwd(*args[:12], *args[13:])


define("info_nce_kept", _FORWARD % ", Tensor kept", info_nce_kept, fake=_fake)
define("info_nce_kept_bwd", _BACKWARD % "Tensor kept, ", info_nce_kept_bwd, fake=_fake_kept_bwd)
register_autograd("info_nce_kept", "info_nce_kept_bwd", _backward, _setup)
