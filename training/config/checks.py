"""Ranges that fields of a configuration must lie in; None, where a field may be it, passes."""

from typing import Any

__all__ = ["at_least", "not_negative", "positive", "within"]


def at_least(config: Any, least: float, *names: str) -> None:
    """Refuse values below `least`.

    Raises:
        ValueError: a field has one.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"config: {name} must be at least {least}, got {value}")


def not_negative(config: Any, *names: str) -> None:
    """Refuse values below 0.

    Raises:
        ValueError: a field has one.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise ValueError(f"config: {name} must not be negative, got {value}")


def positive(config: Any, *names: str) -> None:
    """Refuse 0 and values below.

    Raises:
        ValueError: a field has one.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"config: {name} must be positive, got {value}")


def within(config: Any, low: float, high: float, *names: str) -> None:
    """Refuse values outside of [low, high].

    Raises:
        ValueError: a field has one.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"config: {name} must be in [{low}, {high}], got {value}")
