"""NT-Xent where the samples of other ranks are negatives too."""

import torch
from torch import Tensor

from sslops._names import shown
from sslops.ops._group import GRADIENTS, as_compared, one_scale, wants
from sslops.ops._nt_xent_ids import positives
from sslops.ops._remote import Lse, against_others
from sslops.parallel import Same, Team, agree

Rows = tuple[Tensor, Tensor, Tensor]


def agree_on_nt_xent(
    team: Team,
    z: Tensor,
    num_views: int,
    scale: Tensor | None,
    factor: float,
    given: tuple[str, bool, bool, bool],
) -> list[int]:
    """Rows of every rank, once it is clear that all mean the same loss.

    `given` are reduction, normalize, whether there are ids, and return_stats.
    """
    same: dict[str, Same] = {
        "number of features": z.shape[1], "dtype": z.dtype, "num_views": num_views,
        "kind of temperature": scale is not None, "inverse temperature": factor,
        **dict(zip(("reduction", "normalize", "use of ids", "return_stats"), given, strict=True)),
        GRADIENTS: wants(z, scale),
    }  # fmt: skip
    rows = agree(team, "nt_xent", z, {"rows": len(z)}, same, {"temperature": scale})["rows"]
    if sum(rows) == 0:
        raise ValueError(
            f"nt_xent: one rank must have a sample, got rows {shown(rows)} in rank order"
        )
    return rows


def against_other_ranks(
    own: Rows,
    team: Team,
    rows: list[int],
    z: Tensor,
    ids: Tensor | None,
    num_views: int,
    scale: Tensor | None,
    factor: float,
    normalize: bool,
    stats: bool,
) -> Rows:
    """(loss [M], lse [M], hit [M] or [0]) among the samples of all ranks.

    The positives are on this rank, so that others only add to the log-sum-exp:

        loss = log(e^own + e^(a - p)),  a over the rows of others, p the mean of the positives

    Args:
        own: the same among this rank's samples.
        team: the ranks.
        rows: of every rank.
        z: [M, D], as of `sslops.nt_xent`, like the rest.
        ids: [B] of the samples, or None.
        num_views: V.
        scale: 0-d or None.
        factor: see `scale`.
        normalize: whether rows are divided by their norms.
        stats: whether hits are wanted.
    """
    x, kappa = as_compared(z, normalize), one_scale(scale, factor, z)
    row_ids = None if ids is None else ids.repeat(num_views)
    logits = positives(x, num_views, False) * kappa  # [M, V - 1]
    M = len(z)
    targets = torch.arange(M, device=z.device)
    if M:
        best = logits.detach().argmax(dim=1)  # the anchor that hits are judged by
        targets = (targets + (best + 1) * (M // num_views)) % M
    others = Lse(lambda *_: (x, targets), row_ids, stats=stats)
    (lse,) = against_others([others], team, rows, x, x, row_ids, kappa)
    loss, own_lse, hit = own
    total = torch.logaddexp(loss, lse - logits.mean(dim=1))
    if others.hit is not None:
        hit = hit & others.hit
    return total, torch.logaddexp(own_lse, lse.detach()), hit
