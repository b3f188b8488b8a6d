"""The methods: what a method is, and their registry."""

from sslops.training.methods.base import Batch, ContrastiveMethod, DataShape, Method
from sslops.training.methods.registry import CONTROLS, METHODS, Entry, find_method

__all__ = [
    "CONTROLS",
    "METHODS",
    "Batch",
    "ContrastiveMethod",
    "DataShape",
    "Entry",
    "Method",
    "find_method",
]
