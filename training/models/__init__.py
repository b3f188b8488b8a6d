"""Encoders and heads."""

from sslops.training.models.audio import AudioEncoder
from sslops.training.models.decoder import Decoder
from sslops.training.models.frames import FrameCNN
from sslops.training.models.heads import Projector, plain_head
from sslops.training.models.log_mel import LogMel
from sslops.training.models.patches import PatchEncoder
from sslops.training.models.registry import (
    build_encoder,
    check_side,
    encoder_names,
    rebuild_encoder,
)
from sslops.training.models.vit import ViT

__all__ = [
    "AudioEncoder",
    "Decoder",
    "FrameCNN",
    "LogMel",
    "PatchEncoder",
    "Projector",
    "ViT",
    "build_encoder",
    "check_side",
    "encoder_names",
    "plain_head",
    "rebuild_encoder",
]
