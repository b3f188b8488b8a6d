"""The package's one rule for numerical tolerance: docs/adr/0003-tolerance-rule.md."""

import torch
import torch.nn.functional as F
from torch import Tensor


def assert_as_accurate_as(
    actual: Tensor, naive: Tensor, truth: Tensor, *, name: str, scale: float, factor: float = 2.0
) -> None:
    """Fail unless `actual` errs at most `factor` times as much as plain PyTorch.

    Args:
        actual: what the implementation under test returned.
        naive: what a user would have written, run in the inputs' own dtype; elements that it
            cannot compute at all (NaN: a float16 norm of zero, say) excuse no error.
        truth: the same in float64.
        name: of the tensor, for the message.
        scale: the largest magnitude that every algorithm has to round on the way: a result near
            zero carries the rounding of what it is the difference of.
        factor: how many times plain PyTorch's error is allowed.
    """
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, expected {truth.shape}"
    assert actual.isfinite().all(), f"{name}: not finite"
    error = (actual.double() - truth).abs().max().item()
    floor = 4 * torch.finfo(naive.dtype).eps * scale
    allowed = factor * (naive.double() - truth).abs().nan_to_num(0.0).max().item() + floor
    assert error <= allowed, f"{name}: error {error:.3g} is above the allowed {allowed:.3g}"


def assert_same_in_another_order(actual: Tensor, expected: Tensor) -> None:
    """Fail if a tensor differs by more than sums of the same terms in another order may.

    A GPU lays a tile out by the strides of what it reads, so the order of a row's sum follows them.
    """
    if not expected.is_floating_point():
        assert torch.equal(actual, expected)
        return
    bound = 8 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


def naive_nt_xent(
    z: Tensor,
    temperature: float | Tensor,
    num_views: int = 2,
    normalize: bool = True,
    ids: Tensor | None = None,
) -> Tensor:
    """Per-row NT-Xent as a user writes it, [M]: the similarities are stored and masked."""
    x = F.normalize(z, dim=1) if normalize else z
    logits = x @ x.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    sample = torch.arange(len(z), device=z.device) % (len(z) // num_views)
    positive = (sample[:, None] == sample) & ~itself
    out = itself
    if ids is not None:
        row_ids = ids.repeat(num_views)
        same = (row_ids[:, None] == row_ids) & (row_ids[:, None] >= 0)
        out = itself | (same & ~positive)
    log_p = logits.masked_fill(out, float("-inf")).log_softmax(dim=1)
    return -torch.where(positive, log_p, 0.0).sum(dim=1) / (num_views - 1)


def loop_nt_xent(
    z: Tensor, temperature: float, num_views: int = 2, normalize: bool = True
) -> Tensor:
    """The same by two loops over rows, nothing shared with any implementation, [M] float64."""
    rows = [row / max(float(row.norm()), 1e-12) if normalize else row for row in z.double()]
    samples = len(rows) // num_views
    losses = []
    for i, x in enumerate(rows):
        logits = {j: float(x @ y) / temperature for j, y in enumerate(rows) if j != i}
        top = max(logits.values())
        total = sum(torch.tensor(v - top, dtype=torch.float64).exp() for v in logits.values())
        lse = top + torch.as_tensor(total).log()
        positives = [logits[j] for j in logits if j % samples == i % samples]
        losses.append(lse - sum(positives) / len(positives))
    return torch.stack(losses)
