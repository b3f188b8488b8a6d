"""`ClipLoss` and `SigLipLoss` of open_clip 3, whose `open_clip.loss` defines them.

Arguments and differences: docs/migration/open_clip.md.
"""

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import clip_loss, info_nce, sigmoid_loss
from sslops.compat._shared import bias_fits, factor_fits, inverse, rows_fit, settings_of
from sslops.distributed import all_gather_with_grad
from sslops.distributed import rank as own_rank
from sslops.distributed import world_size as processes

__all__ = ["ClipLoss", "SigLipLoss"]


def _scale_of(loss: Any, image: Tensor, text: Tensor, scale: Any) -> Any:
    """The scale as the kernels take it, or NotImplemented if they do not cover the inputs."""
    if not rows_fit(image, text) or image.shape != text.shape:
        return NotImplemented
    if isinstance(scale, Tensor) and scale.ndim == 0:
        scale = scale.to(image.device)  # as any product with a tensor of no dimension does
    if not factor_fits(scale, image) or (loss.world_size > 1 and not _is_the_world(loss)):
        return NotImplemented
    return scale


def _bias_of(bias: Any, image: Tensor) -> Any:
    """The bias as the kernels take it, or NotImplemented."""
    if isinstance(bias, Tensor) and bias.ndim == 0:
        bias = bias.to(image.device)
    bias = 0.0 if bias is None else bias
    return bias if bias_fits(bias, image) else NotImplemented


def _is_the_world(loss: Any) -> bool:
    return bool((loss.rank, loss.world_size) == (own_rank(), processes()))


def _check_world(loss: Any) -> None:
    if not _is_the_world(loss):
        raise ValueError(
            f"{type(loss).__name__}: rank and world_size must be those of torch.distributed,"
            f" {own_rank()} of {processes()}, got {loss.rank} of {loss.world_size}"
        )


def _returned(loss: Tensor, output_dict: bool) -> Any:
    return {"contrastive_loss": loss} if output_dict else loss


def _logits(
    rows: Tensor, columns: Tensor, scale: float | Tensor, bias: float | Tensor | None
) -> Tensor:
    logits = scale * rows @ columns.T
    return logits if bias is None else logits + bias


class ClipLoss(nn.Module):
    """CLIP's loss of unit features, as open_clip computes it.

    With several processes the gradient after DistributedDataParallel's mean is that of one process
    with the whole batch, whatever the flags say; memory is that of the features alone.

    Args:
        local_loss: return the mean over this process's pairs instead of that over all pairs.
        gather_with_grad: accepted; gradients always flow back to their process.
        cache_labels: accepted; there are no labels to cache.
        rank: of this process.
        world_size: number of processes.
        use_horovod: accepted with one process; with several the features go through
            torch.distributed, so that the forward raises.

    Raises:
        ValueError: with several processes `use_horovod`, or a rank or world size that is not
            torch.distributed's; images and texts of different numbers.

    Example:
        >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=2)
        >>> sorted(ClipLoss()(image, text, torch.tensor(14.3), output_dict=True))
        ['contrastive_loss']
    """

    reads = ("local_loss", "rank", "world_size", "use_horovod")  # `fused` does

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.use_horovod = use_horovod

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(
            self, local_loss=False, gather_with_grad=False, cache_labels=False, rank=0, world_size=1
        )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """Loss of [N, D] and [N, D]; a softmax is blind to one bias, which gets the gradient 0."""
        args = (image_features, text_features, logit_scale, logit_bias)
        found = self.fused(*args, output_dict)
        if found is not NotImplemented:
            return found
        of_images, of_texts = self.get_logits(*args)
        labels = self.get_ground_truth(image_features.device, len(of_images))
        loss = F.cross_entropy(of_images, labels) + F.cross_entropy(of_texts, labels)
        return _returned(loss / 2, output_dict)

    def fused(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """The result by kernels, or NotImplemented."""
        scale: Any = _scale_of(self, image_features, text_features, logit_scale)
        bias = _bias_of(logit_bias, image_features)
        horovod = self.use_horovod and self.world_size > 1
        if scale is NotImplemented or bias is NotImplemented or horovod:
            return NotImplemented
        if self.world_size > 1:
            loss = _against_all(self, image_features, text_features, scale)
        else:
            loss = cast(Tensor, clip_loss(image_features, text_features, scale, normalize=False))
        if isinstance(bias, Tensor):
            loss = loss + bias.sum() * (0.0 * loss.detach())
        return _returned(loss, output_dict)

    def get_ground_truth(self, device: torch.device | str, num_logits: int) -> Tensor:
        """Which column belongs to each row of `get_logits`; for subclasses, not used here."""
        first = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        return torch.arange(first, first + num_logits, device=device)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of images and of texts, stored; for subclasses, not used here."""
        images, texts = image_features, text_features
        if self.world_size > 1:
            if self.use_horovod:
                raise ValueError("ClipLoss: use_horovod must be False with several processes")
            _check_world(self)
            images, texts = all_gather_with_grad(images), all_gather_with_grad(texts)
            if not self.local_loss:
                image_features, text_features = images, texts
        of_images = _logits(image_features, texts, logit_scale, logit_bias)
        return of_images, _logits(text_features, images, logit_scale, logit_bias)


def _against_all(self: Any, image: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    own = torch.arange(len(image), device=image.device) + self.rank * len(image)
    options: Any = {"targets": own, "temperature": inverse(scale), "normalize": False}
    of_images = cast(Tensor, info_nce(image, all_gather_with_grad(text), **options))
    of_texts = cast(Tensor, info_nce(text, all_gather_with_grad(image), **options))
    loss = 0.5 * (of_images + of_texts)
    if self.local_loss:
        return loss
    everyone = loss.detach().clone()
    dist.all_reduce(everyone)
    # the value of all, own gradient
    return loss + (everyone / processes() - loss.detach())


class SigLipLoss(nn.Module):
    """SigLIP's pairwise loss of unit features, as open_clip computes it.

    With several processes each returns the sum over its own images against everyone's texts over
    the number of its images.

    Args:
        cache_labels: accepted; there are no labels to cache.
        rank: of this process.
        world_size: number of processes.
        dist_impl: "bidir", "shift", "reduce" or "gather", the same numbers by another road in
            open_clip; here the texts are gathered.

    Raises:
        ValueError: unknown `dist_impl`; with several processes a rank or world size that is not
            torch.distributed's.

    Example:
        >>> image, text = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=2)
        >>> SigLipLoss()(image, text, torch.tensor(10.0), torch.tensor(-10.0)).shape
        torch.Size([])
    """

    reads = ("rank", "world_size")  # `fused` does

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: Literal["bidir", "shift", "reduce", "gather"] | None = None,
    ) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        if (dist_impl or "bidir") not in ("bidir", "shift", "reduce", "gather"):
            raise ValueError(
                f"SigLipLoss: dist_impl must be bidir, shift, reduce or gather, got {dist_impl!r}"
            )
        self.dist_impl = dist_impl or "bidir"

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return settings_of(self, cache_labels=False, rank=0, world_size=1, dist_impl="bidir")

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Any:
        """Loss of [N, D] and [N, D]."""
        found = self.fused(image_features, text_features, logit_scale, logit_bias, output_dict)
        if found is not NotImplemented:
            return found
        B, first = len(image_features), 0
        if self.world_size > 1:
            _check_world(self)
            text_features, first = all_gather_with_grad(text_features), self.rank * B
        logits = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        labels = -torch.ones((B, B * self.world_size), device=logits.device, dtype=logits.dtype)
        labels.diagonal(first).fill_(1.0)
        return _returned(-F.logsigmoid(labels * logits).sum() / B, output_dict)

    def fused(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Any:
        """The result by kernels, or NotImplemented."""
        scale: Any = _scale_of(self, image_features, text_features, logit_scale)
        bias = _bias_of(logit_bias, image_features)
        if scale is NotImplemented or bias is NotImplemented:
            return NotImplemented
        if self.world_size > 1:
            text_features = all_gather_with_grad(text_features)
            # row i belongs to image i: this process's texts come first
            text_features = text_features.roll(-self.rank * len(image_features), dims=0)
        loss = sigmoid_loss(image_features, text_features, scale, bias, normalize=False)
        return _returned(loss, output_dict)

    def get_ground_truth(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        num_logits: int,
        negative_only: bool = False,
    ) -> Tensor:
        """1 for a pair and -1 else: [num_logits, num_logits]; for subclasses, not used here."""
        labels = torch.full((num_logits, num_logits), -1.0, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1.0)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The logits of this process's pairs, stored; for subclasses, not used here."""
        return _logits(image_features, text_features, logit_scale, logit_bias)
