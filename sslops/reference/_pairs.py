"""Queries against their negatives: unit rows, positives, and what each row may see."""

import torch
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops.reference._rows import effective_scale, followed, left_out, unit_rows


class Pairs:
    """Unit rows, positives, and what each row may see."""

    def __init__(self, a: InfoNCEArgs) -> None:
        self.x, self.x_norm = unit_rows(a.queries, a.normalize)
        self.k, self.k_norm = unit_rows(a.keys, a.normalize)
        self.keys_are_negatives = a.negatives is None
        self.y = self.k if a.negatives is None else a.negatives.to(self.x.dtype)
        self.M, self.N = len(self.x), len(self.y)
        # [M] in [0, N), and which of them were; None: all
        self.targets, self.inside = torch.arange(self.M, device=a.queries.device), None
        if a.targets is not None:
            self.targets, self.inside = followed(a.targets, len(self.k))
        self.ids = (a.query_ids, a.key_ids)
        self.same_id_only = a.same_id_only
        self.scale = effective_scale(self.x, a.scale, a.scale_factor)
        self.positive = (self.x * self.k[self.targets]).sum(dim=1) * self.scale  # [M]
        if self.inside is not None:
            self.positive = torch.where(self.inside, self.positive, float("nan"))

    def logits(self, rows: Tensor) -> Tensor:
        """Of the rows with all negatives, and positives among them if they are keys: [C, N]."""
        return self.x[rows] @ self.y.T * self.scale

    def negative_logits(self, rows: Tensor, logits: Tensor | None = None) -> Tensor:
        """Logits of the rows, -inf where a pair is left out or is the positive: [C, N]."""
        logits = self.logits(rows) if logits is None else logits
        out = left_out(rows, *self.ids, self.same_id_only)
        if out is not None:
            logits.masked_fill_(out, float("-inf"))
        if self.keys_are_negatives:
            logits.scatter_(1, self.targets[rows, None], float("-inf"))
        return logits
