"""CPC's loss where the positions of other ranks' sequences are negatives too."""

import torch
import torch.distributed as dist
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops._names import shown
from sslops.ops._group import GRADIENTS, total_with_grad, wants
from sslops.ops._group_info_nce import against_other_keys
from sslops.ops._info_nce_op import InfoNCEStats
from sslops.ops._remote import wide
from sslops.parallel import Same, Team, agree


def agree_on_cpc(
    team: Team,
    predictions: Tensor,
    targets: Tensor,
    scale: Tensor | None,
    factor: float,
    negatives: str | int,
    normalize: bool,
    stats: bool,
) -> list[int]:
    """Sequences of every rank, once it is clear that all mean the same loss."""
    name = "cpc_loss"
    K, B, T, D = predictions.shape
    same: dict[str, Same] = {
        "number of features": D, "dtype": predictions.dtype, "number of steps": K,
        "number of positions": T, "negatives": str(negatives), "normalize": normalize,
        "kind of temperature": scale is not None, "inverse temperature": factor,
        "return_stats": stats, GRADIENTS: wants(predictions, targets, scale),
    }  # fmt: skip
    sizes = agree(team, name, predictions, {"sequences": B}, same, {"temperature": scale})
    found = sizes["sequences"]
    if sum(found) == 0:
        raise ValueError(f"{name}: one rank must have a sequence, got {shown(found)} in rank order")
    if isinstance(negatives, int) and negatives > sum(found) * T:
        raise ValueError(
            f"{name}: negatives must be in [1, B T = {sum(found) * T}], got {negatives}"
        )
    return found


def drawn_by_first(team: Team, places: Tensor) -> Tensor:
    """The places that the first rank drew, [n]: all ranks must compare with the same."""
    places = places.contiguous()
    dist.broadcast(places, group=team.group, group_src=0)
    return places


def rows_at(team: Team, places: Tensor, before: int, keys: Tensor) -> Tensor:
    """The keys of all ranks at `places` [n] of their concatenation, [n, D]; O(n D) memory.

    Args:
        team: the ranks.
        places: the same on all ranks.
        before: how many keys the ranks before this one have.
        keys: [N, D] of this rank; gradients flow back to their rank.
    """
    index = places - before
    own = (index >= 0) & (index < len(keys))
    padded = torch.cat([wide(keys), wide(keys).new_zeros(1, keys.shape[1])])  # N may be 0
    rows = padded.index_select(0, torch.where(own, index, len(keys)))
    return total_with_grad(team, rows)


def against_other_sequences(
    own: tuple[Tensor, InfoNCEStats], team: Team, positions: list[int], a: InfoNCEArgs
) -> tuple[Tensor, InfoNCEStats]:
    """The loss of each row, [M], with all positions of the other ranks as negatives.

    Args:
        own: the same without them.
        team: the ranks.
        positions: keys of every rank.
        a: the comparison with this rank's keys.
    """
    loss, found = own
    a = a._replace(query_ids=None, key_ids=None)
    loss, lse, hit = against_other_keys((loss, found.lse, found.hit), team, positions, a)
    return loss, found._replace(loss=loss.detach(), lse=lse, hit=hit)
