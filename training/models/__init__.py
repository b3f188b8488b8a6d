"""Encoders and heads."""

from sslops.training.models.heads import Projector
from sslops.training.models.registry import build_encoder, encoder_names

__all__ = ["Projector", "build_encoder", "encoder_names"]
