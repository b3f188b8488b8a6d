"""What the machine offers and what a run took from it."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import sslops

__all__ = ["bf16_is_fast", "environment", "peak_memory_gb", "resolve_precision"]


def bf16_is_fast(device: torch.device) -> bool:
    """Whether matrix units for bfloat16 exist: tensor cores, or AMX on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    return bool(_capabilities().get("amx_bf16", False))


def _capabilities() -> dict[str, Any]:
    # torch.cpu.get_capabilities is newer than the oldest torch this package takes.
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    return dict(ask())


def resolve_precision(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """The precision that "auto" stands for on this device."""
    if precision == "auto":
        return "bf16" if bf16_is_fast(device) else "fp32"
    return precision


def peak_memory_gb(device: torch.device) -> float:
    """Most memory in use so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource  # POSIX only
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, device and commit, for env.json."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = _capabilities().get("cpu_name", name)
    return {
        "sslops": sslops.__version__,
        "extension": sslops.HAS_EXTENSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "command": sys.argv,
    }


def _commit() -> str | None:
    """Commit of the working tree the package lies in, None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
