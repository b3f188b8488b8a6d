"""lightly, open_clip, solo-learn and info-nce-pytorch against plain statements."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslops.compat import info_nce_pytorch, lightly, open_clip, solo_learn
from tests.compat import _compat_plain as plain
from tests.compat._compat import assert_same_loss

B, D, K = 12, 8, 32


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_lightly_nt_xent(temperature):
    ours = lightly.NTXentLoss(temperature)
    assert_same_loss(
        ours,
        lambda a, b: plain.nt_xent(a, b, temperature),
        torch.randn(2, B, D),
        scale=1 / temperature,
    )


def test_lightly_default_of_identical_rows():
    out = torch.ones(B, D)
    assert lightly.NTXentLoss()(out, out).item() == pytest.approx(math.log(2 * B - 1))


def test_lightly_bank_holds_the_negatives_and_changes_after_the_loss():
    ours = lightly.NTXentLoss(0.2, memory_bank_size=(K, D))
    before = ours.memory_bank.bank.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(K))
    out0, out1 = torch.randn(2, B, D)
    assert_same_loss(
        lambda a, b: lightly_loss_of(ours, before, a, b),
        lambda a, b: plain.moco(a, b, before, 0.2),
        (out0, out1),
        scale=5,
    )
    torch.testing.assert_close(ours.memory_bank.bank[:B], F.normalize(out1, dim=1))
    assert torch.equal(ours.memory_bank.bank[B:], before[B:])


def lightly_loss_of(ours, bank, out0, out1):
    ours.memory_bank.bank.copy_(bank)
    ours.memory_bank.bank_ptr.zero_()
    return ours(out0, out1)


def test_lightly_bank_goes_round_without_losing_rows():
    ours = lightly.NTXentLoss(memory_bank_size=(8, D))
    rows = [torch.randn(5, D) for _ in range(2)]
    for out1 in rows:
        ours(torch.randn(5, D, requires_grad=True), out1)
    kept = F.normalize(torch.cat(rows), dim=1)
    torch.testing.assert_close(ours.memory_bank.bank, torch.cat([kept[8:], kept[2:8]]))
    assert ours.memory_bank.bank_ptr.tolist() == [2]
    ours(torch.randn(11, D, requires_grad=True), out1 := torch.randn(11, D))  # more than it holds
    assert ours.memory_bank.bank_ptr.tolist() == [5]
    newest = F.normalize(out1, dim=1)[3:].roll(5, 0)
    torch.testing.assert_close(ours.memory_bank.bank, newest)


def test_lightly_bank_stays_without_gradient_and_travels_in_checkpoints():
    ours = lightly.NTXentLoss(memory_bank_size=(8, D))
    before = ours.memory_bank.bank.clone()
    ours(torch.randn(4, D), torch.randn(4, D))
    assert torch.equal(ours.memory_bank.bank, before)
    other = lightly.NTXentLoss(memory_bank_size=(8, D))
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.memory_bank.bank, before)
    other.load_state_dict({})  # lightly's own checkpoint has no bank
    assert torch.equal(other.memory_bank.bank, before)


@pytest.mark.parametrize("size", [-1, (4,), (-1, 4), (1, 2, 3), ()])
def test_lightly_refuses_sizes(size):
    with pytest.raises(ValueError, match="memory_bank_size must be 0, size or"):
        lightly.NTXentLoss(memory_bank_size=size)


def test_lightly_refuses():
    for temperature in (0.0, 1e-9):
        with pytest.raises(ValueError, match="temperature must not be 0"):
            lightly.NTXentLoss(temperature)
    for shapes in (((2, 3), (3, 3)), ((0, 3), (0, 3))):
        with pytest.raises(ValueError, match=r"out0 and out1 must be \[B, D\]"):
            lightly.NTXentLoss()(*map(torch.ones, shapes))
    with pytest.raises(TypeError, match="must share a floating dtype"):
        lightly.NTXentLoss()(torch.ones(2, 3), torch.ones(2, 3).half())


def test_lightly_update_momentum():
    model, ema = torch.nn.Linear(D, B), torch.nn.Linear(D, B)
    expected = [
        0.9 * e + 0.1 * p for e, p in zip(ema.parameters(), model.parameters(), strict=True)
    ]
    lightly.update_momentum(model, ema, 0.9)
    for actual, want in zip(ema.parameters(), expected, strict=True):
        torch.testing.assert_close(actual, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_open_clip_losses(dtype):
    features = (unit(B, D), unit(B, D), torch.tensor(14.3))
    assert_same_loss(open_clip.ClipLoss(), plain.clip, features, scale=15, dtype=dtype)
    assert_same_loss(
        open_clip.SigLipLoss(),
        plain.siglip,
        (*features, torch.tensor(-10.0)),
        scale=25,
        dtype=dtype,
    )


def test_open_clip_takes_features_as_they_are():
    features = (3 * unit(B, D), 0.5 * unit(B, D), torch.tensor(20.0))
    assert_same_loss(open_clip.ClipLoss(), plain.clip, features, scale=30)


def test_open_clip_bias_of_a_softmax_has_gradient_zero():
    image, text, bias = unit(B, D), unit(B, D), torch.tensor(-3.0, requires_grad=True)
    loss = open_clip.ClipLoss()(image, text, 10.0, logit_bias=bias, output_dict=True)
    loss["contrastive_loss"].backward()
    assert bias.grad.item() == 0
    assert torch.equal(loss["contrastive_loss"], open_clip.ClipLoss()(image, text, 10.0))


def test_open_clip_without_bias_and_with_a_dict():
    image, text = unit(B, D), unit(B, D)
    loss = open_clip.SigLipLoss()(image, text, 10.0, None, output_dict=True)["contrastive_loss"]
    torch.testing.assert_close(loss, plain.siglip(image, text, 10.0, 0.0))


def test_open_clip_logits_and_ground_truth_for_subclasses():
    image, text, bias = unit(B, D), unit(B, D), torch.tensor(-3.0)
    loss = open_clip.ClipLoss()
    of_images, of_texts = loss.get_logits(image, text, 10.0, logit_bias=bias)
    labels = loss.get_ground_truth(image.device, B)
    stated = 0.5 * sum(F.cross_entropy(each, labels) for each in (of_images, of_texts))
    torch.testing.assert_close(stated, loss(image, text, 10.0))
    torch.testing.assert_close(of_images, 10.0 * image @ text.T - 3.0)
    loss = open_clip.SigLipLoss()
    labels = loss.get_ground_truth(image.device, image.dtype, B)
    logits = loss.get_logits(image, text, 10.0, bias)
    stated = -F.logsigmoid(labels * logits).sum() / B
    torch.testing.assert_close(stated, loss(image, text, 10.0, bias))
    negative = loss.get_ground_truth("cpu", torch.float64, 3, negative_only=True)
    assert torch.equal(negative, -torch.ones(3, 3, dtype=torch.float64))
    assert torch.equal(loss.get_logits(image, text, 2.0), 2.0 * image @ text.T)


def test_open_clip_refuses():
    for loss in (open_clip.ClipLoss(), open_clip.SigLipLoss()):
        with pytest.raises((ValueError, RuntimeError), match=r"batch_size|size of tensor"):
            loss(unit(B - 1, D), unit(B, D), 10.0, -10.0)
    with pytest.raises(ValueError, match="use_horovod must be False"):
        open_clip.ClipLoss(use_horovod=True, world_size=2)(unit(B, D), unit(B, D), 10.0)
    with pytest.raises(ValueError, match="dist_impl must be"):
        open_clip.SigLipLoss(dist_impl="ring")
    for loss in (open_clip.ClipLoss(world_size=2), open_clip.SigLipLoss(world_size=2)):
        with pytest.raises(ValueError, match=r"those of torch\.distributed, 0 of 1, got 0 of 2"):
            loss(unit(B, D), unit(B, D), 10.0, None)


@pytest.mark.parametrize("views", [2, 3])
def test_solo_simclr(views):
    indexes = torch.arange(B).repeat(views) - 3  # any integers
    assert_same_loss(
        lambda z: solo_learn.simclr_loss_func(z, indexes, 0.2),
        lambda z: plain.solo_simclr(z, indexes, 0.2),
        [torch.randn(views * B, D)],
        scale=5,
    )


def test_solo_simclr_leaves_out_rows_without_a_positive():
    z, indexes = torch.randn(5, D), torch.tensor([0, 0, 1, 1, 7])
    e = (F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / 0.1).exp().fill_diagonal_(0)
    p = [e[0, 1] / e[0].sum(), e[1, 0] / e[1].sum(), e[2, 3] / e[2].sum(), e[3, 2] / e[3].sum()]
    torch.testing.assert_close(
        solo_learn.simclr_loss_func(z, indexes), -torch.stack(p).log().mean()
    )


def test_solo_simclr_takes_the_two_views_of_older_versions():
    z = torch.randn(2, 4, D)
    expected = plain.solo_simclr(z.flatten(0, 1), torch.arange(4).repeat(2), 0.1)
    torch.testing.assert_close(solo_learn.simclr_loss_func(*z), expected)
    with pytest.raises(ValueError, match=r"indexes must be \[4\], or with extra_pos_mask"):
        solo_learn.simclr_loss_func(z[0], torch.arange(3))


def test_solo_moco():
    query, key, queue = unit(B, D), unit(B, D), unit(K, D)
    assert_same_loss(
        lambda q, k: solo_learn.mocov2plus_loss_func(q, k, queue.T.contiguous(), 0.2),
        lambda q, k: plain.moco(q, k, queue, 0.2, normalize=False),
        (query, key),
        scale=5,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("mode", "shape"), [("unpaired", None), ("unpaired", (K, D)), ("paired", (B, 5, D))]
)
def test_info_nce(mode, shape, reduction):
    rows = [torch.randn(B, D), torch.randn(B, D)]
    args = (0.2, reduction, mode)
    fixed = None if shape is None else torch.randn(shape)
    assert_same_loss(
        lambda q, k: info_nce_pytorch.info_nce(q, k, fixed, *args),
        lambda q, k: plain.info_nce(q, k, None if fixed is None else fixed.to(q.dtype), *args),
        rows,
        scale=5,
    )
    if fixed is not None:  # trained negatives
        assert_same_loss(
            info_nce_pytorch.InfoNCE(*args),
            lambda q, k, n: plain.info_nce(q, k, n, *args),
            [*rows, fixed],
            scale=5,
        )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(2, 3), torch.ones(3, 3)), r"must be \[N, D\]"),
        ((torch.ones(2), torch.ones(2)), r"must be \[N, D\]"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 2)), r"must be \[M, D\]"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 4, 3)), r"must be \[M, D\]"),
        ((*torch.ones(2, 2, 3), torch.ones(4, 3), 0.1, "mean", "paired"), r"must be \[N, M, D\]"),
        ((*torch.ones(2, 2, 3), torch.ones(3, 4, 3), 0.1, "mean", "paired"), r"\[N, M, D\]"),
        ((*torch.ones(2, 2, 3), torch.ones(4, 3), 0.1, "mean", "both"), "negative_mode must be"),
        ((*torch.ones(2, 2, 3), None, 0.1, "median"), "median is not a valid"),
    ],
)
def test_info_nce_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        info_nce_pytorch.info_nce(*args)
