"""Data sets as uint8 tensors in memory: one file a source, `load` finds them by name."""

from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.registry import load, names
from sslops.training.data.split import split_validation, subset

__all__ = ["Dataset", "Split", "load", "names", "split_validation", "subset"]
