"""Encoders and heads."""

from sslops.training.models.heads import Projector, plain_head
from sslops.training.models.registry import build_encoder, encoder_names
from sslops.training.models.vit import ViT

__all__ = ["Projector", "ViT", "build_encoder", "encoder_names", "plain_head"]
