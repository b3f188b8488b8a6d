"""Features of a frozen encoder, computed once, with proof that it stayed frozen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["extract", "pixels", "spread"]

MAX_PIXEL_SIDE = 32  # raw pixels of larger images are averaged to this side first


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Tensor,
    *,
    batch: int = 512,
    device: str | torch.device | None = None,
) -> Tensor:
    """Encode all images in evaluation mode, without gradient.

    Args:
        encoder: [B, C, H, W] float32 in [0, 1] -> [B, dim]; left in the mode it came in.
        images: [N, C, H, W] uint8.
        batch: images at a time; changes nothing but memory.
        device: where to run; default where the encoder's weights are.

    Returns:
        [N, dim] float32 on the CPU.

    Raises:
        TypeError: images are not uint8.
        ValueError: no images, or the output is not [B, dim].
        RuntimeError: a weight or buffer changed on the way (a batch norm that kept counting,
            say), so the features belong to no single encoder.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"extract: images must be uint8, got {images.dtype}")
    if images.ndim != 4 or not len(images):
        raise ValueError(f"extract: needs images [N, C, H, W], got {tuple(images.shape)}")
    state = encoder.state_dict()
    if device is None:
        device = next((value.device for value in state.values()), torch.device("cpu"))
    encoder.to(device)
    modes = {module: module.training for module in encoder.modules()}
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.eval()
    try:
        rows = []
        for chunk in torch.split(images, batch):
            out = encoder(chunk.to(device).float().div_(255))
            if out.ndim != 2:
                raise ValueError(f"extract: encoder must return [B, dim], got {tuple(out.shape)}")
            rows.append(out.float().cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    after = encoder.state_dict()
    changed = [name for name in before if not _same_bits(before[name], after[name])]
    if changed:
        raise RuntimeError(
            f"extract: the encoder must stay as it is in evaluation mode, got new values of "
            f"{', '.join(changed[:3])}; look for layers that update themselves in forward"
        )
    return torch.cat(rows)


def pixels(images: Tensor) -> Tensor:
    """The images as features, [N, C, H, W] uint8 -> [N, C * H * W] float32 in [0, 1].

    Sides above 32 are averaged down: more pixels are a slower baseline, not a better one.
    """
    height, width = images.shape[2:]
    rows = []
    for chunk in torch.split(images, 4096):
        x = chunk.float().div_(255)
        if max(height, width) > MAX_PIXEL_SIDE:
            x = F.adaptive_avg_pool2d(x, (min(height, MAX_PIXEL_SIDE), min(width, MAX_PIXEL_SIDE)))
        rows.append(x.flatten(1))
    return torch.cat(rows)


def spread(features: Tensor) -> dict[str, float]:
    """How much of the space features fill; a collapsed encoder has both near zero.

    Returns:
        "feature_std": standard deviation over images of the L2-normalised features, times
        sqrt(dim), so that 1 is evenly spread.
        "rank": exp of the entropy of the covariance's eigenvalues, between 1 and dim.
    """
    unit = F.normalize(features, dim=1)
    centred = unit - unit.mean(0)
    std = centred.pow(2).mean(0).sqrt().mean() * features.shape[1] ** 0.5
    some = centred[:2000].double()
    gram = some.T @ some if some.shape[1] <= len(some) else some @ some.T  # same eigenvalues
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    total = values.sum()
    if not total > 0:
        return {"feature_std": float(std), "rank": 1.0}
    share = values / total
    entropy = -torch.special.xlogy(share, share).sum()
    return {"feature_std": float(std), "rank": float(entropy.exp())}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if isinstance(a, DTensor) and isinstance(b, DTensor):  # sharded: this process's part
        a, b = a.to_local(), b.to_local()
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # As bytes, so that a NaN equals itself.
    return torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )
