"""InfoNCE and CLIP where the keys of other ranks are negatives too."""

import torch
from torch import Tensor

from sslops._library import op
from sslops._names import shown
from sslops.ops._group import GRADIENTS, as_compared, of_no_rows, one_scale, wants
from sslops.ops._info_nce_rows import InfoNCEStats, rows_of_info_nce
from sslops.ops._remote import Lse, against_others, wide
from sslops.ops._remote_pairs import pairs_with_others
from sslops.parallel import Team, agree
from sslops.reference._rows import followed


def rows_of_team(
    team: Team,
    name: str,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    factor: float,
    *,
    symmetric: bool = False,
    normalize: bool,
    stats: bool,
    given: dict[str, float | str],
) -> tuple[Tensor, InfoNCEStats]:
    """`rows_of_info_nce` of this rank's queries among the keys of all ranks.

    Args are those of `rows_of_info_nce`, and:
        team: the ranks.
        name: of the loss.
        given: what else must be the same on all ranks, by its name for errors.
    """
    same = {
        "number of features": queries.shape[1], "dtype": queries.dtype,
        "kind of temperature": scale is not None, "inverse temperature": factor,
        "symmetric": symmetric, "normalize": normalize, "return_stats": stats,
        "use of ids": query_ids is not None, "use of a queue": negatives is not None, **given,
        GRADIENTS: wants(queries, keys, scale),
    }  # fmt: skip
    sizes = {"queries": len(queries), "keys": len(keys)}
    found = agree(team, name, queries, sizes, same, {"temperature": scale})
    if sum(found["queries"]) == 0:
        rows = shown(found["queries"])
        raise ValueError(f"{name}: one rank must have a row, got {rows} in rank order")
    ids = (query_ids, key_ids)
    options: tuple[Tensor | None, float, bool, bool] = (scale, factor, normalize, stats)
    if symmetric:
        loss, lse, key_loss, key_lse, hit, key_hit = pairs_among_all(
            team, found["keys"], queries, keys, query_ids, key_ids, *options
        )
        both = InfoNCEStats(loss.detach(), lse, hit, key_loss.detach(), key_lse, key_hit)
        return 0.5 * (loss + key_loss), both
    none = wide(queries).new_empty(0)
    no_hit = torch.empty(0, dtype=torch.bool, device=queries.device)
    own = (of_no_rows(scale, queries, keys), none, no_hit)  # of no rows, but with their gradient
    if len(queries):
        loss, alone = rows_of_info_nce(
            queries, keys, negatives, targets, *ids, scale, factor, normalize=normalize, stats=stats
        )
        own = (loss, alone.lse, alone.hit)
    if negatives is None:
        own = against_other_keys(
            own, team, found["keys"], queries, keys, targets, query_ids, key_ids, *options
        )
    loss, lse, hit = own
    return loss, InfoNCEStats(loss.detach(), lse, hit, none, none, no_hit)


def against_other_keys(
    own: tuple[Tensor, Tensor, Tensor],
    team: Team,
    rows: list[int],
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    factor: float,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [M], lse [M], hit [M] or [0]) of this rank's queries among the keys of all.

    Args:
        own: the same among this rank's keys.
        team: the ranks.
        rows: keys of every rank.
        queries: [M, D], as of the op info_nce_fwd, like the rest.
        keys: [N, D], of this rank, the positives among them.
        targets: [M] or None.
        query_ids: [M] or None.
        key_ids: [N] or None.
        scale: 0-d or None.
        factor: see `scale`.
        normalize: whether rows are divided by their norms.
        stats: whether hits are wanted.
    """
    x, k = as_compared(queries, normalize), as_compared(keys, normalize)
    kappa = one_scale(scale, factor, queries)
    others = Lse(lambda *_: (k, targets), query_ids, stats=stats)
    (lse,) = against_others([others], team, rows, x, k, key_ids, kappa)
    loss, own_lse, hit = own
    total = torch.logaddexp(loss, lse - _positive(x, k, targets) * kappa)
    if others.hit is not None:
        hit = hit & others.hit
    return total, torch.logaddexp(own_lse, lse.detach()), hit


def pairs_among_all(
    team: Team,
    rows: list[int],
    queries: Tensor,
    keys: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    factor: float,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, ...]:
    """What the op info_nce_fwd gives with `columns`, among the pairs of all ranks.

    From the same tiles for both directions, unless ids or hits are wanted: then one direction
    after the other.
    """
    none, no_hit = (
        of_no_rows(scale, queries, keys),
        torch.empty(0, dtype=torch.bool, device=queries.device),
    )
    own: tuple[Tensor, ...] = (none, none, none, none, no_hit, no_hit)  # of no pairs
    if len(queries):
        own = op("info_nce_fwd", queries)(
            queries, keys, None, None, query_ids, key_ids, scale, factor, False, True, normalize,
            stats,
        )  # fmt: skip
    loss, lse, key_loss, key_lse, hit, key_hit = own
    if stats or query_ids is not None:
        options = (scale, factor, normalize, stats)
        loss, lse, hit = against_other_keys(
            (loss, lse, hit), team, rows, queries, keys, None, query_ids, key_ids, *options
        )
        key_loss, key_lse, key_hit = against_other_keys(
            (key_loss, key_lse, key_hit), team, rows, keys, queries, None, key_ids, query_ids,
            *options,
        )  # fmt: skip
        return loss, lse, key_loss, key_lse, hit, key_hit
    x, k = as_compared(queries, normalize), as_compared(keys, normalize)
    kappa = one_scale(scale, factor, queries)
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
