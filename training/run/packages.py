"""Which packages each command needs beside torch and numpy: one table."""

import importlib.util

__all__ = ["NEEDS", "PIP", "missing_text", "need"]

# Name to import -> name to install.
PIP = {
    "PIL": "pillow",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "tyro": "tyro",
}
_RUN = ("sklearn", "safetensors", "PIL")

# Asked for before a command starts, so that nothing fails after hours. "train()" is the function.
NEEDS: dict[str, tuple[str, ...]] = {
    "train()": _RUN,
    "train": ("tyro", *_RUN),
    "train --replay": (),
    "plan": ("tyro",),
    "plan of a data set": ("sklearn", "PIL"),
    "ablate": ("tyro", *_RUN),
    "audit": ("tyro", "sklearn", "PIL"),
    "eval": _RUN,
    "compare": ("PIL",),
    "list": (),
    "export": ("safetensors",),
    "doctor": (),
    "bench": (),
}


def need(command: str, *more: str) -> None:
    """Refuse to begin a command without the packages that it needs.

    Args:
        command: a key of `NEEDS`.
        more: what its options need beside.

    Raises:
        FileNotFoundError: one is not installed; the message says how to install it.
    """
    names = (*NEEDS[command], *more)
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise FileNotFoundError(missing_text(command, missing))


def missing_text(command: str, missing: list[str]) -> str:
    """What to install."""
    packages = [PIP[name] for name in missing]
    what = command.removesuffix("()")
    return (
        f"{what}: needs packages that are not installed, got no {', '.join(packages)};"
        f" install them with: pip install {' '.join(packages)}, or all that training needs with:"
        " pip install '.[train]' in a clone of the repository"
    )
