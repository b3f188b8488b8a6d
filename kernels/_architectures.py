"""Which GPUs the kernels are for; every other one gets plain PyTorch, and one note that says so.

Without an import of triton, as sslops asks before it does that.
"""

import functools
import warnings

import torch

# Architectures the Triton kernels are compiled for in tests, and the rows of _config.py's table
# that each uses: NVIDIA's by major capability, AMD's by name. "sm_80" fits the 99 KiB of shared
# memory that 8.6, 8.9 and 12.x have. csrc/cuda runs on all of NVIDIA's, from machine code or PTX.
NVIDIA = {8: "sm_80", 9: "sm_90", 10: "sm_100", 12: "sm_80"}
AMD = {"gfx90a": "hip", "gfx942": "hip", "gfx950": "hip"}
OLDEST = (8, 0)  # before it there is no bfloat16, and compilation does not end in a minute


def _of(device: torch.device) -> tuple[int, int] | str:
    """(major, minor) of NVIDIA's, the name of AMD's without its features (gfx942:sramecc+)."""
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    return torch.cuda.get_device_capability(device)


def described(device: torch.device) -> str:
    """The architecture as one reads it."""
    arch = _of(device)
    return arch if isinstance(arch, str) else f"compute capability {arch[0]}.{arch[1]}"


def family(device: torch.device) -> str:
    """Row of the configuration tables; for an unknown architecture the most modest one."""
    if device.type != "cuda":
        return "sm_80"
    arch = _of(device)
    return AMD.get(arch, "hip") if isinstance(arch, str) else NVIDIA.get(arch[0], "sm_80")


@functools.cache
def refusal(device: torch.device, chosen: bool = False) -> str:
    """Why no kernel is run on this GPU; empty if they are.

    Args:
        device: of type cuda, which AMD's are in torch, too.
        chosen: somebody asked for the kernels by name: an unknown architecture may then try.
    """
    if device.type != "cuda":
        return ""
    arch = _of(device)
    if not isinstance(arch, str) and arch < OLDEST:
        return f"needs compute capability 8.0 or newer, got {arch[0]}.{arch[1]}"
    known = arch in AMD if isinstance(arch, str) else arch[0] in NVIDIA
    if known or chosen:
        return ""
    names = [f"{major}.x" for major in NVIDIA] if torch.version.hip is None else list(AMD)
    return f"is known to run on {', '.join(names)}, got {described(device)}"


@functools.cache
def note(device: torch.device, why: str) -> None:
    """Warn once that plain PyTorch runs on this GPU."""
    name = torch.cuda.get_device_name(device)
    warnings.warn(
        f"sslops: plain PyTorch runs on {name}, slower and with more memory: what would be faster"
        f" {why}",
        stacklevel=2,
    )
