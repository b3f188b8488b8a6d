"""Every loss, as test_contract.py calls it. A new one is registered here, and gets those tests."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sslops

Shapes = list[tuple[int, ...]]
Refusal = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


@dataclass(frozen=True)
class Loss:
    """One way to call a loss.

    Attributes:
        call: of rows, rate and keywords.
        shapes: of the rows, for M of D features.
        rate: a temperature, or the scale of the similarities.
        trained: which rows get a gradient.
        stored: rows that no gradient reaches and autocast leaves as they are: a queue.
        stats: whether it takes `return_stats`.
    """

    call: Callable[..., Any]
    shapes: Callable[[int, int], Shapes]
    rate: float = 0.1
    trained: tuple[int, ...] = (0,)
    stored: int | None = None
    stats: bool = True

    def rows(self, M: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Rows that resemble each other, or the softmax would be flat."""
        common, rows = torch.randn(M, D), []
        for n, shape in enumerate(self.shapes(M, D)):
            x = 0.7 * torch.randn(shape) + (common if shape[-2:] == (M, D) else 0.0)
            x = torch.nn.functional.normalize(x, dim=-1) if n == self.stored else x
            rows.append(x.to(dtype).requires_grad_(n in self.trained))
        return rows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same value for the same arguments, also of negatives that are drawn."""
        torch.manual_seed(5)
        return self.call(*args, **kwargs)

    def leaves(self, rows: list[Tensor]) -> list[Tensor]:
        """Those of the rows that are trained."""
        return [rows[n] for n in self.trained]


def _one(M: int, D: int) -> Shapes:
    return [(2 * M, D)]


def _pair(M: int, D: int) -> Shapes:
    return [(M, D), (M, D)]


def _queue(M: int, D: int) -> Shapes:
    return [(M, D), (M, D), (M + 9, D)]


def _sequences(M: int, D: int) -> Shapes:
    T = max(3, M // 3)
    return [(2, 3, T, D), (3, T, D)]


def _nt_xent(z: Tensor, t: Any, **kwargs: Any) -> Any:
    return sslops.nt_xent(z, temperature=t, **kwargs)


def _nt_xent_ids(z: Tensor, t: Any, **kwargs: Any) -> Any:
    ids = torch.arange(len(z) // 2, device=z.device) % 5 - 1
    return sslops.nt_xent(z, temperature=t, ids=ids, **kwargs)


def _info_nce(q: Tensor, k: Tensor, t: Any, **kwargs: Any) -> Any:
    return sslops.info_nce(q, k, temperature=t, **kwargs)


def _info_nce_ids(q: Tensor, k: Tensor, t: Any, **kwargs: Any) -> Any:
    row = torch.arange(len(q), device=q.device)
    ids = {"query_ids": row % 5 - 1, "key_ids": row % 3}
    return sslops.info_nce(q, k, temperature=t, targets=row.flip(0), **ids, **kwargs)


def _info_nce_queue(q: Tensor, k: Tensor, queue: Tensor, t: Any, **kwargs: Any) -> Any:
    return sslops.info_nce(q, k, queue=queue, temperature=t, **kwargs)


def _symmetric(q: Tensor, k: Tensor, t: Any, **kwargs: Any) -> Any:
    return sslops.info_nce(q, k, temperature=t, symmetric=True, **kwargs)


def _rows_of_info_nce(q: Tensor, k: Tensor, t: Any, **kwargs: Any) -> Any:
    """Weighed by hand, so that no plan can know the gradient before."""
    found = sslops.info_nce(q, k, temperature=t, reduction="none", **kwargs)
    rows, *stats = found if isinstance(found, tuple) else (found,)
    loss = (rows * torch.linspace(0.5, 1, len(q), device=q.device)).mean()
    return (loss, *stats) if stats else loss


def _clip(i: Tensor, t: Tensor, s: Any, **kwargs: Any) -> Any:
    return sslops.clip_loss(i, t, s, label_smoothing=0.1, **kwargs)


def _sigmoid(i: Tensor, t: Tensor, s: Any, **kwargs: Any) -> Any:
    return sslops.sigmoid_loss(i, t, s, -3.0, **kwargs)


def _sup_con(mean: str) -> Callable[..., Any]:
    def call(z: Tensor, t: Any, **kwargs: Any) -> Any:
        labels = torch.arange(len(z), device=z.device) % 5 - 1
        return sslops.sup_con(z, labels, temperature=t, mean=mean, **kwargs)

    return call


def _cpc(negatives: str | int) -> Callable[..., Any]:
    def call(p: Tensor, z: Tensor, t: Any, **kwargs: Any) -> Any:
        return sslops.cpc_loss(p, z, temperature=t, negatives=negatives, **kwargs)

    return call


LOSSES = {
    "nt_xent": Loss(_nt_xent, _one),
    "nt_xent ids": Loss(_nt_xent_ids, _one),
    "info_nce": Loss(_info_nce, _pair, trained=(0, 1)),
    "info_nce ids": Loss(_info_nce_ids, _pair, trained=(0, 1)),
    "info_nce frozen": Loss(_info_nce_ids, _pair),
    "info_nce keys": Loss(_info_nce, _pair, trained=(1,)),
    "info_nce queue": Loss(_info_nce_queue, _queue, trained=(0, 1), stored=2),
    "info_nce symmetric": Loss(_symmetric, _pair, trained=(0, 1)),
    "info_nce none": Loss(_rows_of_info_nce, _pair, trained=(0, 1)),
    "clip_loss": Loss(_clip, _pair, rate=10.0, trained=(0, 1)),
    "sigmoid_loss": Loss(_sigmoid, _pair, rate=10.0, trained=(0, 1), stats=False),
    "sup_con": Loss(_sup_con("outside"), _one),
    "sup_con inside": Loss(_sup_con("inside"), _one),
    "cpc_loss": Loss(_cpc("all"), _sequences, trained=(0, 1)),
    "cpc_loss sequence": Loss(_cpc("sequence"), _sequences, trained=(0, 1)),
    "cpc_loss drawn": Loss(_cpc(5), _sequences, trained=(0, 1)),
}


def _of_rate(name: str, *args: Any) -> list[Refusal]:
    """What any temperature or scale must be; `args` are the loss's others."""
    positive = f"{name} must be positive and finite, got"
    return [
        (args, {name: 0.0}, ValueError, f"{positive} 0.0"),
        (args, {name: -1.0}, ValueError, f"{positive} -1.0"),
        (args, {name: math.nan}, ValueError, f"{positive} nan"),
        (args, {name: math.inf}, ValueError, f"{positive} inf"),
        (args, {name: torch.ones(2)}, ValueError, rf"{name} must have one element, .*\(2,\)"),
        (args, {name: torch.tensor(1)}, TypeError, f"{name} must be float16"),
        (args, {name: torch.ones((), device="meta")}, ValueError, "got meta and cpu"),
    ]


def _of_weights(n: int, *args: Any, **kwargs: Any) -> list[Refusal]:
    """What any weights of n rows must be, and how they may be summed."""
    return [
        (args, kwargs | {"weights": given}, error, message)
        for given, error, message in (
            (torch.ones(n + 1), ValueError, rf"weights must be .*got shape \({n + 1},\)"),
            (torch.ones(n, 1), ValueError, rf"weights must be .*got shape \({n}, 1\)"),
            ([1.0], TypeError, "weights must be a tensor, got list"),
            (torch.ones(n, dtype=torch.int64), TypeError, "weights must be float16"),
            (torch.ones(n, device="meta"), ValueError, "weights must be on .*got meta and cpu"),
        )
    ] + [(args, kwargs | {"reduction": "avg"}, ValueError, "none, mean or sum, got 'avg'")]


def _of_pair(rows: str, columns: str, features: Tensor, scale: dict[str, Any]) -> list[Refusal]:
    """What two sets of rows [4, 8] must be."""
    z = features
    return [
        ((z, [1]), scale, TypeError, f"{columns} must be a tensor, got list"),
        (([1], z), scale, TypeError, f"{rows} must be a tensor, got list"),
        ((z, z.half()), scale, TypeError, f"{rows} and {columns} must share their dtype"),
        ((z.int(), z), scale, TypeError, f"{rows} must be float16.*got torch.int32"),
        ((z[0], z), scale, ValueError, rf"{rows} must be \[rows, features\].*got shape \(8,\)"),
        ((z[:0], z), scale, ValueError, r"at least one of each, got shape \(0, 8\)"),
        ((z[:, :0], z[:, :0]), scale, ValueError, r"at least one of each, got shape \(4, 0\)"),
        ((z, z[:, :7]), scale, ValueError, f"{columns} must have the 8 features of {rows}"),
        ((z, z.to("meta")), scale, ValueError, f"{columns} must be on the device.*meta and cpu"),
    ]


def _of_ids(rows: str, columns: str, args: tuple[Tensor, ...], scale: dict[str, Any]) -> Any:
    """What ids of two sets of 4 rows must be."""
    ids = torch.zeros(4, dtype=torch.int64)
    together = f"{rows} and {columns} go together"
    return [
        (args, scale | {rows: ids}, ValueError, together),
        (args, scale | {columns: ids}, ValueError, together),
        (args, scale | {rows: ids[:3], columns: ids}, ValueError, rf"{rows} must be \[4\]"),
        (args, scale | {rows: ids, columns: ids[:3]}, ValueError, rf"{columns} must be \[4\]"),
        (args, scale | {rows: ids.float(), columns: ids}, TypeError, "an integer tensor"),
    ]


Z, I4, I6 = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
KEYS = torch.zeros(6, 8)
P, T = torch.zeros(2, 3, 5, 4), torch.zeros(3, 5, 4)
ONE = {"logit_scale": 1.0}
SMOOTH = {"label_smoothing": 0.1, "image_ids": I4, "text_ids": I4}

REFUSALS: dict[str, list[Refusal]] = {
    "nt_xent": [
        *_of_rate("temperature", Z),
        *_of_weights(4, Z),
        (([1.0],), {}, TypeError, "z must be a tensor, got list"),
        ((Z.long(),), {}, TypeError, "float64, got torch.int64"),
        ((Z.to(torch.complex64),), {}, TypeError, "got torch.complex64"),
        ((Z[0],), {}, ValueError, r"\[V, B, D\] or \[M, D\], got shape \(8,\)"),
        ((Z[None, None],), {}, ValueError, "got shape"),
        ((Z[:1],), {}, ValueError, "num_views = 2 views of each sample, got M = 1"),
        ((torch.zeros(5, 8),), {}, ValueError, "got M = 5, not a multiple"),
        ((KEYS,), {"num_views": 4}, ValueError, "num_views = 4.*got M = 6"),
        ((KEYS[None],), {}, ValueError, "num_views must be at least 2, got 1"),
        ((Z,), {"num_views": 1}, ValueError, "num_views must be at least 2, got 1"),
        ((torch.zeros(2, 3, 8),), {"num_views": 3}, ValueError, "must have V = num_views = 3"),
        ((Z[:, :0],), {}, ValueError, r"one row and one feature, got shape \(4, 0\)"),
        ((Z[:0],), {}, ValueError, r"one row and one feature, got shape \(0, 8\)"),
        ((Z,), {"weights": torch.ones(3)}, ValueError, r"M = 4, V = 2, got shape \(3,\)"),
        ((Z,), {"ids": torch.ones(2)}, TypeError, "ids must be an integer .* torch.float32"),
        ((Z,), {"ids": [0, 1]}, TypeError, "ids must be an integer tensor, got list"),
        ((Z,), {"ids": I4[:3]}, ValueError, r"ids must be \[2\], got shape \(3,\)"),
        ((Z,), {"ids": I4.view(2, 2)}, ValueError, r"ids must be \[2\], got shape \(2, 2\)"),
        ((Z,), {"ids": torch.arange(4)}, ValueError, "got 2 samples of 2 whose ids differ"),
        ((Z,), {"ids": I4[:2].to("meta")}, ValueError, "ids must be on the device"),
    ],
    "info_nce": [
        *_of_rate("temperature", Z, Z),
        *_of_weights(4, Z, Z),
        *_of_pair("queries", "keys", Z, {}),
        *_of_ids("query_ids", "key_ids", (Z, Z), {}),
        ((Z, Z), {"queue": KEYS.int()}, TypeError, "queue must be float16.*got torch.int32"),
        ((Z, Z), {"queue": KEYS[:, 1:]}, ValueError, "queue must have the 8 features of queries"),
        ((Z, Z), {"queue": KEYS[:0]}, ValueError, r"queue must be .* got shape \(0, 8\)"),
        ((Z, Z), {"queue": KEYS.to("meta")}, ValueError, "queue must be on the device"),
        ((KEYS, Z), {}, ValueError, "without targets every query needs its key, got 6 and 4"),
        ((Z, KEYS), {"targets": I6}, ValueError, r"targets must be \[4\], got shape \(6,\)"),
        ((Z, KEYS), {"targets": I4.float()}, TypeError, "targets must be an integer .* torch.f"),
        ((Z, KEYS), {"targets": [0, 1, 2, 3]}, TypeError, "targets must be an integer .* list"),
        ((Z, KEYS), {"targets": I4 + 6}, ValueError, r"targets must be in \[0, 6\), got 6 to 6"),
        ((Z, KEYS), {"targets": I4 - 1}, ValueError, r"targets must be in \[0, 6\), got -1 to -1"),
        ((Z, KEYS), {"targets": I4.to("meta")}, ValueError, "targets must be on the device"),
        (
            (Z, Z),
            {"query_ids": I4, "key_ids": I4, "queue": KEYS},
            ValueError,
            r"key_ids must be \[6\], got shape \(4,\)",
        ),
        ((Z, KEYS), {"symmetric": True}, ValueError, "as many queries as keys.*got 4 and 6"),
        ((Z, Z), {"symmetric": True, "targets": I4}, ValueError, "no targets.*targets True"),
        ((Z, Z), {"symmetric": True, "queue": KEYS}, ValueError, "no queue.*queue True"),
    ],
    "clip_loss": [
        *_of_rate("logit_scale", Z, Z),
        *_of_weights(4, Z, Z, **ONE),
        *_of_pair("image", "text", Z, ONE),
        *_of_ids("image_ids", "text_ids", (Z, Z), ONE),
        ((Z, Z[:3], 1.0), {}, ValueError, "every image needs one text, got 4 and 3"),
        ((Z, Z, 1.0), {"label_smoothing": 1.0}, ValueError, r"in \[0, 1\), got 1.0"),
        ((Z, Z, 1.0), {"label_smoothing": -0.1}, ValueError, r"in \[0, 1\), got -0.1"),
        ((Z, Z, 1.0), SMOOTH, ValueError, "label smoothing spreads over all candidates, got ids"),
    ],
    "sigmoid_loss": [
        *_of_rate("logit_scale", Z, Z),
        *_of_pair("image", "text", Z, ONE),
        *_of_ids("image_ids", "text_ids", (Z, Z), ONE),
        ((Z, Z[:3], 1.0), {}, ValueError, "every image needs its text, got 4 images and 3 texts"),
        ((Z, Z, 1.0, torch.ones(2)), {}, ValueError, "logit_bias must have one element"),
        ((Z, Z, 1.0, torch.tensor(2)), {}, TypeError, "logit_bias must be float16"),
        ((Z, Z, 1.0), {"reduction": "none"}, ValueError, "mean or sum, got 'none'"),
    ],
    "sup_con": [
        *_of_rate("temperature", Z, I4),
        *_of_weights(4, Z, I4),
        (([1.0], I4), {}, TypeError, "z must be a tensor, got list"),
        ((Z.long(), I4), {}, TypeError, "z must be float16.*got torch.int64"),
        ((Z, I4.float()), {}, TypeError, "labels must be an integer tensor, got torch.float32"),
        ((Z, [0, 0, 1, 1]), {}, TypeError, "labels must be an integer tensor, got list"),
        ((Z, I4[:3]), {}, ValueError, r"labels must be \[4\], got shape \(3,\)"),
        ((Z[None], I4[:2]), {}, ValueError, r"labels must be \[4\], got shape \(2,\)"),
        ((Z, I4.to("meta")), {}, ValueError, "labels must be on the device.*meta and cpu"),
        ((Z[0], I4), {}, ValueError, r"z must be \[M, D\] or \[V, B, D\], got shape \(8,\)"),
        ((Z[:1], I4[:1]), {}, ValueError, r"two rows and one feature, got shape \(1, 8\)"),
        ((Z[:, :0], I4), {}, ValueError, r"two rows and one feature, got shape \(4, 0\)"),
        ((Z, I4), {"mean": "both"}, ValueError, "outside or inside, got 'both'"),
        ((Z, I4), {"weights": torch.ones(4, 8)}, ValueError, r"be \[4\], got shape \(4, 8\)"),
    ],
    "cpc_loss": [
        *_of_rate("temperature", P, T),
        (([1.0], T), {}, TypeError, "predictions must be a tensor, got list"),
        ((P, T.int()), {}, TypeError, "targets must be float16.*got torch.int32"),
        ((P, T.half()), {}, TypeError, "predictions and targets must share their dtype"),
        ((P[0], T), {}, ValueError, r"got shapes \(3, 5, 4\) and \(3, 5, 4\)"),
        ((P, T[:2]), {}, ValueError, r"got shapes \(2, 3, 5, 4\) and \(2, 5, 4\)"),
        ((P[..., :0], T[..., :0]), {}, ValueError, "none of them empty"),
        ((P[:, :, :2], T[:, :2]), {}, ValueError, "K < T, got K = 2, T = 2"),
        ((P, T.to("meta")), {}, ValueError, "targets must be on the device.*meta and cpu"),
        ((P, T), {"negatives": "some"}, ValueError, "all, sequence, other or n, got 'some'"),
        ((P, T), {"negatives": 2.5}, ValueError, "all, sequence, other or n, got 2.5"),
        ((P, T), {"negatives": None}, ValueError, "all, sequence, other or n, got None"),
        ((P, T), {"negatives": 0}, ValueError, r"in \[1, B T = 15\], got 0"),
        ((P, T), {"negatives": 16}, ValueError, r"in \[1, B T = 15\], got 16"),
    ],
}
