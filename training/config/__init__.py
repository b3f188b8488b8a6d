"""The configuration of a run: its fields, their types, and how defaults and recipes fill them."""

from sslops.training.config.groups import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    OptimisationConfig,
    SystemConfig,
)
from sslops.training.config.train_config import (
    RunOptions,
    TrainConfig,
    VideoConfig,
    changed_fields,
    closest,
    default_out,
    departures,
    make_config,
    unread_fields,
)

__all__ = [
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "OptimisationConfig",
    "RunOptions",
    "SystemConfig",
    "TrainConfig",
    "VideoConfig",
    "changed_fields",
    "closest",
    "default_out",
    "departures",
    "make_config",
    "unread_fields",
]
