"""Which plan InfoNCE's gradient is had by: the table of docs/architecture.md."""

import pytest
import torch

import sslops
from sslops._info_nce_args import InfoNCEArgs
from sslops.ops._info_nce_op import choose_plan

FEW, MANY = (8, 16, 64), (64, 256, 2)  # M, N, D: similarities are fewer, or many more, than rows
Q, K, N, S = "queries", "keys", "negatives", "scale"

# name -> (sizes, what is trained, with negatives, fields, reduced, plan on the compiled kernels)
CASES = {
    "nothing trained": (FEW, "", False, {}, True, "recompute"),
    "few rows, mean": (FEW, [Q, K], False, {}, True, "grad_in_forward"),
    "many rows, mean": (MANY, [Q, K], False, {}, True, "grad_in_forward"),
    "few rows, each loss": (FEW, [Q, K], False, {}, False, "save_logits"),
    "many rows, each loss": (MANY, [Q, K], False, {}, False, "recompute"),
    "of one id, each loss": (FEW, [Q, K], False, {"same_id_only": True}, False, "recompute"),
    "of one id, mean": (FEW, [Q, K], False, {"same_id_only": True}, True, "grad_in_forward"),
    "keys alone": (FEW, [K], False, {}, True, "grad_in_forward"),
    "queries alone": (FEW, [Q], False, {}, True, "frozen_keys"),
    "a queue": (MANY, [Q], True, {}, True, "frozen_keys"),
    "a queue, positives trained": (MANY, [Q, K], True, {}, True, "frozen_keys"),
    "a queue, queries frozen": (MANY, [K], True, {}, True, "recompute"),
    "negatives trained": (MANY, [Q, K, N], True, {}, True, "grad_in_forward"),
    "both ways, few rows": ((16, 16, 64), [Q, K], False, {"symmetric": True}, True,
                            "grad_in_forward"),
    "both ways, many rows": ((64, 64, 2), [Q, K], False, {"symmetric": True}, True, "recompute"),
    "both ways, queries alone": ((64, 64, 2), [Q], False, {"symmetric": True}, True, "recompute"),
    "scale alone": (MANY, [S], False, {}, True, "recompute"),
}  # fmt: skip


def arguments(sizes, trained, negatives, fields):
    rows, columns, D = sizes
    tensors = {Q: torch.randn(rows, D), K: torch.randn(columns, D), S: torch.tensor(3.0)}
    if negatives:
        tensors[N] = torch.randn(columns, D)
    for name in trained:
        tensors[name].requires_grad_()
    return InfoNCEArgs(**tensors, **fields)


@pytest.mark.skipif(not sslops.HAS_EXTENSION, reason="sslops._C is not compiled")
@pytest.mark.parametrize("name", CASES)
def test_on_the_compiled_kernels(name):
    *case, reduced, plan = CASES[name]
    assert choose_plan(arguments(*case), reduced=reduced) == plan
    with torch.no_grad():
        assert choose_plan(arguments(*case), reduced=reduced) == "recompute"


@pytest.mark.parametrize("name", CASES)
def test_elsewhere_nothing_is_saved_but_beside_a_queue(name):
    *case, reduced, plan = CASES[name]
    with sslops.use_backend("reference"):
        expected = plan if plan == "frozen_keys" else "recompute"
        assert choose_plan(arguments(*case), reduced=reduced) == expected
