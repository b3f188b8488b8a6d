"""Who is measured: this package, plain PyTorch, and other packages where they are installed."""

from bench.providers.base import Job, Provider, Skip
from bench.providers.chunked import CHUNKED
from bench.providers.eager import COMPILE, EAGER, FOREACH
from bench.providers.kernels import CCE, INF_CL, LIGER, LIGER_SCALED, MEMEFF, SIGLIP
from bench.providers.ours import ours
from bench.providers.packages import INFO_NCE, LIGHTLY, METRIC, OPEN_CLIP
from bench.providers.torch_native import LINEAR

__all__ = ["PROVIDERS", "Job", "Provider", "Skip"]

PROVIDERS: dict[str, Provider] = {
    "sslops": ours("auto"),
    "sslops-reference": ours("reference"),
    "sslops-triton": ours("triton"),
    "sslops-cuda": ours("cuda"),
    "eager": EAGER,
    "compile": COMPILE,
    "chunked": CHUNKED,
    "linear_cross_entropy": LINEAR,
    "foreach_lerp": FOREACH,
    "lightly": LIGHTLY,
    "pytorch-metric-learning": METRIC,
    "info-nce-pytorch": INFO_NCE,
    "open_clip": OPEN_CLIP,
    "memeff": MEMEFF,
    "inf-cl": INF_CL,
    "cce-exact": CCE,
    "liger": LIGER,
    "liger-scaled": LIGER_SCALED,
    "siglip-kernel": SIGLIP,
}
