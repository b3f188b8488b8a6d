"""Fused kernels for contrastive self-supervised learning, as torch ops, and loops that use them."""

import os
import sys
from typing import TYPE_CHECKING, Any

from sslops._version import __version__ as __version__


def _is_command() -> bool:
    """Whether this process is `sslops …` or `python -m sslops…`, which may print no more than help.

    Help need not wait for torch. Everywhere else the import registers the ops, as programs that
    load an exported graph rely on.
    """
    program, words = (sys.argv or [""])[0], sys.orig_argv
    if program == "-m" and program in words[:-1]:  # while Python looks for the module to run
        return words[words.index(program) + 1].split(".")[0] == "sslops"
    return os.path.splitext(os.path.basename(program))[0] == "sslops"


if TYPE_CHECKING or not _is_command():
    from sslops._api import *  # noqa: F403
    from sslops._api import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Import everything once any of it is asked for."""
        if name == "__all__" or not name.startswith("_"):  # else a module: Python imports it then
            from sslops import _api

            exported = getattr(_api, "__all__", [])  # its last line: not while it is imported
            globals().update({each: getattr(_api, each) for each in exported}, __all__=exported)
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
