"""Pairwise sigmoid loss with the texts of all ranks: a sum over blocks, as in SigLIP's own ring."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops._library import op
from sslops._names import shown
from sslops.ops._group import GRADIENTS, as_compared, one_scale, wants
from sslops.ops._remote import against_others, wide
from sslops.parallel import Team, agree


def others_texts(
    team: Team,
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    scale: Tensor | None,
    factor: float,
    bias: Tensor | None,
    value: float,
    normalize: bool,
    given: Mapping[str, bool | str],
) -> Tensor:
    """Sum over all pairs of this rank's images and the texts of other ranks, 0-d.

    Args:
        team: the ranks.
        image: [M, D], as of the op sigmoid_loss_fwd, like the rest; M may be 0.
        text: [N, D], this rank's.
        image_ids: [M] or None.
        text_ids: [N] or None.
        scale: 0-d or None.
        factor: see `scale`.
        bias: 0-d or None.
        value: of the bias, if that is None.
        normalize: whether rows are divided by their norms.
        given: what else must be the same on all ranks, by its name for errors.
    """
    name = "sigmoid_loss"
    same = {
        "number of features": image.shape[1], "dtype": image.dtype,
        "kind of logit_scale": scale is not None, "logit_scale": factor,
        "kind of logit_bias": bias is not None, "logit_bias": value,
        "normalize": normalize, **given,
        GRADIENTS: wants(image, text, scale, bias),
    }  # fmt: skip
    sizes = {"images": len(image), "texts": len(text)}
    scalars = {"logit_scale": scale, "logit_bias": bias}
    found = agree(team, name, image, sizes, same, scalars)
    if sum(found["images"]) == 0:
        raise ValueError(f"{name}: one rank must have an image, got {shown(found['images'])}")
    shift = wide(image).new_full((), value) if bias is None else bias
    numbers = torch.stack([one_scale(scale, factor, image), shift])
    x, y = as_compared(image, normalize), as_compared(text, normalize)
    (total,) = against_others(
        [NegativePairs(image_ids)], team, found["texts"], x, y, text_ids, numbers
    )
    return total


class NegativePairs:
    """Sum over all pairs with the blocks, 0-d; none of them is positive.

    The op takes pairs of the same number for positives: log(1 + e^-l) of those becomes
    log(1 + e^l) by adding l.
    """

    def __init__(self, ids: Tensor | None) -> None:
        self.ids = ids

    def start(self, x: Tensor) -> Tensor:
        """No pair."""
        return wide(x).new_zeros(())

    def forward(
        self, total: Tensor, x: Tensor, block: Tensor, ids: Tensor | None, scale: Tensor
    ) -> Tensor:
        """Add those of one block."""
        return total + self._sum(x, block, ids, scale)

    def backward(
        self,
        grad: Tensor,
        total: Tensor,
        x: Tensor,
        block: Tensor,
        ids: Tensor | None,
        scale: Tensor,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The op's single pass gives the gradients together with the sum."""
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (x, block, scale)]
            value = self._sum(inputs[0], inputs[1], ids, inputs[2])
            dx, dy, dscale = torch.autograd.grad(value, inputs, grad)
        return dx, dy, dscale

    def _sum(self, x: Tensor, y: Tensor, y_ids: Tensor | None, numbers: Tensor) -> Tensor:
        x_ids, (scale, bias) = self.ids, numbers.unbind()
        if len(x) > len(y):  # each row needs its own on the other side
            x, y, x_ids, y_ids = y, x, y_ids, x_ids
        if x_ids is None or y_ids is None:
            x_ids = y_ids = None
        grads = torch.is_grad_enabled()
        total: Tensor = op("sigmoid_loss_fwd", x)(
            x, y, x_ids, y_ids, scale, 1.0, bias, 0.0, False, grads
        )[0]
        logits = (wide(x) * wide(y[: len(x)])).sum(dim=1) * scale + bias
        if x_ids is not None and y_ids is not None:
            out = (x_ids == y_ids[: len(x)]) & (x_ids >= 0)
            logits = torch.where(out, -F.softplus(-logits, threshold=40.0), logits)
        return total + logits.sum()
