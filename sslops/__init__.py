"""Fused kernels for contrastive self-supervised learning, as torch ops, and loops that use them."""

from sslops import _library
from sslops._library import backend, use_backend
from sslops._version import __version__
from sslops.chance import chance
from sslops.doctor import Backend, backends
from sslops.nn import NTXentLoss
from sslops.ops.nt_xent import NTXentStats, nt_xent

__all__ = [
    "HAS_EXTENSION",
    "Backend",
    "NTXentLoss",
    "NTXentStats",
    "__version__",
    "backend",
    "backends",
    "chance",
    "nt_xent",
    "use_backend",
]

HAS_EXTENSION = _library.load_extension()
