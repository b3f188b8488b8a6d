"""The classes that `sslops.patch` makes, as `<package>__<name>`, for pickles of their objects."""

from typing import Any

from sslops.compat._patch import replacement


def __getattr__(name: str) -> Any:
    package, _, kind = name.partition("__")
    try:
        return replacement(package, kind)
    except (KeyError, ImportError) as error:
        raise AttributeError(f"module {__name__} has no {name}: {error}") from error
