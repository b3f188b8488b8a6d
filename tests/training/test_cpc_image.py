"""CPC on images: patches that know nothing of each other, contexts that look up only."""

import io
import json
import math

import pytest
import torch
from torch import nn

from sslops.training import load_encoder, train
from sslops.training.loggers.console import Console
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.cpc_image import CPCImage, CPCImageConfig
from sslops.training.models import PatchEncoder
from sslops.training.models.context import RowContext

TINY = {"width": 4, "views": "patches", "batch": 6}


def method(**changes):
    torch.manual_seed(0)
    return CPCImage(CPCImageConfig(**{**TINY, **changes}), DataShape(3, 32, 10))


def views(n):
    """Views of n images whose patches keep all channels."""
    return torch.rand(1, n, 3, 32, 32), torch.full((1, n, 7, 7), -1)


def test_patches_of_half_overlap_make_7_by_7():
    encoder = PatchEncoder(3, width=4)
    assert encoder.grid(torch.rand(2, 3, 32, 32)).shape == (2, 7, 7, 16)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 16)


def test_a_patch_knows_nothing_of_the_others():
    """In training mode too: with batch norm it would."""
    encoder = PatchEncoder(3, width=4).double().train()
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in encoder.modules())
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    y = x.clone()
    y[1, :, 8:10, 13:15] = 0  # inside rows 1 and 2, columns 2 and 3
    changed = (encoder.grid(x) != encoder.grid(y)).any(3)
    expected = torch.zeros(3, 7, 7, dtype=torch.bool)
    expected[1, 1:3, 2:4] = True
    assert torch.equal(changed, expected)


def test_a_patch_that_keeps_one_channel_sees_nothing_of_the_others():
    encoder = PatchEncoder(3, width=4).double()
    x, y = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    y[:, 1] = x[:, 1]  # green alone is the same
    kept = torch.full((2, 7, 7), -1)
    kept[0, 2, 3] = kept[1, 6, 0] = 1
    assert torch.equal((encoder.grid(x, kept) == encoder.grid(y, kept)).all(3), kept == 1)
    grey = x[:, 1:2].expand_as(x)
    torch.testing.assert_close(encoder.grid(x, kept)[kept == 1], encoder.grid(grey)[kept == 1])
    assert torch.equal(encoder.grid(x, torch.full_like(kept, -1)), encoder.grid(x))


def test_images_need_not_be_square():
    """Folders may hold such images: more columns than rows."""
    cpc = CPCImage(CPCImageConfig(**{**TINY, "views": "flip"}), DataShape(3, 32, 10))
    batch = Batch(torch.randint(0, 255, (6, 3, 32, 48), dtype=torch.uint8), None)
    views = cpc.views(batch, torch.Generator())
    assert views[1].shape == (1, 6, 7, 11)
    assert cpc.step(views)["loss"].isfinite()


def test_the_picture_shows_what_patches_keep():
    batch = Batch(torch.randint(0, 255, (6, 3, 32, 32), dtype=torch.uint8), None)
    x, view, seen = method(drop=1.0, views="flip").pictures(batch, torch.Generator())["views"]
    assert x.shape == view.shape == seen.shape
    assert (seen == seen[:, :1]).all()  # grey
    assert (seen[:, :, :8, :8] == view[:, :, :8, :8]).flatten(2).all(2).sum(1).eq(1).all()
    whole = method(drop=0.0, views="flip").pictures(batch, torch.Generator())["views"]
    assert torch.equal(whole[1], whole[2])


def test_half_of_the_patches_keep_a_channel_each_as_often():
    batch = Batch(torch.randint(0, 255, (200, 3, 32, 32), dtype=torch.uint8), None)
    kept = method().views(batch, torch.Generator().manual_seed(0))[1]
    assert kept.shape == (1, 200, 7, 7)
    share = (kept.flatten() + 1).bincount(minlength=4) / kept.numel()
    torch.testing.assert_close(share, torch.tensor([3, 1, 1, 1]) / 6, rtol=0, atol=0.02)
    assert (method(drop=0.0).views(batch, torch.Generator())[1] == -1).all()
    assert (method(drop=1.0).views(batch, torch.Generator())[1] >= 0).all()


@pytest.mark.parametrize("kind", ["conv", "gru"])
def test_contexts_do_not_depend_on_rows_below(kind):
    torch.manual_seed(0)
    context = RowContext(8, kind=kind).double()
    z = torch.randn(2, 7, 7, 8, dtype=torch.float64)
    c = context(z)
    assert c.shape == z.shape
    for row in range(7):
        y = z.clone()
        y[:, row] = torch.randn(2, 7, 8, dtype=torch.float64)
        changed = (context(y) != c).any(3).any(2).any(0)
        assert not changed[:row].any()
        assert changed[row]
        if row < 6:
            assert changed[row + 1]  # and rows above do reach down


def test_the_convolution_sees_other_columns_and_the_gru_its_own():
    z = torch.randn(1, 7, 7, 8)
    y = z.clone()
    y[:, 0, 3] += 1
    columns = {
        kind: (context(y) != context(z)).any(3).any(1)[0].tolist()
        for kind in ("conv", "gru")
        for context in [RowContext(8, kind=kind)]
    }
    assert columns["gru"] == [False, False, False, True, False, False, False]
    assert all(columns["conv"])


@pytest.mark.parametrize("skip", [0, 1])
def test_loss_is_the_papers(skip):
    """Step k from row r must pick row r + skip + k of the same column, among all patches."""
    cpc = method(pred_steps=2, skip=skip, negatives="all")
    with torch.no_grad():  # scores far from level, so that the wrong patch would show
        cpc.predictor.weight.mul_(100)
    x, kept = views(2)
    z = cpc.encoder.grid(x[0])
    c = cpc.rows(z)
    B, rows, columns, D = z.shape
    candidates = z[:, skip:].reshape(-1, D)
    losses = []
    for k in (1, 2):
        W = cpc.predictor.weight[(k - 1) * D : k * D]
        total = []
        for b in range(B):
            for r in range(rows - skip - k):
                for column in range(columns):
                    scores = candidates @ (W @ c[b, r, column]) / D**0.5
                    own = z[b, r + skip + k, column] @ (W @ c[b, r, column]) / D**0.5
                    total.append(scores.logsumexp(0) - own)
        losses.append(torch.stack(total).mean())
    out = cpc.step((x, kept))
    torch.testing.assert_close(out["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_chance_counts_patches():
    assert method(negatives="all").chance == pytest.approx(math.log(6 * 7 * 6))
    assert method(negatives=16).chance == pytest.approx(math.log(17))
    cpc = method(negatives="all")
    nn.init.zeros_(cpc.predictor.weight)
    loss = cpc.step(views(6))["loss"]
    assert loss.item() == pytest.approx(cpc.chance, rel=1e-5)


def test_gradients_reach_everything():
    cpc = method()
    cpc.step(views(4))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cpc.parameters())


def test_embeddings_begin_with_the_images():
    cpc = method()
    predictions, targets = cpc.embed(views(5))
    assert predictions.shape == (5, 7, 3, 6, 16)
    assert targets.shape == (5, 7, 6, 16)
    batch = Batch(torch.randint(0, 255, (6, 3, 32, 32), dtype=torch.uint8), None)
    figures = cpc.eval().figures(batch, torch.Generator())
    assert figures["predicted-against-true"].shape == (2, 6, 1, 6, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pred_steps": 6}, r"pred_steps \+ skip must be below the 7 rows of .*, got 6 \+ 1"),
        ({"drop": 1.5}, r"drop must be in \[0, 1\], got 1.5"),
        ({"patch": 1}, "patch must be at least 2, got 1"),
        ({"views": "patch"}, "no such views, got 'patch'; did you mean 'patches'"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


@pytest.mark.slow
def test_learns_which_rows_belong_together(tmp_path):
    """Digits of 8 x 8 pixels: strokes go on below."""
    result = train(
        "cpc-image", data="digits", out=tmp_path / "a", console=Console(io.StringIO()),
        evaluate=False, steps=200, lr=5e-3, knn_every=0, width=8, log_every=20, threads=1,
    )  # fmt: skip
    record = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["loss"] < 0.93 * record["chance"]
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(load_encoder(tmp_path / "a")(images), result.encoder(images))
