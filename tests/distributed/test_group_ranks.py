"""What four processes agree on, refuse, report and send."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import sslops
from bench.scale import Job, table
from sslops import Gather, Ring, clip_loss, cpc_loss, info_nce, nt_xent, sigmoid_loss, sup_con
from tests.distributed.group_cases import spawned

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
]

WAYS = {"gather": Gather, "ring": Ring}
D = 6


def one(rank, **only):
    """Keywords that only the second rank gets."""
    return only if rank == 1 else {}


def z(*shape, dtype=torch.float32, grad=False):
    return torch.ones(*shape, dtype=dtype).requires_grad_(grad)


# name -> (call of a rank with its group, what every rank's error says)
REFUSED = {
    "features": (lambda r, g: nt_xent(z(2, 3, D + (r == 1)), group=g), "number of features"),
    "dtype": (
        lambda r, g: nt_xent(z(2, 3, D, dtype=torch.float64 if r == 1 else torch.float32), group=g),
        "same dtype",
    ),
    "temperature": (
        lambda r, g: nt_xent(z(2, 3, D), group=g, **one(r, temperature=0.2)),
        r"same inverse temperature, got \[10, 5, 10, 10\]",
    ),
    "learnt temperature": (
        lambda r, g: info_nce(z(3, D), z(3, D), temperature=torch.tensor(0.1 + r), group=g),
        "same temperature",
    ),
    "kind of temperature": (
        lambda r, g: sup_con(
            z(3, D), torch.zeros(3).long(), group=g, **one(r, temperature=torch.tensor(0.1))
        ),
        r"same kind of temperature, got \[0, 1, 0, 0\]",
    ),
    "scale": (
        lambda r, g: sigmoid_loss(z(3, D), z(3, D), torch.tensor(1.0 + r), group=g),
        "same logit_scale",
    ),
    "reduction": (
        lambda r, g: clip_loss(z(3, D), z(3, D), 2.0, group=g, **one(r, reduction="sum")),
        "same reduction",
    ),
    "views": (lambda r, g: nt_xent(z(2 + (r == 1), 3, D), group=g), "same num_views"),
    "loss": (
        lambda r, g: (
            nt_xent(z(2, 3, D), group=g) if r == 1 else info_nce(z(3, D), z(3, D), group=g)
        ),
        "same loss",
    ),
    "gradient": (
        lambda r, g: nt_xent(z(2, 3, D, grad=r == 1), group=g),
        "same tensors that need a gradient",
    ),
    "steps": (
        lambda r, g: cpc_loss(z(1 + (r == 1), 2, 4, D), z(2, 4, D), group=g),
        "same number of steps",
    ),
    "own argument": (
        lambda r, g: info_nce(z(3, D), z(3, D), group=g, **one(r, weights=torch.ones(2))),
        r"weights must be \[3\]|arguments must be right on all ranks, got a refusal by \[1\]",
    ),
    "not a tensor": (
        lambda r, g: nt_xent([1.0] if r == 1 else z(2, 3, D), group=g),
        r"z must be a tensor|got a refusal by \[1\]",
    ),
    "nobody": (lambda r, g: nt_xent(z(2, 0, D), group=g), "one rank must have a sample"),
    "no pair": (
        lambda r, g: sup_con(z(int(r == 1), D), torch.zeros(int(r == 1)).long(), group=g),
        "two rows together",
    ),
    "too many drawn": (
        lambda r, g: cpc_loss(z(1, 1, 4, D), z(1, 4, D), negatives=17, group=g),
        r"in \[1, B T = 16\]",
    ),
}


def rows(*shape, dtype=torch.float64):
    torch.manual_seed(3)
    return torch.randn(*shape, dtype=dtype)


def cut(tensor, rank, axis=0):
    """Two of eight for each rank."""
    return tensor if rank is None else tensor.narrow(axis, 2 * rank, 2)


LABELS = torch.tensor([0, 1, 2, 0, 1, -1, 3, 0])
# name -> call of a rank, or of None for all rows, that returns (loss, statistics)
STATS = {
    "nt_xent": lambda r, g: nt_xent(cut(rows(2, 8, D), r, 1), return_stats=True, group=g),
    "nt_xent three views": lambda r, g: nt_xent(
        cut(rows(3, 8, D), r, 1), return_stats=True, group=g
    ),
    "info_nce": lambda r, g: info_nce(
        cut(rows(8, D), r), cut(rows(16, D)[8:], r), return_stats=True, group=g
    ),
    "symmetric": lambda r, g: info_nce(
        cut(rows(8, D), r), cut(rows(16, D)[8:], r), symmetric=True, return_stats=True, group=g
    ),
    "clip": lambda r, g: clip_loss(
        cut(rows(8, D), r), cut(rows(16, D)[8:], r), 5.0, return_stats=True, group=g
    ),
    "sup_con": lambda r, g: sup_con(
        cut(rows(8, D), r), cut(LABELS, r), return_stats=True, group=g
    ),
    "cpc": lambda r, g: cpc_loss(
        cut(rows(2, 8, 3, D), r, 1), cut(rows(8, 3, D), r), return_stats=True, group=g
    ),
}  # fmt: skip


def extreme(rank, group):
    """Far temperatures, and an encoder that has collapsed or points away from its keys."""
    x = F.normalize(rows(2, 8, D), dim=2)
    away = torch.stack([x[0], -x[0]])
    for each in (x, away, torch.ones_like(x)):
        for temperature in (0.005, 50.0):
            own = cut(each, rank, 1).clone().requires_grad_()
            loss = nt_xent(own, temperature=temperature, group=group)
            loss = loss + info_nce(own[0], own[1], temperature=temperature, group=group)
            loss = loss + clip_loss(own[0], own[1], 1 / temperature, group=group)
            loss.backward()
            yield loss.detach(), own.grad


class Model(nn.Module):
    """An encoder that learns the loss's own numbers too."""

    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = nn.Linear(4, D), loss

    def forward(self, images):
        x = self.layer(images)
        if isinstance(self.loss, sslops.NTXentLoss):
            return self.loss(x)
        if isinstance(self.loss, sslops.SupConLoss):
            return self.loss(x[0], images[0, :, 0].gt(0).long())
        if isinstance(self.loss, sslops.CPCLoss):
            return self.loss(x[:, :, None].expand(-1, -1, 3, -1), x[0][:, None].expand(-1, 3, -1))
        return self.loss(x[0], x[1])


MODULES = {
    "NTXentLoss": lambda g: sslops.NTXentLoss(0.5, learn_temperature=True, group=g),
    "InfoNCELoss": lambda g: sslops.InfoNCELoss(0.5, learn_temperature=True, group=g),
    "SupConLoss": lambda g: sslops.SupConLoss(0.5, learn_temperature=True, group=g),
    "CPCLoss": lambda g: sslops.CPCLoss(0.5, learn_temperature=True, group=g),
    "ClipLoss": lambda g: sslops.ClipLoss(3.0, group=g),
    "SigmoidLoss": lambda g: sslops.SigmoidLoss(3.0, -1.0, group=g),
}
SHARES = ([0, 3, 4, 8, 10], [0, 0, 5, 5, 10])  # where the ten images of a batch are cut


def trained(name, group, wrap=None, first=0, last=10):
    """Losses and gradients of two batches."""
    torch.manual_seed(5)
    images, model = torch.randn(2, 10, 4), Model(MODULES[name](group))
    outer = model if wrap is None else wrap(model)
    loss = outer(images[:, first:last])
    loss.backward()
    return loss.detach(), {key: p.grad.clone() for key, p in model.named_parameters()}


def counted(call):
    """Bytes that this process sends in a ring during `call`."""
    sent, original = 0, dist.batch_isend_irecv

    def count(ops):
        nonlocal sent
        sent += sum(op.tensor.nbytes for op in ops if op.op is dist.isend)
        return original(ops)

    dist.batch_isend_irecv = count
    call()
    dist.batch_isend_irecv = original
    return sent


def sizes_sent(rank, groups):
    x = rows(2, 5, D, dtype=torch.float32).requires_grad_()
    out = {}
    for size, group in groups.items():
        if rank < size:
            ring = Ring(group)
            out["nt_xent", size] = counted(lambda ring=ring: nt_xent(x, group=ring).backward())
            out["clip", size] = counted(
                lambda ring=ring: clip_loss(x[0], x[1], 2.0, group=ring).backward()
            )
    return out


# losses of a bfloat16 and a float32 side, as under autocast
MIXED = {
    "info_nce": lambda x, y, g: info_nce(x, y, group=g),
    "clip_loss": lambda x, y, g: clip_loss(x, y, 10.0, group=g),
    "sigmoid_loss": lambda x, y, g: sigmoid_loss(x, y, 10.0, group=g),
    "cpc_loss": lambda x, y, g: cpc_loss(
        x[None, :, None].expand(1, -1, 3, -1), y[:, None].expand(-1, 3, -1), group=g
    ),
}


def mixed(name, rank, group):
    """Loss and gradients under autocast."""
    both = cut(rows(2, 8, D), rank, 1)
    x, y = both[0].bfloat16().requires_grad_(), both[1].float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = MIXED[name](x, y, group)
    loss.backward()
    return loss.detach(), x.grad, y.grad


def kept(rank, group):
    """The most numbers in one of the tensors that a float64 loss of 80 rows a rank keeps."""
    sizes = []
    x, y = (torch.randn(80, 20, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        info_nce(x, y, group=group), clip_loss(x, y, 5.0, group=group)
        info_nce(x, y, reduction="none", group=group)
    return max(sizes)


def work(rank, groups):
    found = {"sent": sizes_sent(rank, groups)}
    for way, kind in WAYS.items():
        group = kind()
        for name, (call, _) in REFUSED.items():
            try:
                call(rank, group)
                found["refused", name, way] = "nothing"
            except (TypeError, ValueError) as error:
                found["refused", name, way] = str(error)
        for name, call in STATS.items():
            found["stats", name, way] = call(rank, group)
        found["extreme", way] = list(extreme(rank, group))
        for name in MODULES:
            for n, shares in enumerate(SHARES):
                cuts = (shares[rank], shares[rank + 1])
                found["module", name, way, n] = trained(
                    name, group, nn.parallel.DistributedDataParallel, *cuts
                )
        compiled = torch.compile(lambda x, g=group: nt_xent(x, group=g), backend="eager")
        own = cut(rows(2, 8, D), rank, 1).requires_grad_()
        compiled(own).backward()
        found["compiled", way] = own.grad
        half = cut(rows(2, 8, D), rank, 1).bfloat16().requires_grad_()
        loss = nt_xent(half, group=group)
        loss.backward()
        found["half", way] = loss.detach(), half.grad
        for name in MIXED:
            found["mixed", name, way] = mixed(name, rank, group)
        found["kept", way] = kept(rank, group)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return spawned(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_all_ranks_refuse_what_one_has_wrong(name, way, found):
    for each in found:
        assert re.search(REFUSED[name][1], each["refused", name, way]), each["refused", name, way]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATS)
def test_statistics(name, way, found):
    loss, stats = STATS[name](None, None)
    for rank, each in enumerate(found):
        own_loss, own = each["stats", name, way]
        torch.testing.assert_close(own_loss, loss)
        for field, value in stats._asdict().items():
            if value.numel() and name != "cpc":  # whose statistics are of all ranks
                views = value.numel() // 8
                value = value.view(views, 8)[:, 2 * rank : 2 * rank + 2].flatten()
            torch.testing.assert_close(getattr(own, field), value, msg=lambda m, f=field: f + m)


@pytest.mark.parametrize("way", WAYS)
def test_extremes(way, found):
    for n, (loss, grad) in enumerate(extreme(None, None)):
        for rank, each in enumerate(found):
            own_loss, own_grad = each["extreme", way][n]
            torch.testing.assert_close(own_loss, loss)
            torch.testing.assert_close(own_grad / 4, cut(grad, rank, 1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", range(len(SHARES)))
@pytest.mark.parametrize("name", MODULES)
def test_distributed_data_parallel_has_the_gradient_of_one_process(name, batch, way, found):
    loss, grads = trained(name, None)
    for each in found:
        own_loss, own = each["module", name, way, batch]
        torch.testing.assert_close(own_loss, loss)
        for key, grad in grads.items():
            torch.testing.assert_close(own[key], grad, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_breaks_its_graph_and_gives_the_same(way, found):
    whole = rows(2, 8, D).requires_grad_()
    nt_xent(whole).backward()
    for rank, each in enumerate(found):
        torch.testing.assert_close(each["compiled", way] / 4, cut(whole.grad, rank, 1))


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_is_as_exact_as_in_one_process(way, found):
    exact = rows(2, 8, D).bfloat16().double().requires_grad_()
    whole = rows(2, 8, D).bfloat16().requires_grad_()
    loss, alone = nt_xent(exact), nt_xent(whole)
    loss.backward()
    alone.backward()
    allowed = 2 * (whole.grad - exact.grad).abs().max() + 2**-8 * exact.grad.abs().max()
    for rank, each in enumerate(found):
        own_loss, grad = each["half", way]
        assert abs(own_loss - loss) <= 2 * abs(alone - loss) + 2**-8 * loss
        assert (grad / 4 - cut(exact.grad, rank, 1)).abs().max() <= allowed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MIXED)
def test_autocast_casts_both_sides_on_every_rank(name, way, found):
    loss, *grads = mixed(name, None, None)
    for rank, each in enumerate(found):
        own_loss, *own = each["mixed", name, way]
        torch.testing.assert_close(own_loss, loss, rtol=2**-8, atol=2**-8)
        for grad, dtype, whole in zip(own, (torch.bfloat16, torch.float32), grads, strict=True):
            assert grad.dtype is dtype
            atol = 2**-6 * float(whole.abs().max())
            torch.testing.assert_close(grad / 4, cut(whole, rank), rtol=0, atol=atol)


@pytest.mark.parametrize("way", WAYS)
def test_no_similarities_are_kept_in_float64(way, found):
    assert all(each["kept", way] == 80 * 20 for each in found)


def test_formulae_count_what_a_ring_sends(found):
    for rank, each in enumerate(found):
        for size in (2, 4):
            if rank < size:
                assert each["sent"]["nt_xent", size] == Job(size, 10, D, 4).sent
                assert each["sent"]["clip", size] == Job(size, 5, D, 4, 4, 8).sent
        assert each["sent"].get(("nt_xent", 1), 0) == 0


def test_the_page_shows_the_table_of_the_formulae():
    page = Path(__file__).parents[2] / "docs" / "scale.md"
    assert "\n".join(table()) in page.read_text()


@pytest.mark.parametrize("group", [Gather(), Ring(), None])
def test_without_other_processes_one_is_alone(group):
    x = rows(2, 8, D)
    assert torch.equal(nt_xent(x, group=group), nt_xent(x))


def test_refuses_what_is_no_group():
    with pytest.raises(TypeError, match="group must be a process group, Gather, Ring or None, got"):
        nt_xent(z(2, 3, D), group="world")
