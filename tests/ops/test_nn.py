"""The modules: each is its function with hyper-parameters; and the chance levels."""

import copy
import math

import pytest
import torch

import sslops
from tests.naive import naive_cpc

Q, K = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))


def test_modules_are_their_functions():
    ids, weights = torch.arange(8) % 3, torch.rand(8)
    queue, labels = torch.randn(20, 5), torch.arange(8) % 3
    cases = [
        (
            sslops.InfoNCELoss(0.2),
            (Q, K),
            {"weights": weights},
            sslops.info_nce,
            {"temperature": 0.2},
        ),
        (sslops.InfoNCELoss(), (Q, K), {"queue": queue, "targets": ids}, sslops.info_nce, {}),
        (
            sslops.InfoNCELoss(symmetric=True, normalize=False, reduction="sum"),
            (Q, K),
            {"query_ids": ids, "key_ids": ids},
            sslops.info_nce,
            {"symmetric": True, "normalize": False, "reduction": "sum"},
        ),
        (sslops.SupConLoss(mean="inside"), (Q, labels), {}, sslops.sup_con, {"mean": "inside"}),
        (sslops.NTXentLoss(), (torch.stack([Q, K]),), {"ids": ids}, sslops.nt_xent, {}),
        (
            sslops.ClipLoss(10.0, learn_scale=False, label_smoothing=0.1),
            (Q, K),
            {"weights": weights},
            lambda *args, **kwargs: sslops.clip_loss(*args, 10.0, **kwargs),
            {"label_smoothing": 0.1},
        ),
        (
            sslops.SigmoidLoss(5.0, -2.0, learn=False, reduction="sum"),
            (Q, K),
            {"image_ids": ids, "text_ids": ids},
            lambda *args, **kwargs: sslops.sigmoid_loss(*args, 5.0, -2.0, **kwargs),
            {"reduction": "sum"},
        ),
    ]
    for module, args, kwargs, function, options in cases:
        assert list(module.parameters()) == []
        assert torch.equal(module(*args, **kwargs), function(*args, **kwargs, **options))


def test_cpc_module():
    predictions, targets = torch.randn(2, 3, 6, 4), torch.randn(3, 6, 4)
    module = sslops.CPCLoss(0.2, negatives="other", return_stats=True)
    loss, stats = module(predictions, targets)
    torch.testing.assert_close(stats.loss, naive_cpc(predictions, targets, 0.2, "other"))
    torch.testing.assert_close(loss, stats.loss.mean())
    drawn = sslops.CPCLoss(negatives=4)
    first, second = (
        drawn(predictions, targets, generator=torch.Generator().manual_seed(2)) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (sslops.InfoNCELoss, (Q, K)),
        (sslops.SupConLoss, (Q, torch.arange(8) // 2)),
        (sslops.CPCLoss, (torch.randn(1, 2, 4, 3), torch.randn(2, 4, 3))),
        (sslops.NTXentLoss, (Q, K)),
    ],
)
def test_learnt_temperature(kind, args):
    module = kind(0.5, learn_temperature=True)
    assert [name for name, _ in module.named_parameters()] == ["log_temperature"]
    module(*args).backward()
    assert module.log_temperature.grad.abs() > 0
    assert module.temperature.item() == pytest.approx(0.5)
    assert "temperature=0.5, learnt" in repr(module)
    assert "learnt" not in repr(kind())
    again = kind(learn_temperature=True)
    again.load_state_dict(module.state_dict())
    assert again.temperature == module.temperature
    message = f"{kind.__name__}: temperature must be positive and finite, got "
    for wrong in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=message):
            kind(wrong)
    for frozen in (torch.nn.Parameter(torch.tensor(0.1)), "0.1"):
        with pytest.raises(TypeError, match=r"must be a number.*learn_temperature=True makes it"):
            kind(frozen)


def test_clip_s_scale_is_learnt_and_bounded():
    module = sslops.ClipLoss()
    assert module.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    expected = sslops.clip_loss(Q, K, 1 / 0.07)
    torch.testing.assert_close(module(Q, K), expected)
    module(Q, K).backward()
    assert module.log_scale.grad.abs() > 0

    with torch.no_grad():
        module.log_scale.fill_(math.log(1000))
    evaluated = copy.deepcopy(module).eval()
    torch.testing.assert_close(evaluated(Q, K), sslops.clip_loss(Q, K, 1000.0))
    module.zero_grad()
    loss = module(Q, K)
    torch.testing.assert_close(loss, sslops.clip_loss(Q, K, 100.0))
    assert module.scale.item() == pytest.approx(100.0)
    loss.backward()  # from the bound it can come back
    assert module.log_scale.grad > 0

    with pytest.raises(ValueError, match="ClipLoss: scale must be positive and finite, got 0"):
        sslops.ClipLoss(0.0)
    with pytest.raises(ValueError, match="ClipLoss: max_scale must be at least scale, got 5"):
        sslops.ClipLoss(10.0, max_scale=5.0)


def test_sigmoid_s_scale_and_bias_are_learnt():
    module = sslops.SigmoidLoss()
    assert {name for name, _ in module.named_parameters()} == {"log_scale", "bias"}
    torch.testing.assert_close(module(Q, K), sslops.sigmoid_loss(Q, K, 10.0, -10.0))
    module(Q, K).backward()
    assert module.log_scale.grad.abs() > 0
    assert module.bias.grad.abs() > 0
    with pytest.raises(ValueError, match="SigmoidLoss: scale must be positive and finite, got -1"):
        sslops.SigmoidLoss(-1.0)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (sslops.NTXentLoss, {"reduction": "avg"}, "reduction must be none, mean or sum"),
        (sslops.InfoNCELoss, {"reduction": "avg"}, "reduction must be none, mean or sum"),
        (sslops.SupConLoss, {"reduction": "avg"}, "reduction must be none, mean or sum"),
        (sslops.SupConLoss, {"mean": "in"}, "mean must be outside or inside"),
        (sslops.CPCLoss, {"negatives": "batch"}, "negatives must be all, sequence, other or n"),
        (sslops.CPCLoss, {"negatives": 0}, "negatives must be in"),
        (sslops.ClipLoss, {"reduction": "avg"}, "reduction must be none, mean or sum"),
        (sslops.ClipLoss, {"label_smoothing": 1.0}, "label_smoothing must be in"),
        (sslops.SigmoidLoss, {"reduction": "none"}, "reduction must be mean or sum"),
    ],
)
def test_what_no_call_could_use_is_refused_at_once(kind, wrong, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**wrong)


@pytest.mark.parametrize("kind", [sslops.ClipLoss, sslops.SigmoidLoss])
def test_a_scale_that_is_a_parameter_is_refused(kind):
    with pytest.raises(TypeError, match="scale must be a number, got Parameter; learn"):
        kind(torch.nn.Parameter(torch.tensor(10.0)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [sslops.ClipLoss, sslops.SigmoidLoss, sslops.InfoNCELoss])
def test_modules_compile(kind):
    torch._dynamo.reset()
    module = kind()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Q, K), module(Q, K))


def test_chance():
    chance = sslops.chance
    assert chance("nt_xent", batch=256) == pytest.approx(math.log(511))
    ones = torch.ones(6, 3)
    queue = torch.nn.functional.normalize(torch.ones(9, 3), dim=1)
    predictions, targets = torch.ones(2, 3, 5, 4), torch.ones(3, 5, 4)
    pairs = [
        (sslops.info_nce(ones, ones), chance("info_nce", batch=6)),
        (sslops.info_nce(ones, ones, queue=queue), chance("info_nce", batch=6, queue=9)),
        (sslops.clip_loss(ones, ones, 10.0), chance("clip_loss", batch=6)),
        (
            sslops.sup_con(ones, torch.arange(6) // 2),
            chance("sup_con", batch=6, num_views=1),
        ),
    ]
    for negatives in ("all", "sequence", "other"):
        loss = sslops.cpc_loss(predictions, targets, negatives=negatives)
        pairs.append((loss, chance("cpc_loss", batch=3, length=5, negatives=negatives)))
    for loss, expected in pairs:
        assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert chance("cpc_loss", batch=3, length=5, negatives=7) == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("loss", "kwargs", "message"),
    [
        ("clip", {"batch": 2}, "loss must be one of nt_xent, .*, got 'clip'"),
        ("nt_xent", {"batch": 0}, "needs batch >= 1 and num_views >= 2, got 0 and 2"),
        ("nt_xent", {"batch": 4, "num_views": 1}, "num_views >= 2, got 4 and 1"),
        ("sup_con", {"batch": 1, "num_views": 1}, "sup_con needs something to choose from"),
        ("cpc_loss", {"batch": 2}, "cpc_loss needs length >= 2, got None"),
        ("cpc_loss", {"batch": 2, "length": 5, "negatives": "x"}, "or n, got 'x'"),
    ],
)
def test_chance_refuses(loss, kwargs, message):
    with pytest.raises(ValueError, match=f"chance: .*{message}"):
        sslops.chance(loss, **kwargs)
