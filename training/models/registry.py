"""Names of the encoders, and the one function that builds them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sslops._names import shown
from sslops.training.models.audio import AudioEncoder
from sslops.training.models.cnn import CNN
from sslops.training.models.colour_inputs import build_colour_encoder
from sslops.training.models.frames import FrameCNN
from sslops.training.models.patches import PatchEncoder
from sslops.training.models.resnet import ResNet
from sslops.training.models.subsampled import subsample_first
from sslops.training.models.vit import ViT

__all__ = ["build_encoder", "check_side", "encoder_names", "rebuild_encoder"]

SMALL = 64  # largest side in pixels of images that get the CIFAR stem


def _cnn_tiny(channels: int, image_size: int, *, width: int = 32, pool: int = 1) -> nn.Module:
    return CNN(channels, (width, 2 * width, 4 * width), (1, 1, 2), pool)


def _cnn4(channels: int, image_size: int, *, width: int = 32, pool: int = 1) -> nn.Module:
    return CNN(channels, (width, 2 * width, 4 * width, 8 * width), (2, 1, 2, 2), pool)


def _patches(channels: int, image_size: int, *, width: int = 32, patch: int = 8) -> nn.Module:
    return PatchEncoder(channels, width=width, patch=patch)


def _frames(channels: int, image_size: int, *, width: int = 32) -> nn.Module:
    return FrameCNN(channels, width=width)


def _resnet(depth: int) -> Callable[..., nn.Module]:
    def build(
        channels: int, image_size: int, *, width: int = 64, zero_init: bool = True
    ) -> nn.Module:
        small = image_size <= SMALL
        return ResNet(channels, depth, width=width, small_stem=small, zero_init=zero_init)

    return build


def _vit(width: int, heads: int) -> Callable[..., nn.Module]:
    def build(
        channels: int,
        image_size: int,
        *,
        width: int = width,
        depth: int = 12,
        heads: int = heads,
        patch: int | None = None,
        pool: int | None = None,
    ) -> nn.Module:
        if patch is None:
            patch = 16 if image_size > SMALL else 4 if image_size > 16 else 2
        return ViT(channels, image_size, patch=patch, width=width, depth=depth, heads=heads,
                   pool=pool)  # fmt: skip

    return build


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "cnn-tiny": _cnn_tiny,
    "cnn4": _cnn4,
    "cpc-patches": _patches,
    "frame-cnn": _frames,
    "resnet18": _resnet(18),
    "resnet50": _resnet(50),
    "vit-tiny": _vit(192, 3),
    "vit-small": _vit(384, 12),  # as in MoCo v3; DeiT's has 6 heads
    "vit-base": _vit(768, 12),
}


def encoder_names() -> list[str]:
    """What `build_encoder` takes."""
    return list(BUILDERS)


def build_encoder(
    arch: str,
    channels: int,
    image_size: int,
    *,
    seed: int | None = None,
    inputs: str = "rgb",
    **options: Any,
) -> nn.Module:
    """Build an encoder with random weights: [B, C, H, W] in [0, 1] -> [B, encoder.dim].

    Args:
        arch: "cnn-tiny" for 8x8 images, "cnn4" for 28 to 32 px, "cpc-patches" of CPC, "frame-cnn"
            of video colorization, "resnet18" or "resnet50" (CIFAR stem up to 64 px, ImageNet stem
            above), "vit-tiny", "vit-small" or "vit-base" (patches of 16 px; 4 up to 64 px, 2 up to
            16).
        channels: C, 1 or 3.
        image_size: shorter side in pixels; chooses the stem or the patch. Any size can be encoded,
            by a vit any multiple of its patch.
        seed: of the weights; None takes them from torch's global generator.
        inputs: channels of colour images that the network sees: "rgb" (all of grey images too),
            "lightness" or "ab" of Lab, or "split" for two networks of half the width, one of
            each. The encoder takes RGB images in any case.
        **options: `width` of the first layer; `pool`, cells a side that the cnn's features keep
            (1 is global average pooling), or that a vit's patch tokens are averaged to (its
            features are the class token without it); `zero_init` of resnets; `patch` of
            cpc-patches and vits, `depth` and `heads` of vits.

    Raises:
        ValueError: unknown `arch` or option, `channels` not 1 or 3, or not 3 where `inputs` asks
            for colour, or an image that cannot be cut into patches.
    """
    if arch not in BUILDERS:
        raise ValueError(f"build_encoder: arch must be one of {', '.join(BUILDERS)}, got {arch!r}")
    if channels not in (1, 3):
        raise ValueError(f"build_encoder: channels must be 1 or 3, got {channels}")
    build = BUILDERS[arch]
    known = [name for name in inspect.signature(build).parameters][2:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"build_encoder: options of {arch} are {', '.join(known)}, got {shown(unknown, ', ')}"
        )
    # Only the CPU generator is forked: encoders are built there and moved afterwards.
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if inputs == "rgb":
            encoder = build(channels, image_size, **options)
        else:
            encoder = build_colour_encoder(build, inputs, channels, image_size, options)
    subsample_first(encoder)
    return encoder


def rebuild_encoder(about: Mapping[str, Any]) -> nn.Module:
    """The network that the description beside exported weights names, with random weights.

    Args:
        about: "arch", "options", and "rate" of sound or "channels" and "image_size" of images.
    """
    if "rate" in about:
        return AudioEncoder(about["rate"], **about["options"])
    return build_encoder(about["arch"], about["channels"], about["image_size"], **about["options"])


@torch.no_grad()
def check_side(method: str, encoder: nn.Module, channels: int, side: int) -> None:
    """Try the encoder on a tile, which may be far smaller than the images it was built for.

    Args:
        method: whose name the error has.
        encoder: on the CPU; stays as it is.
        channels: of the tile.
        side: of the tile, in pixels.

    Raises:
        ValueError: it cannot encode it.
    """
    training = encoder.training
    try:
        encoder.eval()(torch.zeros(1, channels, side, side))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{method}: the encoder must take tiles of {side} pixels: {error}"
        ) from error
    finally:
        encoder.train(training)
