"""pytorch-metric-learning's losses against loops over rows and pairs."""

import pytest
import torch
import torch.nn.functional as F

from sslops.compat._masks import logits_of, pair_losses
from sslops.compat.pytorch_metric_learning import (
    CrossBatchMemory,
    NTXentLoss,
    SelfSupervisedLoss,
    SupConLoss,
)
from sslops.compat.solo_learn import simclr_loss_func
from tests.compat import _compat_plain as plain
from tests.compat._compat import assert_same_loss

D = 8
TWO_VIEWS = torch.arange(6).repeat(2)
ODD = torch.tensor([-1, -1, 0, 0, 0, 7, 3, 3, 3, 3, 3, -1])  # -1 is a label, 7 is alone
FEW_CLASSES = torch.arange(12) % 2
BOTH = [(NTXentLoss, plain.pairwise_nt_xent), (SupConLoss, plain.sup_con)]


@pytest.mark.parametrize("labels", [TWO_VIEWS, ODD, FEW_CLASSES])
@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_by_labels(ours, stated, labels):
    masks = plain.masks(labels)
    assert_same_loss(
        lambda z: ours(0.2)(z, labels),
        lambda z: stated(z, z, *masks, 0.2),
        [torch.randn(12, D)],
        scale=5,
    )


@pytest.mark.parametrize("labels", [TWO_VIEWS, FEW_CLASSES])
@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_against_references(ours, stated, labels):
    key_labels = torch.cat([labels[:5], torch.tensor([40, 41])])
    masks = plain.masks(labels, key_labels)
    assert_same_loss(
        lambda z, k: ours(0.2)(z, labels, ref_emb=k, ref_labels=key_labels),
        lambda z, k: stated(z, k, *masks, 0.2),
        [torch.randn(12, D), torch.randn(7, D)],
        scale=5,
    )


@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_chosen_pairs_and_triplets(ours, stated):
    a = torch.tensor([0, 0, 1, 3])
    p, n = torch.tensor([1, 1, 0, 4]), torch.tensor([2, 3, 4, 0])
    positive, negative = torch.zeros(2, 12, 12, dtype=torch.bool)
    positive[a, p], negative[a, n] = True, True
    pairs = (a.unique(), torch.tensor([1, 0, 4]), a, n)  # each positive once
    z = [torch.randn(12, D)]
    assert_same_loss(
        lambda z: ours(0.2)(z, indices_tuple=pairs),
        lambda z: stated(z, z, positive, negative, 0.2),
        z,
        scale=5,
    )
    triplets = ours(0.2)(z[0], indices_tuple=(a, p, n))
    torch.testing.assert_close(triplets, ours(0.2)(z[0], indices_tuple=(a, p, a, n)))
    with pytest.raises(ValueError, match="must be triplets or pairs, got 2"):
        ours()(z[0], indices_tuple=(a, p))


def test_a_pair_counts_as_often_as_it_is_named():
    logits = torch.zeros(1, 3)
    first, second = torch.tensor([0]), torch.tensor([1])
    loss = pair_losses(logits, first, second, torch.tensor([[0.0, 0.0, 2.0]]))
    torch.testing.assert_close(loss, torch.tensor([3.0]).log())


@pytest.mark.parametrize("ours", [NTXentLoss, SupConLoss])
@pytest.mark.parametrize("labels", [torch.arange(6), torch.zeros(6, dtype=torch.int64)])
def test_without_positives_or_negatives_the_loss_is_zero(ours, labels):
    z = torch.randn(6, D, requires_grad=True)
    loss = ours()(z, labels)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_reducers():
    labels = torch.tensor([0, 0, 1])
    z = torch.eye(3)
    mean, nonzero = type("MeanReducer", (), {})(), type("AvgNonZeroReducer", (), {})()
    total = 2 * torch.tensor(2.0).log()
    torch.testing.assert_close(SupConLoss(reducer=mean)(z, labels), total / 3)
    torch.testing.assert_close(SupConLoss(reducer=nonzero)(z, labels), total / 2)
    torch.testing.assert_close(NTXentLoss(reducer=nonzero)(z, labels), total / 2)
    add = type("SumReducer", (), {})()
    torch.testing.assert_close(SupConLoss(reducer=add)(z, labels), total)
    torch.testing.assert_close(NTXentLoss(reducer=add)(z, labels), total)

    def largest(found, embeddings, labels):  # any other reducer is called as the package does
        assert embeddings is z
        (entry,) = found.values()
        return entry["losses"].max() + len(entry["indices"])

    torch.testing.assert_close(NTXentLoss(reducer=largest)(z, labels), total / 2 + 2)
    torch.testing.assert_close(SupConLoss(reducer=largest)(z, labels), total / 2 + 3)


@pytest.mark.parametrize("ours", [NTXentLoss, SupConLoss])
@pytest.mark.parametrize(("rows", "keys"), [(0, None), (1, None), (0, 3), (3, 0), (0, 0)])
def test_no_pair_is_a_loss_of_zero_with_a_graph(ours, rows, keys):
    z = torch.randn(4, D, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.arange(4)
    other = {} if keys is None else {"ref_emb": z[:keys], "ref_labels": labels[:keys]}
    loss = ours()(z[:rows], labels[:rows], **other)
    loss.backward()
    assert (loss.item(), loss.dtype) == (0, torch.float32)
    assert torch.equal(z.grad, torch.zeros_like(z))
    for symmetric in (True, False):
        assert SelfSupervisedLoss(ours(), symmetric)(z[:0], z[:0]).item() == 0


def distance(name, **settings):
    defaults = {"normalize_embeddings": True, "p": 2, "power": 1, "is_inverted": True}
    return type(name, (), {**defaults, **settings})()


def test_distances():
    z, labels = torch.randn(4, D), torch.tensor([0, 0, 1, 1])
    for name in ("CosineSimilarity", "DotProductSimilarity"):
        loss = NTXentLoss(distance=distance(name))
        assert torch.equal(loss(z, labels), NTXentLoss()(z, labels))
    for settings in ({"power": 2}, {"p": 1}, {"normalize_embeddings": False}):
        other = distance("DotProductSimilarity", **settings)
        with pytest.raises(TypeError, match="not callable"):  # computed by the object
            SupConLoss(distance=other)(z, labels)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_self_supervised(ours, stated, symmetric):
    labels = torch.arange(6)

    def expected(z1, z2):
        if symmetric:
            z = torch.cat([z1, z2])
            return stated(z, z, *plain.masks(labels.repeat(2)), 0.2)
        return stated(z1, z2, *plain.masks(labels, labels), 0.2)

    loss = SelfSupervisedLoss(ours(0.2), symmetric)
    assert_same_loss(loss, expected, torch.randn(2, 6, D), scale=5)
    with pytest.raises(ValueError, match="views must share their shape"):
        loss(torch.ones(2, 3), torch.ones(3, 3))


@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_cross_batch_memory(ours, stated):
    memory = CrossBatchMemory(ours(0.2), embedding_size=D, memory_size=20)
    batches, labels = torch.randn(3, 8, D), torch.arange(24).view(3, 8) % 5
    for step in range(3):  # the third goes round
        kept = torch.cat([batches[step], *batches[:step].flip(0)])[:20]
        kept_labels = torch.cat([labels[step], *labels[:step].flip(0)])[:20]
        if step == 2:  # of the first batch, the last rows are still there
            kept[16:], kept_labels[16:] = batches[0, 4:], labels[0, 4:]
        masks = plain.masks(labels[step], kept_labels, own=torch.arange(8))
        z = batches[step].clone().requires_grad_()
        before = memory.state_dict()
        before = {k: v.clone() if torch.is_tensor(v) else v for k, v in before.items()}
        memory(z, labels[step]).backward()
        after = memory.queue_idx, memory.has_been_filled
        memory.load_state_dict(before)
        assert_same_loss(
            lambda z, before=before, y=labels[step]: remembered(memory, before, z, y),
            lambda z, kept=kept, masks=masks: stated(z, kept.to(z.dtype), *masks, 0.2),
            [batches[step]],
            scale=5,
        )
        assert (
            (memory.queue_idx, memory.has_been_filled) == after == (8 * (step + 1) % 20, step > 1)
        )


def remembered(memory, state, z, labels):
    memory.load_state_dict(state)
    return memory(z, labels)


def test_cross_batch_memory_with_a_mask_and_in_checkpoints():
    memory = CrossBatchMemory(NTXentLoss(0.2), embedding_size=D, memory_size=20)
    z, labels = torch.randn(12, D), torch.arange(6).repeat(2)
    entering = torch.arange(12) >= 6
    loss = memory(z, labels, enqueue_mask=entering)
    masks = plain.masks(labels[:6], labels[6:])
    torch.testing.assert_close(loss, plain.pairwise_nt_xent(z[:6], z[6:], *masks, 0.2))
    other = CrossBatchMemory(NTXentLoss(0.2), embedding_size=D, memory_size=20)
    other.load_state_dict(memory.state_dict())
    assert (other.queue_idx, other.has_been_filled) == (6, False)
    assert torch.equal(other.embedding_memory, memory.embedding_memory)
    theirs = {k: v for k, v in memory.state_dict().items() if "extra" not in k}
    CrossBatchMemory(NTXentLoss(0.2), embedding_size=D, memory_size=20).load_state_dict(theirs)
    other.reset_queue()
    assert other.queue_idx == 0
    assert not other.embedding_memory.any()


@pytest.mark.parametrize("wide", [0, 1])
def test_logits_have_the_wider_dtype_of_both_sides(wide):
    sides = list(torch.randn(2, 5, 4, dtype=torch.float64))
    sides[1 - wide] = sides[1 - wide].float()
    exact = F.normalize(sides[0].double(), dim=1) @ F.normalize(sides[1].double(), dim=1).T / 0.1
    assert torch.equal(logits_of(*sides, 0.1), exact)


@pytest.mark.parametrize(("ours", "stated"), BOTH)
def test_a_label_that_is_nan_is_the_same_as_nothing(ours, stated):
    z, labels = torch.randn(12, D), torch.where(ODD == -1, torch.nan, ODD.double())
    assert ours().fused(z, labels, None, z, labels) is not NotImplemented
    nothing = torch.where(ODD == -1, 100 + torch.arange(12), ODD)  # each its own label
    assert_same_loss(
        lambda z: ours(0.2)(z, labels),
        lambda z: stated(z, z, *plain.masks(nothing), 0.2),
        [z],
        scale=5,
    )
    other = labels.clone()
    torch.testing.assert_close(
        ours()(z, labels, ref_emb=z, ref_labels=other),
        ours()(z, nothing, ref_emb=z, ref_labels=torch.where(ODD == -1, 200, ODD)),
    )


def test_a_mean_of_non_zero_losses_waits_for_no_device():
    """What reads a value on the host raises for a meta tensor."""
    losses, embeddings = torch.ones(3, device="meta"), torch.ones(3, D, device="meta")
    assert SupConLoss().reduced({"loss": {"losses": losses, "indices": None,
        "reduction_type": "element"}}, embeddings, None).is_meta  # fmt: skip


@pytest.mark.slow
def test_compile_in_one_graph():
    labels, z = torch.arange(6).repeat(2), torch.randn(12, D, requires_grad=True)
    views = (z[:6], z[6:])
    for loss, rows in (
        (SupConLoss(), (z, labels)),
        (SupConLoss(), (z, labels.float())),
        (simclr_loss_func, (z, labels.float())),
        (SelfSupervisedLoss(NTXentLoss()), views),
        (SelfSupervisedLoss(SupConLoss(), symmetric=False), views),
    ):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*rows)
        torch.testing.assert_close(compiled, loss(*rows))
    with pytest.raises(torch._dynamo.exc.UserError):  # as the page of the migration says
        torch.compile(NTXentLoss(), fullgraph=True, backend="aot_eager")(z, labels)


def test_refuses():
    z, labels = torch.randn(4, D), torch.tensor([0, 0, 1, 1])
    for arguments in ({}, {"ref_labels": labels}):
        with pytest.raises(ValueError, match="labels or indices_tuple are needed"):
            NTXentLoss()(z, **arguments)
    for wrong in (labels[:3], labels[:, None]):
        with pytest.raises(ValueError, match=r"labels must be \[4\], one for each row"):
            SupConLoss()(z, wrong)
    with pytest.raises(TypeError, match="must share a floating dtype"):
        SupConLoss()(z, labels, ref_emb=z.double(), ref_labels=labels)
    both = (labels[:1], labels[1:2], labels[:2], labels[:2] + 0)
    with pytest.raises(ValueError, match="positive or negative, got one that is both"):
        SupConLoss()(z, indices_tuple=both)
    memory = CrossBatchMemory(NTXentLoss(), D, memory_size=3)
    with pytest.raises(ValueError, match="memory of 3 must hold a batch, got 4"):
        memory(z, labels)
    with pytest.raises(ValueError, match="indices_tuple or enqueue_mask, got both"):
        memory(z, labels, indices_tuple=(labels,) * 3, enqueue_mask=labels > 0)
    assert memory.queue_idx == 0
