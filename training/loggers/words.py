"""Words for numbers: how many of what, in the singular and the plural."""

from typing import Literal

__all__ = ["BATCHED", "SAMPLES", "Kind", "amount", "count", "listed"]

Kind = Literal["image", "sound", "video"]
SAMPLES: dict[Kind, str] = {"image": "images", "sound": "recordings", "video": "videos"}
BATCHED: dict[Kind, str] = {"image": "images", "sound": "windows", "video": "clips"}  # of a step


def count(n: float, things: str) -> str:
    """1 image; 1,200 images; 1 process; 2 of `things`, which are given in the plural."""
    one = things.removesuffix("es") if things.endswith("sses") else things.removesuffix("s")
    return f"{n:,} {one if n == 1 else things}"


def amount(x: float) -> str:
    """0.047, 3.3, 120: two digits below 1, one decimal above, and none where there is none."""
    return f"{x:.2g}" if abs(x) < 1 else f"{x:,.1f}".removesuffix(".0")


def listed(items: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([*([", ".join(items[:-1])] if items[1:] else []), *items[-1:]])
