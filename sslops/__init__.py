"""Fused kernels for contrastive self-supervised learning, as torch ops, and loops that use them."""

from sslops import _library
from sslops._version import __version__
from sslops.chance import chance
from sslops.nn import NTXentLoss
from sslops.ops.nt_xent import NTXentStats, nt_xent

__all__ = ["HAS_EXTENSION", "NTXentLoss", "NTXentStats", "__version__", "chance", "nt_xent"]

HAS_EXTENSION = _library.load_extension()
