"""What `sslops` exports; importing it registers the ops with torch."""

from sslops import _library
from sslops._library import backend, use_backend
from sslops._version import __version__
from sslops.chance import chance
from sslops.compat._patch import Patch, patch
from sslops.doctor import Backend, backends
from sslops.grad_cache import GradCache
from sslops.momentum import MomentumEncoder, cosine_momentum
from sslops.nn import (
    ClipLoss,
    CPCLoss,
    InfoNCELoss,
    NTXentLoss,
    SigmoidLoss,
    SupConLoss,
)
from sslops.ops.clip_loss import clip_loss
from sslops.ops.cpc_loss import CPCStats, cpc_loss
from sslops.ops.ema import ema_update_
from sslops.ops.info_nce import InfoNCEStats, info_nce
from sslops.ops.nt_xent import NTXentStats, nt_xent
from sslops.ops.queue import enqueue_
from sslops.ops.sigmoid_loss import sigmoid_loss
from sslops.ops.sup_con import SupConStats, sup_con
from sslops.parallel import Gather, Ring
from sslops.queue import KeyQueue
from sslops.queue_checkpoints import load_queue

HAS_EXTENSION = _library.load_extension()

__all__ = [
    "HAS_EXTENSION",
    "Backend",
    "CPCLoss",
    "CPCStats",
    "ClipLoss",
    "Gather",
    "GradCache",
    "InfoNCELoss",
    "InfoNCEStats",
    "KeyQueue",
    "MomentumEncoder",
    "NTXentLoss",
    "NTXentStats",
    "Patch",
    "Ring",
    "SigmoidLoss",
    "SupConLoss",
    "SupConStats",
    "__version__",
    "backend",
    "backends",
    "chance",
    "clip_loss",
    "cosine_momentum",
    "cpc_loss",
    "ema_update_",
    "enqueue_",
    "info_nce",
    "load_queue",
    "nt_xent",
    "patch",
    "sigmoid_loss",
    "sup_con",
    "use_backend",
]
