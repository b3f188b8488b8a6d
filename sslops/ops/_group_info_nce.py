"""InfoNCE and CLIP where the keys of other ranks are negatives too."""

import torch
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops._library import op
from sslops._names import shown
from sslops.ops._group import GRADIENTS, as_compared, of_no_rows, one_scale, wants
from sslops.ops._info_nce_op import InfoNCEStats, info_nce_rows
from sslops.ops._remote import Lse, against_others, wide
from sslops.ops._remote_pairs import pairs_with_others
from sslops.parallel import Team, agree
from sslops.reference._rows import followed


def rows_of_team(
    team: Team, name: str, a: InfoNCEArgs, *, given: dict[str, float | str]
) -> tuple[Tensor, InfoNCEStats]:
    """`info_nce_rows` of this rank's queries among the keys of all ranks.

    Args:
        team: the ranks.
        name: of the loss.
        a: the comparison with this rank's keys.
        given: what else must be the same on all ranks, by its name for errors.
    """
    same = {
        "number of features": a.queries.shape[1], "dtype": a.queries.dtype,
        "kind of temperature": a.scale is not None, "inverse temperature": a.scale_factor,
        "symmetric": a.symmetric, "normalize": a.normalize, "return_stats": a.stats,
        "use of ids": a.query_ids is not None, "use of a queue": a.negatives is not None, **given,
        GRADIENTS: wants(a.queries, a.keys, a.scale),
    }  # fmt: skip
    sizes = {"queries": len(a.queries), "keys": len(a.keys)}
    found = agree(team, name, a.queries, sizes, same, {"temperature": a.scale})
    if sum(found["queries"]) == 0:
        rows = shown(found["queries"])
        raise ValueError(f"{name}: one rank must have a row, got {rows} in rank order")
    if a.symmetric:
        loss, lse, key_loss, key_lse, hit, key_hit = pairs_among_all(team, found["keys"], a)
        both = InfoNCEStats(loss.detach(), lse, hit, key_loss.detach(), key_lse, key_hit)
        return 0.5 * (loss + key_loss), both
    none = wide(a.queries).new_empty(0)
    no_hit = torch.empty(0, dtype=torch.bool, device=a.queries.device)
    own = (of_no_rows(a.scale, a.queries, a.keys), none, no_hit)  # of no rows, with their gradient
    if len(a.queries):
        loss, alone = info_nce_rows(a)
        own = (loss, alone.lse, alone.hit)
    if a.negatives is None:
        own = against_other_keys(own, team, found["keys"], a)
    loss, lse, hit = own
    return loss, InfoNCEStats(loss.detach(), lse, hit, none, none, no_hit)


def against_other_keys(
    own: tuple[Tensor, Tensor, Tensor], team: Team, rows: list[int], a: InfoNCEArgs
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [M], lse [M], hit [M] or [0]) of this rank's queries among the keys of all.

    Args:
        own: the same among this rank's keys.
        team: the ranks.
        rows: keys of every rank.
        a: the comparison with this rank's keys, the positives among them.
    """
    x, k = as_compared(a.queries, a.normalize), as_compared(a.keys, a.normalize)
    kappa = one_scale(a.scale, a.scale_factor, a.queries)
    others = Lse(lambda *_: (k, a.targets), a.query_ids, stats=a.stats)
    (lse,) = against_others([others], team, rows, x, k, a.key_ids, kappa)
    loss, own_lse, hit = own
    total = torch.logaddexp(loss, lse - _positive(x, k, a.targets) * kappa)
    if others.hit is not None:
        hit = hit & others.hit
    return total, torch.logaddexp(own_lse, lse.detach()), hit


def pairs_among_all(team: Team, rows: list[int], a: InfoNCEArgs) -> tuple[Tensor, ...]:
    """(loss, lse, key_loss, key_lse, hit, key_hit), both directions among the pairs of all ranks.

    From the same tiles for both directions, unless ids or hits are wanted: then one direction
    after the other.
    """
    none, no_hit = (
        of_no_rows(a.scale, a.queries, a.keys),
        torch.empty(0, dtype=torch.bool, device=a.queries.device),
    )
    own: tuple[Tensor, ...] = (none, none, none, none, no_hit, no_hit)  # of no pairs
    if len(a.queries):
        a = a._replace(row_weights=None)
        loss, lse, key_loss, key_lse, *_, hit, key_hit = op("info_nce_fwd", a.queries)(*a)
        own = (loss, lse, key_loss, key_lse, hit, key_hit)
    loss, lse, key_loss, key_lse, hit, key_hit = own
    if a.stats or a.query_ids is not None:
        loss, lse, hit = against_other_keys((loss, lse, hit), team, rows, a)
        turned = a._replace(
            queries=a.keys, keys=a.queries, query_ids=a.key_ids, key_ids=a.query_ids
        )
        key_loss, key_lse, key_hit = against_other_keys(
            (key_loss, key_lse, key_hit), team, rows, turned
        )
        return loss, lse, key_loss, key_lse, hit, key_hit
    x, k = as_compared(a.queries, a.normalize), as_compared(a.keys, a.normalize)
    kappa = one_scale(a.scale, a.scale_factor, a.queries)
    of_rows, of_columns = pairs_with_others(team, rows, x, k, kappa)
    positive = _positive(x, k, None) * kappa
    return (
        torch.logaddexp(loss, of_rows - positive),
        torch.logaddexp(lse, of_rows.detach()),
        torch.logaddexp(key_loss, of_columns - positive),
        torch.logaddexp(key_lse, of_columns.detach()),
        no_hit,
        no_hit,
    )


def _positive(x: Tensor, k: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None:
        return (wide(x) * wide(k[: len(x)])).sum(dim=1)
    index, inside = followed(targets, len(k))
    product = (wide(x) * wide(k.index_select(0, index))).sum(dim=1)
    return torch.where(inside, product, float("nan"))
