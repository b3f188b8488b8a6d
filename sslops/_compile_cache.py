"""A folder of compiled code for each processor, where torch.compile would mix them up.

PyTorch keeps what it compiled in one folder and does not ask which processor it was compiled for
(seen in PyTorch 2.13.0). Code generated for AVX2 is compiled again with the vectors of AVX-512,
which are twice as long: it writes beyond the end of its buffers. The other way round it leaves
half of its results uninitialised. Both happen where a home folder is shared between machines, or
where ATEN_CPU_CAPABILITY is set for one run.
"""

import hashlib
import os
from collections.abc import Mapping

import torch

__all__ = ["separate_by_processor"]

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PREFIX = "sslops-"  # of the sub-folders


def separate_by_processor() -> str:
    """Let torch.compile use, from now on, a sub-folder of its own for this processor.

    The sub-folder is named after the instruction set that PyTorch uses and a digest of all that the
    processor has. Calling it again, here or in a child process, changes nothing.

    Returns:
        The folder, which TORCHINDUCTOR_CACHE_DIR now names.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    level = torch.backends.cpu.get_cpu_capability()
    # PyTorch 2.10 tells the level only.
    has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    features = sorted(name for name in has if has[name] is True)
    digest = hashlib.sha256(" ".join(features).encode()).hexdigest()[:8]
    base, name = cache_dir(), f"{level.lower().replace(' ', '-')}-{digest}"
    head, tail = os.path.split(base)
    if tail.startswith(PREFIX):  # set by a parent process, maybe at another level
        base = head
    os.environ[VARIABLE] = os.path.join(base, PREFIX + name)
    return cache_dir()
