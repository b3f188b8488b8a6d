"""InfoNCE's Triton kernels: numbers on a GPU or in the interpreter, and the ops' dispatch."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslops import _library
from sslops._info_nce_args import InfoNCEArgs
from tests.numerics import assert_as_accurate_as, assert_same_in_another_order

from .info_nce_cases import make_inputs, make_masks, naive, skip_what_the_interpreter_cannot

pytest.importorskip("triton")
from sslops.kernels import _config, _tile
from sslops.kernels import info_nce as kernels
from sslops.reference import info_nce as reference

# The interpreter works on padding and on rows of nothing; numpy would warn of each.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# M, N, K or None, D, temperature, normalize: smallest; one row without negatives; every size odd;
# several blocks, one ragged; wider than rows that stay whole; logits up to 1250; a queue; a queue
# of a last block of one row, wide; cosines that need their own maximum
SHAPES = [
    (1, 2, None, 1, 1.0, True),
    (1, 1, None, 3, 1.0, True),
    (65, 67, None, 3, 0.1, True),
    (200, 300, None, 64, 0.02, True),
    (66, 70, None, 300, 0.01, True),
    (6, 9, None, 17, 0.02, False),
    (5, 5, 130, 24, 0.1, True),
    (33, 40, 257, 264, 0.2, True),
    (134, 140, None, 64, 0.005, True),
]


def run(q, k, n, masks, scale, factor, columns, normalize, grads, needs=(True, True, True)):
    """Everything that the two launchers return, as a dictionary."""
    *ids, same_id_only = masks
    args = InfoNCEArgs(
        q, k, n, *ids, scale=scale, scale_factor=factor, same_id_only=same_id_only,
        symmetric=columns, normalize=normalize, stats=True,
    )  # fmt: skip
    *saved, hit, key_hit = kernels.info_nce_fwd(*args)
    loss, lse, key_loss, key_lse, *rest = saved
    assert not any(map(len, rest))
    grads = grads if columns else (grads[0], None)
    back = kernels.info_nce_bwd(*grads, *args, *saved, [*needs, needs[0]])
    return {
        **{"loss": loss, "lse": lse, "key_loss": key_loss, "key_lse": key_lse, "hit": hit},
        **{"key_hit": key_hit, "dq": back[0], "dk": back[1], "dn": back[2], "dscale": back[3]},
    }


def check(found, q, k, n, masks, temperature, columns, normalize, grads):
    """Every result against float64, allowed twice the error of plain PyTorch in the dtype."""
    *ids, same_id_only = masks
    dtype = q.dtype if n is None or n.dtype is torch.float32 else n.dtype
    grads = grads if columns else (grads[0], None)
    wide = [None if t is None else t.double() for t in (q, k, n)]
    args = InfoNCEArgs(
        *wide, *ids, scale_factor=1 / temperature, same_id_only=same_id_only,
        symmetric=columns, normalize=normalize, stats=True,
    )  # fmt: skip
    *true, true_hit, true_key_hit = reference.info_nce_fwd(*args)
    doubles = (None if g is None else g.double() for g in grads)
    true_grads = reference.info_nce_bwd(*doubles, *args, *true, [True] * 4)

    user = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (q, k, n)]
    user_scale = torch.tensor(1 / temperature, device=q.device, dtype=dtype, requires_grad=True)
    losses = naive(*user, *ids, user_scale, same_id_only, columns, normalize)
    pairs = [(each, g.to(dtype)) for each, g in zip(losses, grads, strict=True) if g is not None]
    total = sum((each * g).sum() for each, g in pairs)
    leaves = [t for t in (*user, user_scale) if t is not None]
    theirs = dict(zip(["dq", "dk", *(["dn"] if n is not None else []), "dscale"],
                      torch.autograd.grad(total, leaves), strict=True))  # fmt: skip
    theirs |= {"loss": losses[0], "lse": true[1].to(dtype)}
    truth = {"loss": true[0], "lse": true[1], "dq": true_grads[0], "dk": true_grads[1]}
    truth |= {"dscale": true_grads[3]} | ({} if n is None else {"dn": true_grads[2]})
    if columns:
        theirs |= {"key_loss": losses[1], "key_lse": true[3].to(dtype)}
        truth |= {"key_loss": true[2], "key_lse": true[3]}

    norms = torch.cat([wide[0].norm(dim=1), wide[1].norm(dim=1)])
    largest = 1.0 if normalize else float(norms.max()) ** 2
    logit = largest / temperature + math.log(len(k) if n is None else len(n))
    # an error of eps * logit in a probability, times a row, over its norm
    by_norm = 1 / float(norms.min()) if normalize else float(norms.max())
    weight = max(float(g.abs().sum()) for g in grads if g is not None)
    # a column may be what all rows agree on
    bounds = dict.fromkeys(("dk", "dn"), logit / temperature * max(by_norm, 1) * weight)
    bounds["dq"] = bounds["dk"] * max(float(g.abs().max()) for g in grads if g is not None) / weight
    bounds |= dict.fromkeys(("loss", "lse", "key_loss", "key_lse"), logit)
    bounds["dscale"] = logit * largest * weight
    for name, exact in truth.items():
        assert_as_accurate_as(found[name], theirs[name], exact, name=name, scale=bounds[name])
    for name, exact in (("hit", true_hit), ("key_hit", true_key_hit)):
        wrong = (found[name] != exact).double().sum()  # a tie of rounded rows may fall either way
        allowed = 0.0 if dtype is torch.float32 else 0.03 * len(exact)
        assert found[name].shape == exact.shape
        assert wrong <= allowed, f"{name}: {wrong} of {len(exact)} differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M, N, K, D, temperature, normalize", SHAPES)
def test_matches_float64(M, N, K, D, temperature, normalize, dtype, device):
    skip_what_the_interpreter_cannot(device, dtype)
    rows = make_inputs(M, N, K, D, normalize, dtype, device)
    grads = torch.rand(M, device=device) / M, None
    masks = (None, None, None, False)
    found = run(*rows, masks, None, 1 / temperature, False, normalize, grads)
    check(found, *rows, masks, temperature, False, normalize, grads)
    assert found["loss"].dtype is found["dscale"].dtype is torch.float32
    assert found["dq"].dtype is found["dk"].dtype is dtype


# M, N, K, D and what is masked
MASKS = [
    (70, 70, None, 20, "ids columns"),
    (130, 130, None, 72, "columns"),
    (66, 150, None, 20, "targets"),
    (66, 70, None, 20, "targets ids"),
    (66, 70, None, 20, "targets ids within"),
    (20, 20, 150, 20, "ids"),
    (20, 7, 150, 20, "targets ids within"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("M, N, K, D, kind", MASKS)
def test_every_mask(M, N, K, D, kind, dtype, device):
    rows = make_inputs(M, N, K, D, True, dtype, device)
    targets, *rest = make_masks(M, K or N, kind, device)
    masks = (None if targets is None else targets % N, *rest)
    grads, columns = torch.rand(2, M, device=device).unbind(), "columns" in kind
    found = run(*rows, masks, None, 5.0, columns, True, grads)
    check(found, *rows, masks, 0.2, columns, True, grads)


def test_one_key_for_many_rows(device):
    """Gradients of a key that several rows ask for are added in a fixed order."""
    rows = make_inputs(150, 5, None, 20, True, torch.float32, device)
    masks = (torch.randint(3, (150,), device=device), None, None, False)
    grads = torch.rand(150, device=device), None
    found = run(*rows, masks, None, 5.0, False, True, grads)
    check(found, *rows, masks, 0.2, False, True, grads)
    again = run(*rows, masks, None, 5.0, False, True, grads)
    assert all(torch.equal(found[name], again[name]) for name in ("loss", "dq", "dk"))


@pytest.mark.parametrize("pair", [(torch.float32, torch.float16), (torch.float16, torch.float32),
                                  (torch.float32, torch.bfloat16)], ids=str)  # fmt: skip
def test_negatives_of_another_dtype(pair, device):
    skip_what_the_interpreter_cannot(device, *pair)
    q, k, n = make_inputs(20, 20, 150, 24, True, torch.float32, device)
    rows = q.to(pair[0]), k.to(pair[0]), n.to(pair[1])
    grads, masks = (torch.rand(20, device=device), None), (None, None, None, False)
    found = run(*rows, masks, None, 5.0, False, True, grads)
    check(found, *rows, masks, 0.2, False, True, grads)
    assert [found[name].dtype for name in ("dq", "dk", "dn")] == [pair[0], pair[0], pair[1]]


@pytest.mark.parametrize("temperature", [1.0, 0.0165])
@pytest.mark.parametrize("columns", [True, False])
def test_fixed_offset_is_exact_in_float32(columns, temperature, monkeypatch, device):
    """The case that float32 never takes by itself, to float32's tolerance."""
    monkeypatch.setattr(_config, "FIXED_DTYPES", (torch.float32,))
    rows = make_inputs(130, 130, None, 20, True, torch.float32, device)
    rows[0][3] = -rows[1][3]  # a row whose positive is opposite
    grads, masks = torch.rand(2, 130, device=device).unbind(), (None, None, None, False)
    found = run(*rows, masks, None, 1 / temperature, columns, True, grads)
    check(found, *rows, masks, temperature, columns, True, grads)


@pytest.mark.parametrize("online", [True, False])
def test_strips_of_many_blocks(online, monkeypatch, device):
    """Sums that one program collects over several blocks both ways; the last strip is ragged."""
    monkeypatch.setattr(_tile, "MAX_STRIPS", 2)
    monkeypatch.setattr(_config, "FIXED_DTYPES", () if online else (torch.float32,))
    rows = make_inputs(390, 390, None, 8, True, torch.float32, device)
    grads, masks = torch.rand(2, 390, device=device).unbind(), (None, None, None, False)
    found = run(*rows, masks, None, 10.0, True, True, grads)
    check(found, *rows, masks, 0.1, True, True, grads)


@pytest.mark.parametrize("temperature", [0.1, 0.005])
def test_the_device_chooses_the_case(temperature, device):
    """A tensor scale launches both kernels of each pass, and one of them does the work."""
    rows = make_inputs(70, 70, None, 40, True, torch.float16, device)
    grads, masks = torch.rand(2, 70, device=device).unbind(), (None, None, None, False)
    scale = torch.tensor(1 / temperature, device=device)
    by_number = run(*rows, masks, None, 1 / temperature, True, True, grads)
    by_tensor = run(*rows, masks, scale, 1.0, True, True, grads)
    for name, number in by_number.items():
        assert torch.equal(number, by_tensor[name]), name


@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan")])
@pytest.mark.parametrize("K", [None, 9])
def test_no_positive_scale_gives_nan(scale, K, device):
    rows = make_inputs(6, 6, K, 4, True, torch.float16, device)
    grads, masks = (torch.ones(6, device=device), None), (None, None, None, False)
    for args in ((torch.tensor(scale, device=device), 1.0), (None, scale)):
        found = run(*rows, masks, *args, False, True, grads)
        names = ("loss", "lse", "dq", "dk", "dscale", *(["dn"] if K else []))
        assert all(found[name].isnan().all() for name in names)
        assert not found["hit"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_key_reaches_every_row(bad, dtype, device):
    q, k, _ = make_inputs(70, 70, None, 5, True, dtype, device)
    k[66, 2] = bad
    grads, masks = torch.ones(2, 70, device=device).unbind(), (None, None, None, False)
    found = run(q, k, None, masks, None, 5.0, True, True, grads)
    assert all(found[name].isnan().all() for name in ("loss", "lse", "dq", "dk", "dscale"))
    assert found["key_loss"][66].isnan()
    assert not found["key_loss"][:66].isnan().any()
    assert not found["hit"].any()


@pytest.mark.parametrize("K", [None, 6])
def test_nothing_left_to_compare_with(K, device):
    """Ids that leave out every negative: loss and gradient are zero, and the positive hits."""
    rows = make_inputs(6, 6, K, 5, True, torch.float32, device)
    same = torch.zeros(6, dtype=torch.int64, device=device)
    grads = torch.ones(2, 6, device=device).unbind()
    found = run(*rows, (None, same, same, False), None, 5.0, K is None, True, grads)
    assert found["hit"].all()
    for name in ("loss", "key_loss", "dq", "dk", "dn", "dscale"):
        assert not found[name].any(), name
    positive = 5 * (F.normalize(rows[0], dim=1) * F.normalize(rows[1], dim=1)).sum(dim=1)
    torch.testing.assert_close(found["lse"], positive)


def test_a_solved_row_keeps_its_gradient(device):
    """1 - p of 1e-9 is far below the rounding of p."""
    q = torch.eye(4, 8, device=device)
    scale, masks = 22.0, (None, None, None, False)
    grads = torch.ones(2, 4, device=device).unbind()
    found = run(q, q, None, masks, None, scale, True, False, grads)
    loss = math.log1p(3 * math.exp(-scale))
    for name in ("loss", "key_loss"):
        torch.testing.assert_close(
            found[name], torch.full_like(found[name], loss), rtol=1e-5, atol=0
        )
    expected = (
        scale
        * 2
        * loss
        * (torch.ones(4, 4, device=device) / 3 - torch.eye(4, device=device) * 4 / 3)
    )
    torch.testing.assert_close(found["dq"][:, :4], expected, rtol=1e-4, atol=0)


def test_hit_is_strict(device):
    """A negative that is the same row as the positive ties with it."""
    q, k, _ = make_inputs(70, 70, None, 16, True, torch.float32, device)
    k[20] = k[7]
    q[7] = q[20] = k[7]
    grads, masks = torch.ones(2, 70, device=device).unbind(), (None, None, None, False)
    found = run(q, k, None, masks, None, 10.0, True, True, grads)
    for name in ("hit", "key_hit"):
        assert not found[name][[7, 20]].any()
        assert found[name].sum() > 40


def test_any_strides(device):
    rows = make_inputs(34, 34, 70, 40, True, torch.float32, device)
    grads, masks = (torch.full((), 0.25, device=device).expand(34), None), (None, None, None, False)
    expected = run(*rows, masks, None, 5.0, False, True, grads)
    wide = [torch.full((len(t), 120), float("nan"), device=device) for t in rows]
    for each, t in zip(wide, rows, strict=True):
        each[:, 1::3] = t
    for views in ([each[:, 1::3] for each in wide], [t.T.contiguous().T for t in rows]):
        found = run(*views, masks, None, 5.0, False, True, grads)
        for name in ("loss", "dq", "dk", "dn", "dscale"):
            assert_same_in_another_order(found[name], expected[name])
            assert found[name].is_contiguous()


def test_upstream_gradient_of_any_size_in_float16(device):
    """A loss scaler's factor must not overflow, nor 1 / M vanish, in half-precision products."""
    q, k, _ = make_inputs(70, 70, None, 32, True, torch.float16, device)
    q, k, masks = q * 100, k * 100, (None, None, None, False)
    ones = torch.ones(70, device=device)
    args = InfoNCEArgs(q.double(), k.double(), scale_factor=5.0, symmetric=True)
    *true, _, _ = reference.info_nce_fwd(*args)
    grads = reference.info_nce_bwd(ones.double(), ones.double(), *args, *true, [True] * 4)
    for size in (2.0**16, 1.0):
        found = run(q, k, None, masks, None, 5.0, True, True, (size * ones, size * ones))
        for name, exact in (("dq", grads[0]), ("dk", grads[1])):
            error = (found[name].double() / size - exact).abs().max() / exact.abs().max()
            assert error < 2e-3, f"{name} is off by {error:.2g} of its maximum at {size}"
    found = run(q, k, None, masks, None, 5.0, True, True, (0 * ones, 0 * ones))
    assert not found["dq"].any()
    assert found["dscale"] == 0


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_gives_only_what_is_needed(needs, device):
    rows = make_inputs(6, 6, 9, 5, True, torch.float32, device)
    grads, masks = (torch.ones(6, device=device), None), (None, None, None, False)
    every = run(*rows, masks, None, 5.0, False, True, grads)
    found = run(*rows, masks, None, 5.0, False, True, grads, needs)
    for name, need in zip(("dq", "dk", "dn"), needs, strict=True):
        expected = every[name] if need else every[name].new_empty(0)
        assert torch.equal(found[name], expected)
    assert found["dscale"].isnan() != needs[0]


def test_gives_the_same_bits_twice(device):
    rows = make_inputs(150, 150, None, 20, True, torch.float16, device)
    grads, masks = torch.rand(2, 150, device=device).unbind(), make_masks(150, 150, "ids", device)
    first, second = (run(*rows, masks, None, 5.0, True, True, grads) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["columns", "targets ids"])
def test_captures_into_a_cuda_graph(kind):
    rows = make_inputs(600, 600, None, 64, True, torch.bfloat16, "cuda")
    grads, scale = torch.rand(2, 600, device="cuda").unbind(), torch.tensor(10.0, device="cuda")
    args = (make_masks(600, 600, kind, "cuda"), scale, 1.0, "columns" in kind, True, grads)
    expected = run(*rows, *args)  # compiles, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*rows, *args)
    graph.replay()
    assert all(torch.equal(captured[name], each) for name, each in expected.items())


def test_cuda_runs_triton_but_for_float64(device):
    for name in ("info_nce_fwd", "info_nce_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sslops::{name}", "CUDA")
        for dtype in (torch.float32, torch.float64):
            args = (torch.ones(2, 2, dtype=dtype, device=device),)
            chosen = _library.gpu_kernel(name, f"info_nce.{name}", True, args)
            assert chosen is (getattr(kernels, name) if dtype is torch.float32 else None)
