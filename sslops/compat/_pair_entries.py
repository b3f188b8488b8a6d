"""pytorch-metric-learning's losses of pairs and of anchors by kernels."""

from typing import Any, cast

import torch
from torch import Tensor

from sslops import info_nce, sup_con
from sslops.compat._masks import anchors_among, logits_of, pair_losses, without_loss
from sslops.compat._pair_loss import Compared, Entry, is_mean, no_loss

# more positives than this for a row on average: a row of the op for each pair costs more than
# storing the M x N cosines
_FEW_POSITIVES = 4


def ntxent_entry(loss: Any, rows: Compared) -> Entry:
    """NT-Xent of each positive pair: [P]."""
    queries, ids, keys, key_ids, positive, own = rows
    anchors, targets = positive.nonzero(as_tuple=True)
    P, M = len(anchors), len(queries)
    if not 0 < P < M * len(keys) - (0 if own is None else M):  # no positive or no negative
        return no_loss()
    if P > _FEW_POSITIVES * M:
        logits = logits_of(queries, keys, loss.temperature)
        losses = pair_losses(logits, anchors, targets, ids[:, None] != key_ids)
    else:
        # a row for each pair; keys of its label are left out, but for the target
        found = info_nce(
            queries[anchors], keys, targets=targets, query_ids=ids[anchors], key_ids=key_ids,
            temperature=loss.temperature, reduction="none",
        )  # fmt: skip
        losses = cast(Tensor, found)
    return {"losses": losses, "indices": (anchors, targets), "reduction_type": "pos_pair"}


def sup_con_entry(loss: Any, rows: Compared) -> Entry:
    """Supervised contrastive loss of each query: [M]; 0 if all labels are the same."""
    queries, ids, keys, key_ids, positive, own = rows
    tau = loss.temperature
    if own is not None and queries is keys:
        losses = cast(Tensor, sup_con(queries, ids, temperature=tau, reduction="none"))
    else:
        losses = anchors_among(queries, ids, keys, key_ids, positive, own, tau)
    left = (ids[:, None] != key_ids).any()
    if not is_mean(loss):
        left = left & ~without_loss(losses.detach(), queries, keys, positive, own, tau)
    index = torch.arange(len(queries), device=queries.device)
    losses = torch.where(left, losses, 0.0)
    return {"losses": losses, "indices": index, "reduction_type": "element"}


ENTRIES = {"NTXentLoss": ntxent_entry, "SupConLoss": sup_con_entry}
