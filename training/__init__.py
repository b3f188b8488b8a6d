"""Self-supervised training: one loop, one file a method, one report."""

from sslops.training.export import load_encoder
from sslops.training.run import Result, train

__all__ = ["Result", "load_encoder", "train"]
