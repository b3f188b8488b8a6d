"""The methods: what a method is, and their registry."""

from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.registry import METHODS, Entry, find_method

__all__ = ["METHODS", "Batch", "DataShape", "Entry", "Method", "find_method"]
