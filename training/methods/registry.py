"""Methods by name. A new method adds its import and its line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sslops.training.config import TrainConfig, closest
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
from sslops.training.methods.supervised import Supervised
from sslops.training.methods.video_colorization import VideoColorization, VideoColorizationConfig

__all__ = ["METHODS", "Entry", "find_method"]


class Entry(NamedTuple):
    """A method's config class, its constructor, and one line about it."""

    config: type[TrainConfig]
    build: Callable[[Any, DataShape], Method]
    summary: str

    @property
    def kind(self) -> str:
        """What it learns from: image, sound or video."""
        return self.config.kind


METHODS: dict[str, Entry] = {
    "simclr": Entry(
        SimCLRConfig, SimCLR, "contrast two views of an image (Chen et al. 2020, arXiv:2002.05709)"
    ),
    "moco": Entry(
        MoCoConfig,
        MoCo,
        "match a view to its key among a queue of keys, v1 and v2 (He et al. 2020,"
        " arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297)",
    ),
    "mocov3": Entry(
        MoCoV3Config,
        MoCoV3,
        "predict a slow copy's keys, in-batch negatives (Chen et al. 2021, arXiv:2104.02057)",
    ),
    "cpc-audio": Entry(
        CPCAudioConfig,
        CPCAudio,
        "predict the next frames of sound (van den Oord et al. 2018, arXiv:1807.03748)",
    ),
    "cpc-image": Entry(
        CPCImageConfig,
        CPCImage,
        "predict the rows of patches below (van den Oord et al. 2018, arXiv:1807.03748)",
    ),
    "rotation": Entry(
        RotationConfig,
        Rotation,
        "tell by how many quarter turns an image is rotated (Gidaris et al. 2018,"
        " arXiv:1803.07728)",
    ),
    "inpainting": Entry(
        InpaintingConfig,
        Inpainting,
        "fill holes from what lies around them (Pathak et al. 2016, arXiv:1604.07379)",
    ),
    "relative-patch": Entry(
        RelativePatchConfig,
        RelativePatch,
        "tell which neighbour of a patch another one is (Doersch et al. 2015, arXiv:1505.05192)",
    ),
    "jigsaw": Entry(
        JigsawConfig,
        Jigsaw,
        "tell the order of shuffled tiles (Noroozi & Favaro 2016, arXiv:1603.09246)",
    ),
    "colorization": Entry(
        ColorizationConfig,
        Colorization,
        "predict the colours of a picture from its lightness (Zhang et al. 2016, arXiv:1603.08511)",
    ),
    "split-brain": Entry(
        SplitBrainConfig,
        SplitBrain,
        "predict colours from lightness and lightness from colours, with two halves of a network"
        " (Zhang et al. 2017, arXiv:1611.09842)",
    ),
    "video-colorization": Entry(
        VideoColorizationConfig,
        VideoColorization,
        "copy a grey frame's colours from frames before it (Vondrick et al. 2018,"
        " arXiv:1806.09594)",
    ),
    "supervised": Entry(
        TrainConfig, Supervised, "cross-entropy with labels: the control, not a method to learn by"
    ),
}


def find_method(name: str) -> Entry:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"train: no such method, got {name!r}{closest(name, METHODS)}")
    return METHODS[name]
