"""Fused kernels for contrastive self-supervised learning, as torch ops, and loops that use them."""

import os
import sys
from typing import TYPE_CHECKING, Any

from sslops._version import __version__ as __version__


def _is_command() -> bool:
    """Whether this is the installed `sslops …` or `python -m sslops…`, which may print only help.

    Help need not wait for torch. Everywhere else the import registers the ops, as programs that
    load an exported graph rely on.
    """
    program, words = (sys.argv or [""])[0], sys.orig_argv
    if program == "-m" and program in words[:-1]:  # while Python looks for the module to run
        return words[words.index(program) + 1].split(".")[0] == "sslops"
    if os.path.splitext(os.path.basename(program))[0] != "sslops":
        return False
    import sysconfig  # the name alone may be that of any program

    user = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    folders = sysconfig.get_path("scripts"), user, os.path.dirname(sys.executable)
    lies_in = os.path.dirname(os.path.realpath(program))  # pipx links to it
    return lies_in in map(os.path.realpath, folders)


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
