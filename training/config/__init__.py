"""The configuration of a run: its fields, their types, and how defaults and recipes fill them."""

from sslops.training.config.train_config import (
    RunOptions,
    TrainConfig,
    changed_fields,
    closest,
    default_out,
    make_config,
)

__all__ = [
    "RunOptions",
    "TrainConfig",
    "changed_fields",
    "closest",
    "default_out",
    "make_config",
]
