"""Rules of the arguments of sentence-transformers' ranking losses."""

from collections.abc import Sequence

from sslops._names import shown

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
_HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")


def check_ranking(name: str, scale: float, directions: Sequence[str], partition_mode: str) -> None:
    """Refuse a scale, and directions that do not go together or with the mode."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"{name}: scale must be positive and finite, got {scale}")
    if unknown := set(directions) - set(DIRECTIONS):
        raise ValueError(f"{name}: directions must be of {DIRECTIONS}, got {shown(unknown)}")
    if "query_to_doc" not in directions:
        raise ValueError(f"{name}: directions must have query_to_doc, got {shown(directions)}")
    if "doc_to_doc" in directions and "doc_to_query" not in directions:
        raise ValueError(f"{name}: doc_to_doc needs doc_to_query, got {shown(directions)}")
    if partition_mode not in ("joint", "per_direction"):
        raise ValueError(
            f"{name}: partition_mode must be joint or per_direction, got {partition_mode!r}"
        )
    if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(directions):
        raise ValueError(
            f"{name}: per_direction goes with query_to_doc and doc_to_query alone, got"
            f" {shown(directions)}"
        )


def check_hardness(name: str, mode: str | None, strength: float) -> None:
    """Refuse what sentence-transformers refuses, and weighting, which is not done here."""
    if mode is not None and mode not in _HARDNESS:
        raise ValueError(f"{name}: hardness_mode must be None or of {_HARDNESS}, got {mode!r}")
    if not strength >= 0:
        raise ValueError(f"{name}: hardness_strength must not be negative, got {strength}")
    if mode is not None and strength:
        raise ValueError(
            f"{name}: hardness_mode must be None, or the strength 0, got {mode!r} of {strength}"
        )
