"""The one torch.library namespace of the package, and what could be loaded to serve it.

Schemas are declared in Python (docs/adr/0002-schemas-in-python.md): every op exists even where
nothing was compiled, and the compiled module only adds faster kernels for a device.
"""

import importlib
import importlib.util

import torch

LIB = torch.library.Library("sslops", "DEF")  # type: ignore[no-untyped-call]
HAS_TRITON = importlib.util.find_spec("triton") is not None


def load_extension() -> bool:
    """Load sslops._C, whose static initialisers register the C++ kernels; False if not built."""
    if importlib.util.find_spec("sslops._C") is None:
        return False
    importlib.import_module("sslops._C")  # a broken build must raise, not fall back
    return True
