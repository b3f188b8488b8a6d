"""What a recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Field values of a config class, and their source."""

    source: str
    fields: Mapping[str, Any]
