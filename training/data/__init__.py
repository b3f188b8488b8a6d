"""Data sets in memory, images as uint8, sound as int16; `load` finds them by name."""

from sslops.training.data.clips import Clips, Video
from sslops.training.data.dataset import Batch, Dataset, DataShape, Split
from sslops.training.data.registry import load, names
from sslops.training.data.split import split_validation, subset
from sslops.training.data.waves import Waves

__all__ = [
    "Batch",
    "Clips",
    "DataShape",
    "Dataset",
    "Split",
    "Video",
    "Waves",
    "load",
    "names",
    "split_validation",
    "subset",
]
