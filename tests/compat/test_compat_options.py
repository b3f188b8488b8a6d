"""Options of the drop-ins that no kernel covers, against plain statements of what they mean."""

import copy
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslops.compat import info_nce_pytorch, lightly, open_clip, solo_learn
from sslops.compat import pytorch_metric_learning as pml
from sslops.compat import sentence_transformers as texts
from sslops.compat._pieces import pieces
from tests.compat import _compat_plain as plain
from tests.compat._compat import assert_same_loss
from tests.compat._compat_options import targets

B, D, K = 8, 6, 20


@pytest.mark.parametrize("temperature", [-0.5, math.inf, torch.tensor(-0.5), torch.tensor(0.5)])
def test_lightly_of_any_temperature(temperature):
    ours = lightly.NTXentLoss(temperature)
    assert_same_loss(
        ours, lambda a, b: plain.nt_xent(a, b, temperature), torch.randn(2, B, D), scale=2
    )
    bank = lightly.NTXentLoss(temperature, (K, D))
    kept = bank.memory_bank.bank.clone()
    out0, out1 = torch.randn(2, B, D).requires_grad_()
    torch.testing.assert_close(bank(out0, out1), plain.moco(out0, out1, kept, temperature))
    torch.testing.assert_close(bank.memory_bank.bank[:B], F.normalize(out1, dim=1).detach())


@pytest.mark.parametrize("temperature", [0.5, -0.5])
def test_lightly_bank_of_a_size_alone(temperature):
    """As before lightly 1.6: the first batch tells the features."""
    out0, out1 = torch.randn(2, B, D).requires_grad_()
    loss = lightly.NTXentLoss(temperature, memory_bank_size=K)
    torch.manual_seed(1)
    value = loss(out0, out1)
    torch.manual_seed(1)
    whole = lightly.NTXentLoss(temperature, (K, D))
    torch.testing.assert_close(value, whole(out0, out1))
    torch.testing.assert_close(loss.memory_bank.bank, whole.memory_bank.bank)
    for source in (loss, whole):  # before a batch came, and after
        fresh = lightly.NTXentLoss(temperature, K)
        fresh.load_state_dict(source.state_dict())
        assert torch.equal(fresh.memory_bank.bank, whole.memory_bank.bank)
        torch.testing.assert_close(fresh(out0, out1), whole(out0, out1))
        whole.load_state_dict(source.state_dict())
    fresh.load_state_dict({})
    assert lightly.NTXentLoss(0.5, K).state_dict()["memory_bank.bank"].shape == (K, 0)


@pytest.mark.parametrize("size", [0, (K, D)])
def test_lightly_gathers_without_a_process_group(size):
    out0, out1 = torch.randn(2, B, D).requires_grad_()
    losses = []
    for gather in (False, True):
        torch.manual_seed(1)
        loss = lightly.NTXentLoss(0.5, size, gather)
        losses.append(loss(out0, out1) + loss(out1, out0))
    assert torch.equal(*losses)


@pytest.mark.parametrize("m", [1.5, -1.0, torch.tensor(0.5)])
def test_lightly_momentum_outside_of_an_average(m):
    model, ema = nn.Linear(D, B), nn.Linear(D, B)
    expected = m * ema.weight + (1 - m) * model.weight
    lightly.update_momentum(model, ema, m)
    torch.testing.assert_close(ema.weight, expected)


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), np.float16(0.25)])
def test_the_kernels_take_numbers_of_numpy(number):
    """And give what the number of Python gives."""
    a, b = F.normalize(torch.randn(2, B, D), dim=2)
    for call in (
        lambda tau: lightly.NTXentLoss(tau).fused(a, b),
        lambda tau: open_clip.ClipLoss().fused(a, b, tau),
        lambda tau: open_clip.SigLipLoss().fused(a, b, tau, tau),
        lambda tau: info_nce_pytorch.InfoNCE(tau).fused(a, b),
        lambda tau: solo_learn.fused_simclr_of_views(a, b, tau),
        lambda tau: pml.SelfSupervisedLoss(pml.NTXentLoss(tau)).fused(a, b),
        lambda tau: texts.MultipleNegativesRankingLoss(None, tau).fused([a, b]),
    ):
        assert torch.equal(call(number), call(0.25))
    net, one, two = nn.Linear(D, B), nn.Linear(D, B), nn.Linear(D, B)
    two.load_state_dict(one.state_dict())
    assert lightly.fused_update_momentum(net, one, number) is None
    lightly.update_momentum(net, two, 0.25)
    assert torch.equal(one.weight, two.weight)


def shared_with_the_source(model, ema):
    ema[0].weight.data = model[0].weight.data


def shared_with_another_source(model, ema):
    ema[0].weight.data = model[1].weight.data


def tied(model, ema):
    ema[1].weight.data = ema[0].weight.data


def on_two_devices(model, ema):
    model[1].to("meta")
    ema[1].to("meta")


@pytest.mark.parametrize(
    "change", [shared_with_the_source, shared_with_another_source, tied, on_two_devices]
)
def test_lightly_momentum_of_shared_memory(change):
    """As the package does it: one tensor after the other, in place."""
    nets = [nn.Sequential(nn.Linear(D, D), nn.Linear(D, D)) for _ in range(2)]
    copies = copy.deepcopy(nets)
    change(*nets)
    change(*copies)
    assert lightly.fused_update_momentum(*nets, 0.9) is NotImplemented
    lightly.update_momentum(*nets, 0.9)
    for average in copies[1].parameters():
        average.data.mul_(0.9)
    for source, average in zip(*(net.parameters() for net in copies), strict=True):
        average.data.add_(source.data, alpha=1 - 0.9)
    for net, other in zip(nets, copies, strict=True):
        for one, two in zip(net.parameters(), other.parameters(), strict=True):
            assert one.is_meta or torch.allclose(one, two)


@pytest.mark.parametrize("scale", [-3.0, 0.0, torch.tensor(-3.0), torch.linspace(1, 3, D)])
def test_open_clip_of_any_scale(scale):
    image, text = F.normalize(torch.randn(2, B, D), dim=2)
    for loss, stated in (
        (open_clip.ClipLoss(), lambda a, b: plain.clip(a, b, scale)),
        (
            lambda a, b, s: open_clip.SigLipLoss()(a, b, s, -2.0),
            lambda a, b: plain.siglip(a, b, scale, -2),
        ),
    ):
        ours = lambda a, b, f=loss: f(a, b, scale)  # noqa: E731
        assert_same_loss(ours, stated, (image, text), scale=5)


def test_open_clip_of_a_bias_for_each_text():
    image, text = F.normalize(torch.randn(2, B, D), dim=2)
    bias, own = torch.linspace(-2, 0, B, requires_grad=True), torch.arange(B)
    loss = open_clip.ClipLoss()(image, text, 5.0, bias)
    logits = [5 * image @ text.T + bias, 5 * text @ image.T + bias]
    stated = sum(F.cross_entropy(each, own) for each in logits) / 2
    torch.testing.assert_close(loss, stated)
    grads = [torch.autograd.grad(each, bias)[0] for each in (loss, stated)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("mode", "shape"), [("unpaired", (0, D)), ("paired", (B, 0, D))])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_info_nce_without_negatives_is_zero(mode, shape, reduction):
    query, keys = torch.randn(2, B, D).requires_grad_()
    loss = info_nce_pytorch.info_nce(query, keys, torch.randn(shape), 0.1, reduction, mode)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert loss.shape == ((B,) if reduction == "none" else ())
    (grad,) = torch.autograd.grad(loss.sum(), query)
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize(
    ("mode", "shape"), [("any", None), ("unpaired", (K, D)), ("paired", (B, 5, D))]
)
def test_info_nce_of_a_negative_temperature(mode, shape):
    args = (-0.2, "mean", mode)
    far = None if shape is None else torch.randn(shape)
    assert_same_loss(
        lambda q, k: info_nce_pytorch.info_nce(q, k, None if far is None else far.to(q), *args),
        lambda q, k: plain.info_nce(q, k, None if far is None else far.to(q), *args),
        torch.randn(2, B, D),
        scale=5,
    )


def test_solo_of_any_labels_temperature_and_positives():
    z, indexes = torch.randn(2 * B, D), torch.arange(B).repeat(2)
    for t in (0.2, -0.2):
        loss = solo_learn.simclr_loss_func(z, indexes / 7, t)
        torch.testing.assert_close(loss, plain.solo_simclr(z, indexes, t))
        query, key, queue = torch.randn(B, D), torch.randn(B, D), torch.randn(K, D).requires_grad_()
        loss = solo_learn.moco_loss_func(query, key, queue.T, t)
        stated = plain.moco(query, key, queue, t, normalize=False)
        torch.testing.assert_close(loss, stated)
        grads = [torch.autograd.grad(each, queue)[0] for each in (loss, stated)]
        torch.testing.assert_close(*grads)
    extra = torch.zeros(2 * B, 2 * B, dtype=torch.bool)
    extra[0, 1] = extra[1, 0] = True
    s = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / 0.2
    losses = []
    for i in range(2 * B):
        positives = [(i + B) % (2 * B), *extra[i].nonzero().flatten().tolist()]
        others = torch.cat([s[i, :i], s[i, i + 1 :]])
        losses.append(others.logsumexp(0) - s[i, positives].mean())
    loss = solo_learn.simclr_loss_func(z[:B], z[B:], 0.2, extra)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
BOTH = [(pml.NTXentLoss, plain.pairwise_nt_xent), (pml.SupConLoss, plain.sup_con)]


@pytest.mark.parametrize(
    "relabel",
    [
        lambda y: y + 0.25, lambda y: y.half(), lambda y: y.to(torch.int8), lambda y: y - 2,
        lambda y: torch.tensor([-(2**63), 5, 2**63 - 1, -7])[y], lambda y: 0.1 * y.double(),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_labels_of_any_dtype_and_range(ours, stated, relabel):
    z, y = torch.randn(B, D), relabel(LABELS)
    expected = stated(z, z, *plain.masks(LABELS), 0.2)
    torch.testing.assert_close(ours(0.2)(z, y), expected)
    memory = pml.CrossBatchMemory(ours(0.2), D, 2 * B)
    memory(torch.randn(B, D), relabel(LABELS))
    keys = torch.cat([memory.embedding_memory[:B], z])
    masks = plain.masks(LABELS, LABELS.repeat(2), own=torch.arange(B) + B)
    torch.testing.assert_close(memory(z, y), stated(z, keys, *masks, 0.2))


class Far(nn.Module):
    """A distance, as the package's are."""

    is_inverted = False

    def forward(self, a, b):
        return torch.cdist(a, b)


@pytest.mark.parametrize("ours", [pml.NTXentLoss, pml.SupConLoss])
@pytest.mark.parametrize("distance", [None, Far()])
def test_other_distances_and_temperatures(ours, distance):
    z = torch.randn(B, D)
    tau = 0.5 if distance else -0.5
    x = F.normalize(z, dim=1)
    s = (-torch.cdist(z, z) if distance else x @ x.T) / tau
    positive, negative = plain.masks(LABELS)
    losses = []
    for a, p in positive.nonzero().tolist():
        seen = negative[a].clone()
        seen[positive[a] if ours is pml.SupConLoss else p] = True
        losses.append((a, s[a][seen].logsumexp(0) - s[a, p]))
    if ours is pml.SupConLoss:
        losses = [
            (a, sum(v for _, v in group) / len(group))
            for a, group in ((a, list(g)) for a, g in itertools.groupby(losses, lambda x: x[0]))
        ]
    expected = torch.stack([value for _, value in losses]).mean()
    torch.testing.assert_close(ours(tau, distance=distance)(z, LABELS), expected)


def test_regularizer():
    z = torch.randn(B, D)
    norms = lambda x: x.norm(dim=1).mean()  # noqa: E731
    loss = pml.NTXentLoss(embedding_regularizer=norms, embedding_reg_weight=0.5)
    expected = pml.NTXentLoss()(z, LABELS) + 0.5 * norms(z)
    torch.testing.assert_close(loss(z, LABELS), expected)


@pytest.mark.parametrize("far", [1, 1e-3])
def test_losses_of_zero_are_not_counted(far):
    """Two classes so far apart that nothing else is seen beside a positive, and one that is not."""
    z = torch.cat([torch.eye(D)[[0, 0, 1, 1]], torch.randn(4, D)])
    z[1:4:2] += far * 1e-2 * torch.randn(2, D)
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    masks = plain.masks(y)
    for tau in (0.02, 0.03):
        s = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / tau
        s = s.double()
        rows = torch.stack([
            s[i][~torch.eye(B, dtype=torch.bool)[i]].logsumexp(0) - s[i][masks[0][i]].mean()
            for i in range(B)
        ])  # fmt: skip
        seen = rows[rows > 1e-6]
        assert len(seen) < B
        loss = pml.SupConLoss(tau)(z, y)
        torch.testing.assert_close(loss.double(), seen.mean(), rtol=1e-5, atol=1e-5)


def test_what_must_be_exactly_zero():
    z = torch.randn(3, D, requires_grad=True)
    for ours in (pml.NTXentLoss, pml.SupConLoss):
        one_of_each = ours()(z[:1], LABELS[:1], ref_emb=z[1:], ref_labels=LABELS[1:3])
        assert one_of_each.item() == 0  # as in the package: a pair of each kind is not compared
        pairs = (LABELS[:1], LABELS[2:3], LABELS[:1], LABELS[5:6])
        assert ours()(z, indices_tuple=pairs).item() == 0
        (grad,) = torch.autograd.grad(one_of_each, z)
        assert torch.equal(grad, torch.zeros_like(z))
        assert ours()(z * torch.nan, torch.arange(3)).isnan()  # a diverged network is not perfect


def test_references_of_the_same_labels_are_the_rows_themselves():
    z, keys, y = torch.randn(B, D), torch.randn(B, D), LABELS.clone()
    masks = plain.masks(LABELS, LABELS, own=torch.arange(B))
    for ours, stated in BOTH:
        expected = stated(z, keys, *masks, 0.2)
        for given in (y, None):
            loss = ours(0.2)(z, y, ref_emb=keys, ref_labels=given)
            torch.testing.assert_close(loss, expected)
        apart = stated(z, keys, *plain.masks(LABELS, LABELS), 0.2)
        torch.testing.assert_close(ours(0.2)(z, y, ref_emb=keys, ref_labels=y.clone()), apart)
        torch.testing.assert_close(ours(0.2)(z, y, ref_labels=y), ours(0.2)(z, y))


class Seen(nn.Module):
    """A loss that shows what it was given."""

    def forward(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        self.pairs, self.labels = [each.tolist() for each in indices_tuple], ref_labels.tolist()
        return embeddings.sum()


def test_memory_around_another_loss():
    z, y = torch.randn(3, D), torch.tensor([0.5, 0.5, 1.5])
    memory = pml.CrossBatchMemory(Seen(), D, 4)
    assert memory(z, y) == z.sum()
    assert memory.loss.pairs == [[0, 1], [1, 0], [0, 1, 2, 2], [2, 2, 0, 1]]
    memory(
        z[:2], torch.tensor([1.5, 9.0]), indices_tuple=(y[:1].long(), y[2:].long(), y[2:].long())
    )
    assert memory.loss.labels == [9.0, 0.5, 1.5, 1.5]  # the ring went round
    assert memory.loss.pairs[:2] == [[0, 0], [2, 1]]
    assert [each[-1] for each in memory.loss.pairs] == [0, 1, 0, 1]
    miner = lambda *_: (torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([3, 3]))  # noqa: E731
    memory = pml.CrossBatchMemory(Seen(), D, 4, miner)
    memory(z, y, indices_tuple=tuple(torch.tensor(each) for each in ([1], [0], [1, 2], [2, 0])))
    assert memory.loss.pairs == [[0, 0, 1], [1, 2, 0], [3, 3, 2]]


Q2D, Q2Q, D2Q, D2D = "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"


def test_ranking_of_documents_without_queries_and_of_other_scales():
    rows = torch.randn(3, B, D)
    for scale in (5.0, 1e-7):
        loss = texts.multiple_negatives_ranking_loss(rows, scale, directions=(Q2D, D2D))
        torch.testing.assert_close(loss, plain.ranking(rows, scale, True, (Q2D, D2D), "joint"))


@pytest.mark.parametrize("mode", ["in_batch_negatives", "hard_negatives", "all_negatives"])
@pytest.mark.parametrize("cached", [False, True])
def test_ranking_of_hard_negatives_and_of_other_similarities(mode, cached):
    rows = [each.requires_grad_() for each in torch.randn(4, B, D)]
    distance = lambda a, b: -torch.cdist(a, b)  # noqa: E731
    kind = (
        texts.CachedMultipleNegativesRankingLoss if cached else texts.MultipleNegativesRankingLoss
    )
    options = {"mini_batch_size": 3} if cached else {}
    model = lambda x: {"sentence_embedding": x["values"]}  # noqa: E731
    loss = kind(model, 2.0, distance, hardness_mode=mode, hardness_strength=0.5, **options)
    docs, losses = torch.cat(rows[1:]), []
    for i in range(B):
        s = -torch.cdist(rows[0][i : i + 1], docs)[0]
        own = torch.arange(3 * B) % B == i
        hard = own & (torch.arange(3 * B) >= B)
        weigh = {"in_batch_negatives": ~own, "hard_negatives": hard, "all_negatives": ~own | hard}
        logits = 2 * s + 0.5 * s.detach() * weigh[mode]
        losses.append(logits.logsumexp(0) - logits[i])
    expected = torch.stack(losses).mean()
    value = loss([{"values": each} for each in rows], None)
    torch.testing.assert_close(value, expected)
    grads = torch.autograd.grad(expected, rows)
    value.backward()
    torch.testing.assert_close(tuple(each.grad for each in rows), grads)
    assert loss.get_config_dict()["hardness_mode"] == mode


def test_pieces_of_so_many_tokens():
    lengths = torch.tensor([3, 2, 9, 1, 1, 4])
    mask = (torch.arange(9) < lengths[:, None]).long()
    batch = {"input_ids": torch.arange(54).view(6, 9), "attention_mask": mask}
    cut = pieces(batch, 32, num_tokens=6)
    assert [len(each["input_ids"]) for each in cut] == [2, 1, 3]
    with pytest.raises(ValueError, match="mini_batch_num_tokens needs an attention_mask"):
        pieces({"input_ids": mask}, 32, num_tokens=6)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    flat = {
        "input_ids": torch.arange(20)[None], "cu_seq_lens_q": ends, "max_length_q": 9, "n": "x",
        "seq_idx": torch.arange(6).repeat_interleave(lengths)[None],
    }  # fmt: skip
    for cut in (pieces(flat, 2), pieces(flat, 32, num_tokens=6)):
        assert torch.cat([each["input_ids"] for each in cut], 1).tolist() == [list(range(20))]
    assert [each["cu_seq_lens_q"].tolist() for each in cut] == [[0, 3, 5], [0, 9], [0, 1, 2, 6]]
    assert [each["max_length_q"] for each in cut] == [3, 9, 4]
    assert cut[2]["seq_idx"].tolist() == [[0, 1, 2, 2, 2, 2]]


def test_every_argument_is_on_its_page():
    for target in targets():
        page = (
            Path(__file__).parents[2] / "docs" / "migration" / f"{target.package}.md"
        ).read_text()
        page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
        named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page))))
        missing = {each.argument for each in target.options} - named
        assert not missing, f"{target.package}: {target.name} has {sorted(missing)}"


def test_images_go_with_their_text():
    items, grid = torch.tensor([1, 0, 2]), torch.tensor([[1, 1, 2], [1, 2, 2], [1, 1, 1]])
    batch = {"input_ids": torch.zeros(3, 2), "num_images_per_sample": items}
    rows = torch.arange(7)[:, None]
    one, none, two = pieces({**batch, "image_grid_thw": grid, "pixel_values": rows}, 1)
    assert one["pixel_values"].flatten().tolist() == [0, 1]
    assert "pixel_values" not in none
    assert "image_grid_thw" not in none
    assert two["pixel_values"].flatten().tolist() == [2, 3, 4, 5, 6]
    assert two["image_grid_thw"].tolist() == grid[1:].tolist()
    sizes = torch.tensor([[5], [6], [7], [8]])
    batch["num_images_per_sample"] = torch.tensor([1, 1, 2])
    cut = pieces({**batch, "pixel_values": rows[:4], "image_sizes": sizes}, 2)
    assert [each["image_sizes"].flatten().tolist() for each in cut] == [[5, 6], [7, 8]]
