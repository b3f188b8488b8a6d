"""Options of sentence-transformers."""

import functools
import importlib
import itertools
import math

import torch
from torch import nn

from tests.compat._compat_options import SIZES, B, D, Target, calls, inits, values
from tests.compat._migration import Encoder

_PACKAGE = "sentence_transformers"
_LOSSES = f"{_PACKAGE}.sentence_transformer.losses"
Q2D, Q2Q, D2Q, D2D = "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"


def similarity(name):
    return lambda: getattr(importlib.import_module(f"{_PACKAGE}.util"), name)


def model():
    torch.manual_seed(3)
    return (Encoder(),)


def negative_distance(a, b):
    return -torch.cdist(a, b)


def partly():
    return functools.partial(negative_distance)


def chosen(**options):
    return lambda: options


HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")
ALL = (Q2D, Q2Q, D2Q, D2D)
COMBINED = {
    f"{' '.join(directions)} {mode} {hardness}": chosen(
        directions=directions, partition_mode=mode, hardness_mode=hardness, hardness_strength=3.0
    )
    for directions, mode in ((ALL, "joint"), ((Q2D, D2Q), "per_direction"), ((Q2D, D2D), "joint"))
    for hardness in (None, *HARDNESS)
}
OPTIONS = [
    *values("scale", 1, 20.0, 100, 1e-7, math.inf, 0.0, -1.0, math.nan, "20"),
    *values("scale", lambda: torch.tensor(5.0)),
    *values("similarity_fct", *map(similarity, ("cos_sim", "pytorch_cos_sim", "dot_score"))),
    *values("similarity_fct", *map(similarity, ("manhattan_sim", "euclidean_sim"))),
    *values("similarity_fct", lambda: negative_distance, partly, lambda: None),
    *values("gather_across_devices", True),
    *values("directions", (Q2D,), [Q2D, D2Q], (Q2D, Q2Q), (Q2D, D2D), (Q2D, D2Q, D2D), ALL),
    *values("directions", (), (D2Q,), "query_to_doc", (Q2D, "up"), {Q2D, Q2Q}),
    *values("partition_mode", "joint", "per_direction", "both"),
    *inits(
        "partition_mode",
        back=chosen(partition_mode="per_direction", directions=(Q2D, D2Q)),
        wrong=chosen(partition_mode="per_direction", directions=(Q2D, Q2Q)),
    ),
    *values("hardness_mode", None, *HARDNESS, "hard"),
    *values("hardness_strength", 0.0, 5.0, -1.0),
    *inits("hardness_strength", **COMBINED),
]


def columns(count=4, rows=B):
    return [{"input_ids": torch.randn(rows, 5), "prompt_length": 2} for _ in range(count)]


def features(given):
    return {"sentence_features": given}


FORWARD = [
    *calls(
        "sentence_features",
        pairs=lambda _: features(columns(2)),
        one_column=lambda _: features(columns(1)),
        no_column=lambda _: features([]),
        generator=lambda _: features(each for each in columns(3)),
        one_text=lambda _: features(columns(3, 1)),
        more_negatives=lambda _: features([*columns(2), *columns(1, B + 3)]),
        fewer_positives=lambda _: features([*columns(1), *columns(1, B - 3)]),
    ),
    *calls("labels", some=lambda _: {"labels": torch.arange(B)}),
]
INPUTS = {"sentence_features": columns, "labels": lambda: None}


def inputs():
    return {name: make() for name, make in INPUTS.items()}


def embeddings(given):
    return {"embeddings": given}


def vectors(count=3, rows=B):
    return [torch.randn(rows, D) for _ in range(count)]


OF_EMBEDDINGS = calls(
    "embeddings",
    pairs=lambda _: embeddings(vectors(2)),
    one=lambda _: embeddings(vectors(1)),
    more_documents=lambda _: embeddings([*vectors(2), *vectors(1, B + 3)]),
    more_positives=lambda _: embeddings([*vectors(1), *vectors(1, B + 3)]),
    fewer_positives=lambda _: embeddings([*vectors(1), *vectors(1, B - 3)]),
    double=lambda _: embeddings([vectors()[0].double(), *vectors(2)]),
    sparse=lambda _: embeddings([each.to_sparse() for each in vectors(2)]),
    **{
        name: lambda given, change=change: embeddings([change(x) for x in given["embeddings"]])
        for name, change in SIZES.items()
    },
)


class Tokens(nn.Module):
    """Embeds tokens; padding must not count, and flattened texts are told apart."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, D)

    def __getitem__(self, n):
        return self.table

    def forward(self, given):
        rows = self.table(given["input_ids"])
        if "cu_seq_lens_q" in given:
            ends = given["cu_seq_lens_q"].tolist()
            means = [rows[0, i:j].mean(0) for i, j in itertools.pairwise(ends)]
            return {"sentence_embedding": torch.stack(means)}
        mask = given["attention_mask"][..., None].to(rows.dtype)
        found = (rows * mask).sum(1) / mask.sum(1)
        images = given.get("num_images_per_sample")
        if images is not None and "pixel_values" in given:
            values = given["pixel_values"]
            if "image_grid_thw" in given:
                patches = given["image_grid_thw"].prod(1)
                values = torch.stack([each.mean(0) for each in values.split(patches.tolist())])
            means = [each.sum(0) for each in values.split(images.tolist())]
            found = found + torch.stack(means).to(rows.dtype)
        return {"sentence_embedding": found}


def tokens_model():
    torch.manual_seed(3)
    return (Tokens(),)


LENGTHS = torch.tensor([3, 7, 1, 4, 4, 2, 6, 7, 1, 1, 5, 3])


def padded():
    ids = torch.randint(50, (B, 7))
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < LENGTHS[:, None]).long()}


def flattened():
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)]).int()
    total = int(ends[-1])
    return {
        "input_ids": torch.randint(50, (1, total)), "position_ids": torch.arange(total)[None],
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 7, "max_length_k": 7,
        "seq_idx": torch.arange(B).repeat_interleave(LENGTHS)[None].int(),
    }  # fmt: skip


def with_images():
    items = torch.tensor([1, 0, 2, 1, 0, 0, 0, 3, 1, 1, 0, 1])
    grids = torch.tensor([[1, 1, 2], [1, 2, 2], [1, 1, 1]]).repeat(4, 1)[: int(items.sum())]
    return {
        **padded(), "num_images_per_sample": items, "image_grid_thw": grids,
        "pixel_values": torch.randn(int(grids.prod(1).sum()), D),
    }  # fmt: skip


def with_plain_images():
    items = torch.tensor([1, 0, 2, 1, 0, 0, 0, 3, 1, 1, 0, 1])
    return {
        **padded(), "num_images_per_sample": items, "pixel_values": torch.randn(int(items.sum()), D)
    }  # fmt: skip


def three_of(make):
    return lambda _: features([make() for _ in range(3)])


CUTS = [
    *values("mini_batch_size", 1, 5, 12, 100, 0, -1),
    *values("mini_batch_num_tokens", None, 1, 8, 1000, 0, -1),
    *values("show_progress_bar", True),
    *[
        each._replace(label=f"{each.label} {name}")
        for name, init in (
            ("texts", chosen(mini_batch_size=5)),
            ("tokens", chosen(mini_batch_num_tokens=9)),
        )
        for each in calls(
            "sentence_features",
            init,
            flattened=three_of(flattened),
            images=three_of(with_images),
            images_without_grids=three_of(with_plain_images),
        )
    ],
]
PLAIN = "MultipleNegativesRankingLoss"
CACHED = f"Cached{PLAIN}"
TARGETS = [
    Target(_PACKAGE, _LOSSES, PLAIN, "forward", inputs, [*OPTIONS, *FORWARD], model),
    Target(
        _PACKAGE, _LOSSES, PLAIN, "compute_loss_from_embeddings",
        lambda: {"embeddings": vectors(), "labels": None}, [*OPTIONS, *OF_EMBEDDINGS], model,
    ),
    Target(_PACKAGE, _LOSSES, CACHED, "forward", inputs, [*OPTIONS, *FORWARD], model),
    Target(
        _PACKAGE, _LOSSES, CACHED, "forward",
        lambda: {"sentence_features": [padded() for _ in range(3)], "labels": None}, CUTS,
        tokens_model,
    ),
]  # fmt: skip
