"""Lists in error messages: the first members that have room, and how many more there are."""

from collections.abc import Iterable

__all__ = ["shown"]

ROOM = 120  # characters; a message of two lists and a path then stays below 500
LONGEST = 60


def shown(members: Iterable[object], separator: str | None = None) -> str:
    """`members` as Python shows a list, or joined; of many the first ones.

    Args:
        members: names, numbers, shapes; an unordered set in the order of its members' texts.
        separator: between the members; None for a list in brackets.

    Example:
        >>> shown(["weight", "bias"])
        "['weight', 'bias']"
        >>> shown(range(1000), ", ")[-24:]
        '37, 38, 39 and 960 more'
    """
    if isinstance(members, set | frozenset):
        members = sorted(members, key=str)
    texts = [repr(each) if separator is None else str(each) for each in members]
    texts = [each if len(each) <= LONGEST else "..." + each[3 - LONGEST :] for each in texts]
    between = ", " if separator is None else separator
    count, used = 0, 0
    while count < len(texts) and (not count or used + len(texts[count]) <= ROOM):
        used += len(texts[count]) + len(between)
        count += 1
    text = between.join(texts[:count])
    text = f"[{text}]" if separator is None else text
    return text if count == len(texts) else f"{text} and {len(texts) - count} more"
