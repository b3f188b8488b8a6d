"""Methods by name. A new method adds its import and its line here, and one to the catalogue."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sslops.training.config import TrainConfig, closest
from sslops.training.loggers.words import Kind
from sslops.training.methods.base import DataShape, Method
from sslops.training.methods.colorization import Colorization, ColorizationConfig
from sslops.training.methods.cpc_audio import CPCAudio, CPCAudioConfig
from sslops.training.methods.cpc_image import CPCImage, CPCImageConfig
from sslops.training.methods.inpainting import Inpainting, InpaintingConfig
from sslops.training.methods.jigsaw import Jigsaw, JigsawConfig
from sslops.training.methods.moco import MoCo, MoCoConfig
from sslops.training.methods.mocov3 import MoCoV3, MoCoV3Config
from sslops.training.methods.relative_patch import RelativePatch, RelativePatchConfig
from sslops.training.methods.rotation import Rotation, RotationConfig
from sslops.training.methods.simclr import SimCLR, SimCLRConfig
from sslops.training.methods.split_brain import SplitBrain, SplitBrainConfig
from sslops.training.methods.supervised import Supervised, SupervisedConfig
from sslops.training.methods.supervised_audio import SupervisedAudio
from sslops.training.methods.video_colorization import VideoColorization, VideoColorizationConfig

__all__ = ["CONTROLS", "METHODS", "Entry", "find_method"]


class Entry(NamedTuple):
    """A method's config class and its constructor."""

    config: type[TrainConfig]
    build: Callable[[Any, DataShape], Method]

    @property
    def kind(self) -> Kind:
        """What it learns from: image, sound or video."""
        return self.config.kind


# In the order in which they are listed; what they are is said in training/cli/catalogue.py.
METHODS: dict[str, Entry] = {
    "simclr": Entry(SimCLRConfig, SimCLR),
    "moco": Entry(MoCoConfig, MoCo),
    "mocov3": Entry(MoCoV3Config, MoCoV3),
    "cpc-audio": Entry(CPCAudioConfig, CPCAudio),
    "cpc-image": Entry(CPCImageConfig, CPCImage),
    "rotation": Entry(RotationConfig, Rotation),
    "inpainting": Entry(InpaintingConfig, Inpainting),
    "relative-patch": Entry(RelativePatchConfig, RelativePatch),
    "jigsaw": Entry(JigsawConfig, Jigsaw),
    "colorization": Entry(ColorizationConfig, Colorization),
    "split-brain": Entry(SplitBrainConfig, SplitBrain),
    "video-colorization": Entry(VideoColorizationConfig, VideoColorization),
    "supervised": Entry(SupervisedConfig, Supervised),
}


# What is trained with labels beside a method, by what it learns from.
CONTROLS: dict[Kind, Callable[[Any, DataShape], Method]] = {
    "image": Supervised,
    "sound": SupervisedAudio,
}


def find_method(name: str) -> Entry:
    """The method of that name.

    Raises:
        TypeError: not a name.
        ValueError: there is none.
    """
    if not isinstance(name, str):
        raise TypeError(
            "train: method must be a name that `sslops list` shows, got"
            f" {getattr(name, '__name__', type(name).__name__)}"
        )
    if name not in METHODS:
        raise ValueError(f"train: no such method, got {name!r}{closest(name, METHODS)}")
    return METHODS[name]
