"""Options of pytorch-metric-learning."""

import importlib

import torch

from tests.compat._compat_options import (
    SIZES,
    B,
    D,
    Target,
    calls,
    inits,
    of_rows,
    together,
    values,
)

_PACKAGE = "pytorch_metric_learning"


def made(module, name, *args, **options):
    """What makes an object of the package."""
    return lambda: getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)(*args, **options)


LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 6])


def rows():
    return {"embeddings": torch.randn(B, D), "labels": LABELS.clone()}


def labels(make):
    return lambda given: {"labels": make(given["labels"])}


def with_references(make=lambda x: x, count=B + 3):
    def call(given):
        keys = torch.randn(count, D)
        return {"ref_emb": keys, "ref_labels": make(torch.arange(count) % 4)}

    return call


def perfect(given):
    """Classes apart, so that some losses are 0 up to rounding, and one that is not."""
    far = torch.eye(D)[given["labels"] % D] + 1e-3 * given["embeddings"]
    return {"embeddings": torch.cat([far[:9], given["embeddings"][9:]])}


PAIRS = (
    torch.tensor([0, 2]),
    torch.tensor([1, 3]),
    torch.tensor([0, 0, 2]),
    torch.tensor([2, 5, 0]),
)
TRIPLETS = (torch.tensor([0, 0, 2]), torch.tensor([1, 1, 4]), torch.tensor([2, 5, 0]))
NONE = torch.zeros(0, dtype=torch.int64)

DISTANCES = [
    None, made("distances", "CosineSimilarity"), made("distances", "LpDistance"),
    made("distances", "LpDistance", p=1, power=2), made("distances", "SNRDistance"),
    made("distances", "DotProductSimilarity"), made("distances", "CosineSimilarity", power=2),
    made("distances", "DotProductSimilarity", normalize_embeddings=False),
    made("distances", "LpDistance", normalize_embeddings=False),
    made("distances", "CosineSimilarity", collect_stats=True),
    lambda: made("distances", "BatchedDistance", made("distances", "CosineSimilarity")())(),
]  # fmt: skip
REDUCERS = [
    None, made("reducers", "MeanReducer"), made("reducers", "SumReducer"),
    made("reducers", "AvgNonZeroReducer"), made("reducers", "PerAnchorReducer"),
    made("reducers", "ThresholdReducer", low=0.5), made("reducers", "ThresholdReducer", high=2),
    made("reducers", "ClassWeightedReducer", torch.linspace(1, 2, 7)),
    made("reducers", "MeanReducer", collect_stats=True), made("reducers", "DivisorReducer"),
    lambda: made("reducers", "MultipleReducers", {"loss": made("reducers", "SumReducer")()})(),
]  # fmt: skip
REGULARIZER = "embedding_regularizer"


def regular():
    return {REGULARIZER: made("regularizers", "LpRegularizer")()}


def with_reducer(name):
    return lambda: {"reducer": made("reducers", name)()}


def cut_off(options):
    """The package cuts losses off, in half precision at 9.7."""
    return [
        each._replace(differs="losses are not cut off", patched_differs=True)
        if each.label == "half"
        else each
        for each in options
    ]


OPTIONS = [
    *values("temperature", 1, 0.05, 0.5, -0.5, float("inf"), float("nan"), 0.0, 0.01),
    *values("temperature", lambda: torch.tensor(0.3), lambda: torch.tensor(-0.3)),
    *values("distance", *DISTANCES),
    *values("reducer", *REDUCERS),
    *values(REGULARIZER, None, made("regularizers", "LpRegularizer")),
    *values(REGULARIZER, made("regularizers", "ZeroMeanRegularizer")),
    *inits(REGULARIZER, with_sum=lambda: {**regular(), **with_reducer("SumReducer")()}),
    *inits("embedding_reg_weight", half=lambda: {**regular(), "embedding_reg_weight": 0.5}),
    *values("embedding_reg_weight", 2),
    *values("collect_stats", True, False, None),
    *cut_off(of_rows("embeddings")),
    *calls("embeddings", perfect=perfect),
    *calls("embeddings", with_reducer("AvgNonZeroReducer"), perfect_of_non_zero=perfect),
    *together(("embeddings", "labels"), **SIZES),
    *calls(
        "labels",
        floats=labels(lambda y: y + 0.25),
        nan=labels(lambda y: torch.where(y == 3, torch.nan, y.double())),
        booleans=labels(lambda y: y > 1),
        short=labels(lambda y: y.to(torch.int8)),
        bytes=labels(lambda y: y.to(torch.uint8)),
        unsigned=labels(lambda y: y.to(torch.uint16)),
        huge=labels(lambda y: y + 2**62),
        apart=labels(lambda y: torch.where(y == 0, -(2**63), 2**63 - 1 - y)),
        negative=labels(lambda y: -y),
        all_different=labels(lambda y: torch.arange(B)),
        all_the_same=labels(torch.zeros_like),
        two_dimensions=labels(lambda y: y[:, None]),
        too_few=labels(lambda y: y[:-1]),
        none=labels(lambda y: None),
        list=labels(lambda y: y.tolist()),
    ),
    *calls(
        "indices_tuple",
        pairs=lambda _: {"indices_tuple": PAIRS},
        triplets=lambda _: {"indices_tuple": TRIPLETS},
        without_labels=lambda _: {"indices_tuple": TRIPLETS, "labels": None},
        no_pairs=lambda _: {"indices_tuple": (NONE,) * 4},
        only_positives=lambda _: {"indices_tuple": (*PAIRS[:2], NONE, NONE)},
        only_negatives=lambda _: {"indices_tuple": (NONE, NONE, *PAIRS[2:])},
        one_of_each=lambda _: {"indices_tuple": tuple(each[:1] for each in PAIRS)},
        two=lambda _: {"indices_tuple": PAIRS[:2]},
        outside=lambda _: {"indices_tuple": tuple(each + B for each in PAIRS)},
    ),
    *calls(
        "ref_emb",
        others=with_references(),
        one=with_references(count=1),
        two=with_references(count=2),
        none=with_references(count=0),
        without_labels=lambda given: {"ref_emb": torch.randn(B, D)},
        longer_without_labels=lambda given: {"ref_emb": torch.randn(B + 2, D)},
        shorter_without_labels=lambda given: {"ref_emb": torch.randn(B - 2, D)},
        itself=lambda given: {"ref_emb": given["embeddings"]},
        one_query=lambda given: {
            "embeddings": torch.randn(1, D), "labels": LABELS[:1], **with_references()({})
        },
        one_pair=lambda given: {
            "embeddings": torch.randn(1, D), "labels": LABELS[:1],
            "ref_emb": torch.randn(2, D), "ref_labels": torch.tensor([0, 1]),
        },
        with_pairs=lambda given: {**with_references()({}), "indices_tuple": PAIRS},
        double=lambda given: {"ref_emb": torch.randn(B, D).double(), "ref_labels": LABELS},
    ),
    *calls(
        "ref_labels",
        alone=lambda given: {"ref_labels": LABELS},
        same_object=lambda given: {"ref_emb": torch.randn(B, D), "ref_labels": given["labels"]},
        equal=lambda given: {"ref_emb": torch.randn(B, D), "ref_labels": LABELS.clone()},
        floats=with_references(lambda y: y.float()),
        too_few=with_references(lambda y: y[:-1]),
    ),
]  # fmt: skip
LOSSES = [
    Target(_PACKAGE, f"{_PACKAGE}.losses", name, "forward", rows, OPTIONS)
    for name in ("NTXentLoss", "SupConLoss")
]


def two_views():
    return {"embeddings": torch.randn(B, D), "ref_emb": torch.randn(B, D)}


def inner(name, **options):
    return lambda: {"loss": made("losses", name, **options)()}


_OTHERS = [
    inner("NTXentLoss"), inner("NTXentLoss", temperature=-1), inner("SupConLoss"),
    inner("TripletMarginLoss"), inner("ContrastiveLoss"), inner("MultiSimilarityLoss"),
    lambda: {"loss": made("losses", "NTXentLoss", distance=made("distances", "LpDistance")())()},
    lambda: {"loss": made("losses", "SupConLoss", **regular())()},
    lambda: {"loss": made("losses", "NTXentLoss", **with_reducer("AvgNonZeroReducer")())()},
]  # fmt: skip


def wrapped(**more):
    return {f"loss {n}": (lambda make=make: {**make(), **more}) for n, make in enumerate(_OTHERS)}


def ntxent(**more):
    return lambda: {**inner("NTXentLoss")(), **more}


SELF_SUPERVISED = Target(
    _PACKAGE,
    f"{_PACKAGE}.losses",
    "SelfSupervisedLoss",
    "forward",
    two_views,
    [
        *inits("loss", **wrapped()),
        *inits("symmetric", yes=ntxent(symmetric=True), no=ntxent(symmetric=False)),
        *[each._replace(init=ntxent()) for each in of_rows("embeddings")],
        *[each._replace(init=ntxent()) for each in of_rows("ref_emb")],
        *[
            each._replace(init=ntxent(symmetric=symmetric), label=f"{each.label} {symmetric}")
            for each in together(("embeddings", "ref_emb"), **SIZES)
            for symmetric in (True, False)
        ],
    ],
)


def memory(**more):
    return lambda: {**ntxent(embedding_size=D, memory_size=2 * B + 5)(), **more}


MEMORY = {"embedding_size": D, "memory_size": 2 * B + 5}
CROSS_BATCH = Target(
    _PACKAGE,
    f"{_PACKAGE}.losses",
    "CrossBatchMemory",
    "forward",
    rows,
    [
        *inits("loss", **wrapped(**MEMORY)),
        *inits("embedding_size", right=memory(), wrong=memory(embedding_size=D + 1)),
        *inits("memory_size", full=memory(memory_size=B), less=memory(memory_size=B - 1)),
        *inits(
            "miner",
            pairs=lambda: {**memory()(), "miner": made("miners", "MultiSimilarityMiner")()},
            triplets=lambda: {**memory()(), "miner": made("miners", "TripletMarginMiner")()},
        ),
        *[each._replace(init=memory()) for each in cut_off(of_rows("embeddings"))],
        *inits("collect_stats", yes=memory(collect_stats=True)),
        *calls(
            "labels",
            memory(),
            floats=labels(lambda y: y + 0.25),
            nan=labels(lambda y: torch.where(y == 3, torch.nan, y.double())),
            booleans=labels(lambda y: y > 1),
            short=labels(lambda y: y.to(torch.int8)),
            all_different=labels(lambda y: torch.arange(B)),
            too_few=labels(lambda y: y[:-1]),
            two_dimensions=labels(lambda y: y[:, None]),
        ),
        *calls(
            "indices_tuple",
            memory(),
            pairs=lambda _: {"indices_tuple": PAIRS},
            triplets=lambda _: {"indices_tuple": TRIPLETS},
            with_a_mask=lambda _: {"indices_tuple": PAIRS, "enqueue_mask": torch.arange(B) > 5},
        ),
        *calls(
            "indices_tuple",
            lambda: {**memory()(), "miner": made("miners", "TripletMarginMiner")()},
            pairs_and_a_miner=lambda _: {"indices_tuple": PAIRS},
        ),
        *calls(
            "enqueue_mask",
            memory(),
            half=lambda _: {"enqueue_mask": torch.arange(B) >= 6},
            none=lambda _: {"enqueue_mask": torch.zeros(B, dtype=torch.bool)},
            all=lambda _: {"enqueue_mask": torch.ones(B, dtype=torch.bool)},
            too_short=lambda _: {"enqueue_mask": torch.ones(B - 1, dtype=torch.bool)},
        ),
    ],
    calls=4,
    state=lambda loss: [loss.embedding_memory, loss.label_memory, torch.tensor(loss.queue_idx)],
)
TARGETS = [*LOSSES, SELF_SUPERVISED, CROSS_BATCH]
