"""What the ops info_nce_fwd and info_nce_bwd take and return: the one list in Python.

csrc/cpu/ops/info_nce_args.h and csrc/cuda/info_nce.cu read the same list in the same order.

A plan says how the gradient will be had:

    recompute        both passes compute every similarity; memory is O((M + N) D)
    save_logits      the forward pass leaves all similarities, for few rows of many features
    grad_in_forward  the forward pass gives the gradients of sum(row_weights * loss); the backward
                     pass multiplies them, or computes them again if its upstream gradient is no
                     multiple of row_weights
    frozen_keys      the negatives are not trained: one pass over them gives each row's own gradient
"""

from typing import Any, Literal, NamedTuple

from torch import Tensor

Plan = Literal["recompute", "save_logits", "grad_in_forward", "frozen_keys"]


class InfoNCEArgs(NamedTuple):
    """Arguments of info_nce_fwd, which info_nce_bwd takes too; what is left out has its default.

    Attributes:
        queries: [M, D] floating.
        keys: [N, D], same dtype.
        negatives: [K, D] floating of any dtype, taken as they lie; None: the negatives of a row
            are the keys of the others.
        targets: [M] int64, each row's positive in `keys`; None: row i's is key i. Of one outside
            [0, N) the row's loss is NaN, and so are the gradients of the row and of what it is
            compared with; nothing is read there.
        query_ids: [M] int64 or None.
        key_ids: [K] of the negatives if given, else [N]; or None.
        row_weights: [M] of the dtype of the loss, for grad_in_forward: what each row's loss (and,
            if symmetric, its key's) will most likely be multiplied by; None for 1.
        scale: 0-d floating, or None for 1. The logits are multiplied by `scale * scale_factor`,
            the inverse temperature; where that is not positive every result is NaN.
        scale_factor: see `scale`.
        same_id_only: a row sees only negatives with its id, instead of all but those.
        symmetric: also the losses of the keys, each asking for its query. Needs targets = None,
            no negatives and M = N.
        normalize: divide queries and keys by max(their L2 norm, 1e-12) first.
        stats: whether the hits are wanted.
        plan: how the gradient will be had.
    """

    queries: Tensor
    keys: Tensor
    negatives: Tensor | None = None
    targets: Tensor | None = None
    query_ids: Tensor | None = None
    key_ids: Tensor | None = None
    row_weights: Tensor | None = None
    scale: Tensor | None = None
    scale_factor: float = 1.0
    same_id_only: bool = False
    symmetric: bool = False
    normalize: bool = True
    stats: bool = False
    plan: Plan = "recompute"

    @property
    def candidates(self) -> Tensor:
        """[K or N, D]: the negatives, or the keys, which are then those of other rows."""
        return self.keys if self.negatives is None else self.negatives


class InfoNCESaved(NamedTuple):
    """What info_nce_fwd returns for info_nce_bwd; empty where the plan or the loss has none.

    Attributes:
        loss: [M], each row's loss, in float32 (float64 for float64 inputs), as all but the hits.
        lse: [M], log-sum-exp of each row's logits, its positive's among them.
        key_loss: [N] of the keys, if symmetric.
        key_lse: [N], if symmetric.
        similarities: save_logits: of the rows and candidates, each padded to a multiple of PANEL.
        dqueries: [M, D], grad_in_forward: derivative of sum(row_weights * loss) (of both losses,
            if symmetric); frozen_keys: of each row's own loss.
        dkeys: [N, D], grad_in_forward.
        dnegatives: [K, D], grad_in_forward with negatives.
        dscale: derivative by `scale * scale_factor`, grad_in_forward: 0-d; frozen_keys: [M], of
            each row's own loss.
    """

    loss: Tensor
    lse: Tensor
    key_loss: Tensor
    key_lse: Tensor
    similarities: Tensor
    dqueries: Tensor
    dkeys: Tensor
    dnegatives: Tensor
    dscale: Tensor


PANEL = 32  # kPanel of csrc/cpu: similarities are kept in whole panels


def result_shapes(a: InfoNCEArgs) -> list[tuple[Any, ...]]:
    """Of what info_nce_fwd returns: `InfoNCESaved`, hit [M] and key_hit [N]."""
    M, rows = a.queries.shape[0], [a.queries.shape[0], a.candidates.shape[0]]
    N = a.keys.shape[0] if a.symmetric else 0
    saved: dict[str, tuple[Any, ...]] = {}
    if a.plan == "save_logits":
        saved["similarities"] = tuple((n + PANEL - 1) // PANEL * PANEL for n in rows)
    elif a.plan == "grad_in_forward":
        third = (0,) if a.negatives is None else a.negatives.shape
        saved |= {"dqueries": a.queries.shape, "dkeys": a.keys.shape, "dnegatives": third}
        saved["dscale"] = ()
    elif a.plan == "frozen_keys":
        saved |= {"dqueries": a.queries.shape, "dscale": (M,)}
    losses: list[tuple[Any, ...]] = [(M,), (M,), (N,), (N,)]
    hits: list[tuple[Any, ...]] = [(M if a.stats else 0,), (N if a.stats else 0,)]
    return losses + [saved.get(name, (0,)) for name in InfoNCESaved._fields[4:]] + hits


def split_backward(rest: tuple[Any, ...]) -> tuple[InfoNCEArgs, InfoNCESaved, list[bool]]:
    """The arguments of info_nce_bwd after the upstream gradients; `needs` is the last of them."""
    count = len(InfoNCEArgs._fields)
    return InfoNCEArgs(*rest[:count]), InfoNCESaved(*rest[count:-1]), rest[-1]
