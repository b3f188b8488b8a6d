"""ema_update_ on modules, every error it raises, and MomentumEncoder."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sslops
from sslops.ops.ema import ema_update_


def make_network(dtype=torch.float32):
    """Parameters, running statistics, an integer counter, a complex table and a tied weight."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[3].weight = net[2].weight
    net[1].running_mean.normal_()
    net[1].num_batches_tracked += 7
    net.to(dtype)
    net.register_buffer("table", torch.randn(3, dtype=torch.complex64), persistent=False)
    net.register_buffer("none", None)
    return net


def state(net):
    """Copies of all tensors, by name."""
    pairs = itertools.chain(net.named_parameters(remove_duplicate=False), net.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in pairs}


@pytest.mark.parametrize("buffers", ["copy", "ema", "keep"])
@pytest.mark.parametrize(
    ("target", "source"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_a_network(backend, target, source, buffers):
    ours, theirs = make_network(target), make_network(source)
    if buffers == "ema":
        ours.table = theirs.table = None
    if buffers == "keep":
        theirs[1].num_batches_tracked += 1
        theirs.extra = nn.Buffer(torch.ones(1))  # whatever buffers there are
    before, moved = state(ours), state(theirs)
    parameters = {name for name, _ in ours.named_parameters(remove_duplicate=False)}
    assert ema_update_(ours, theirs, 0.75, buffers=buffers) is None
    for name, after in state(ours).items():
        if buffers == "keep" and name not in parameters:
            assert torch.equal(after, before[name])
            continue
        expected = moved[name].to(after.dtype)
        is_copied = buffers == "copy" and any(w in name for w in ("running", "table"))
        if after.dtype.is_floating_point and not is_copied:
            expected = 0.75 * before[name] + 0.25 * expected
        torch.testing.assert_close(after, expected)
    assert ours[3].weight is ours[2].weight
    for name, tensor in state(theirs).items():
        assert torch.equal(tensor, moved[name])


def test_tied_weights_are_updated_once(backend):
    w = torch.zeros(3)
    s = torch.ones(3)
    ema_update_([w, w, w.data], [s, s, s.data], 0.5)
    assert torch.equal(w, torch.full((3,), 0.5))


def test_iterators_and_nothing_at_all(backend):
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    ema_update_(a.parameters(), b.parameters(), 0.0)
    assert torch.equal(a.weight, b.weight)
    ema_update_([], [], 0.5)
    ema_update_(nn.ReLU(), nn.ReLU(), 0.5)
    ema_update_([torch.ones(0, 3)], [torch.ones(0, 3)], 0.5)
    meta = torch.ones(3, device="meta")
    ema_update_([meta], [meta.clone()], 0.5)


def test_nothing_is_differentiated(backend):
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    momentum = torch.tensor(0.5, requires_grad=True)
    ema_update_(a, b, momentum)
    assert a.weight.requires_grad
    assert a.weight.grad_fn is None
    with torch.inference_mode():
        ema_update_([torch.ones(2)], [b.weight[0]], 0.5)


@pytest.mark.slow
def test_fullgraph_compile_of_modules():
    torch._dynamo.reset()

    def step(net, other, x):
        ema_update_(net, other, 0.9)
        return net[0](x).sum()

    nets = [make_network().requires_grad_(False) for _ in range(2)]
    for net in nets:
        net.table = None
    again = copy.deepcopy(nets[0])
    x = torch.randn(1, 3, 5, 5)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*nets, x), step(again, nets[1], x))
    torch.testing.assert_close(state(nets[0]), state(again))


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_divided_tensors_are_moved_part_by_part(tmp_path):
    """FSDP2's parameters have no address of their own; passing over them would stop the average."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        target, source = (fully_shard(nn.Linear(3, 4), mesh=mesh) for _ in range(2))
        before = target.weight.full_tensor().detach().clone()
        ema_update_(target, source, 0.75)
        expected = 0.75 * before + 0.25 * source.weight.full_tensor()
        torch.testing.assert_close(target.weight.full_tensor(), expected)
    finally:
        dist.destroy_process_group()


W = torch.zeros(4)
WRONG = [
    (ValueError, [W], [W, W], 0.5, "as many sources as targets, got 2 and 1"),
    (ValueError, [W], [torch.zeros(3)], 0.5, r"shape of its target, got \(3,\) and \(4,\)"),
    (ValueError, [W], [W], 0.5, "may be both target and source, got tensor 0"),
    (ValueError, [W, torch.ones(4)], [torch.ones(4), W.data], 0.5, "both target and source"),
    (ValueError, [W, W], [torch.ones(4), torch.ones(4)], 0.5, "share their source, got tensor 0"),
    (ValueError, [W, W[:2]], [torch.ones(4), torch.ones(2)], 0.5, "share their source"),
    (ValueError, [W[:1].expand(4)], [torch.ones(4)], 0.5, r"not share memory, got strides \(0,\)"),
    (ValueError, [W], [torch.ones(4, device="meta")], 0.5, "on one device, got cpu and meta"),
    (ValueError, [W], [torch.ones(4)], 1.5, r"momentum must be in \[0, 1\], got 1.5"),
    (ValueError, [W], [torch.ones(4)], float("nan"), r"must be in \[0, 1\], got nan"),
    (ValueError, [W], [torch.ones(4)], torch.ones(2), r"one element, got shape \(2,\)"),
    (ValueError, [W], [torch.ones(4)], torch.ones((), device="meta"), "device of the targets"),
    (TypeError, [W], [torch.ones(4)], torch.tensor(1), "momentum must be float16, .* got"),
    (TypeError, [W], [torch.ones(4, dtype=torch.int64)], 0.5, "got torch.float32 and torch.int64"),
    (TypeError, [W], [torch.ones(4, dtype=torch.complex64)], 0.5, "or of one dtype"),
    (TypeError, [W.to(torch.complex64)], [W.to(torch.complex64)], 0.5, "cannot average"),
    (TypeError, [W], [None], 0.5, "needs tensors, got NoneType"),
    (TypeError, W, [W], 0.5, "two lists of tensors, got Tensor and list"),
    (TypeError, nn.ReLU(), [W], 0.5, "two modules or .* got ReLU and list"),
    (TypeError, {"a": W}, {"a": W}, 0.5, "two modules or two lists .* got dict and dict"),
    (TypeError, [W], [("a", W)], 0.5, "needs tensors, got tuple"),
]


@pytest.mark.parametrize(("kind", "targets", "sources", "momentum", "match"), WRONG)
def test_refused_before_anything_is_written(kind, targets, sources, momentum, match):
    W.zero_()
    good = torch.zeros(4)
    if isinstance(targets, list):  # a pair that is right comes first
        targets, sources = [good, *targets], [torch.ones(4), *sources]
        match = match.replace("got 2 and 1", "got 3 and 2").replace("tensor 0", "tensor 1")
    with pytest.raises(kind, match=f"ema_update_: .*{match}"):
        ema_update_(targets, sources, momentum)
    assert good.sum() == 0
    assert W.sum() == 0


def test_modules_that_differ_are_refused_by_name():
    ours, theirs = make_network(), make_network()
    before = state(ours)
    theirs[0].bias = None
    theirs.register_parameter("extra", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=r"same parameters, got .* \['0.bias'\] .* \['extra'\]"):
        ema_update_(ours, theirs, 0.5)
    theirs = make_network()
    theirs[1].running_var = None
    with pytest.raises(ValueError, match=r"same buffers, got sources without \['1.running_var'\]"):
        ema_update_(ours, theirs, 0.5)
    theirs = make_network()
    theirs[3].weight = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"share their source, got 2.weight and 3.weight"):
        ema_update_(ours, theirs, 0.5)
    theirs = make_network()
    theirs[1].num_batches_tracked = theirs[1].num_batches_tracked.int()
    with pytest.raises(TypeError, match=r"int64 and torch.int32 for 1.num_batches_tracked"):
        ema_update_(ours, theirs, 0.5)
    with pytest.raises(ValueError, match="buffers must be copy, ema or keep, got 'all'"):
        ema_update_(ours, make_network(), 0.5, buffers="all")
    torch.testing.assert_close(state(ours), before, rtol=0, atol=0)


def test_momentum_encoder_follows():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = sslops.MomentumEncoder(encoder, 0.75)
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in encoder.parameters())
    assert len(list(target.parameters())) == len(list(encoder.parameters()))
    start = target.encoder[0].weight.clone()
    with torch.no_grad():
        encoder[0].weight.add_(1.0)
        encoder[1].running_mean.add_(1.0)
    target.update()
    torch.testing.assert_close(target.encoder[0].weight, start + 0.25)
    assert torch.equal(target.encoder[1].running_mean, encoder[1].running_mean)
    target.update(momentum=0.0)
    assert torch.equal(target.encoder[0].weight, encoder[0].weight)
    other = copy.deepcopy(encoder)
    other[0].weight.data.zero_()
    target.update(other, momentum=torch.tensor(0.5))
    torch.testing.assert_close(target.encoder[0].weight, encoder[0].weight.detach() / 2)
    x = torch.randn(5, 3, requires_grad=True)
    out = target.eval()(x)
    assert not out.requires_grad
    assert torch.equal(out, target.encoder(x))
    assert "momentum=0.75, buffers='copy'" in repr(target)


def test_momentum_encoder_keeps_the_statistics_of_its_own_forward():
    """MoCo: parameters follow, batch norm's buffers see the keys alone."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = sslops.MomentumEncoder(encoder, 0.5, buffers="keep")
    encoder[1].running_mean.add_(9.0)
    target(torch.randn(16, 3))
    own = state(target.encoder)
    assert own["1.num_batches_tracked"] == 1
    with torch.no_grad():
        encoder[0].weight.add_(1.0)
    target.update()
    after = state(target.encoder)
    torch.testing.assert_close(after["0.weight"], own["0.weight"] + 0.5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[f"1.{name}"], own[f"1.{name}"])
    assert not torch.equal(after["1.running_mean"], encoder[1].running_mean)


def test_momentum_encoder_in_another_dtype():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()
    target = sslops.MomentumEncoder(encoder, 0.999, buffers="ema", dtype=torch.float32)
    assert target.encoder[0].weight.dtype is torch.float32
    assert target.encoder[1].num_batches_tracked.dtype is torch.int64
    assert encoder[0].weight.dtype is torch.bfloat16
    encoder[0].weight.data.add_(1.0)
    before = target.encoder[0].weight.clone()
    target.update()
    torch.testing.assert_close(
        target.encoder[0].weight, 0.999 * before + 0.001 * encoder[0].weight.float()
    )
    low = sslops.MomentumEncoder(encoder.float(), dtype=torch.bfloat16, stochastic_rounding=True)
    low.update()
    assert low.encoder[0].weight.dtype is torch.bfloat16
    assert "stochastic_rounding=True" in repr(low)


def test_momentum_encoder_state_dict_round_trip():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = sslops.MomentumEncoder(encoder)
    assert set(target.state_dict()) == {f"encoder.{name}" for name in encoder.state_dict()}
    again = sslops.MomentumEncoder(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    again.load_state_dict(target.state_dict())
    torch.testing.assert_close(again.state_dict(), target.state_dict())
    again.update(encoder)


def test_momentum_encoder_refuses():
    with pytest.raises(ValueError, match=r"MomentumEncoder: momentum must be in .* got 2"):
        sslops.MomentumEncoder(nn.Linear(1, 1), 2.0)
    with pytest.raises(ValueError, match=r"MomentumEncoder: buffers must be copy, .* got 'all'"):
        sslops.MomentumEncoder(nn.Linear(1, 1), buffers="all")
    with pytest.raises(ValueError, match="must have the same parameters"):
        sslops.MomentumEncoder(nn.Linear(1, 1)).update(nn.ReLU())


def test_cosine_momentum():
    values = [sslops.cosine_momentum(step, 10, 0.9) for step in range(12)]
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.95)
    assert values[10] == values[11] == 1.0
    assert values == sorted(values)
    for step, total, base in [(-1, 10, 0.9), (0, 0, 0.9), (0, 10, 1.1)]:
        with pytest.raises(ValueError, match="cosine_momentum: "):
            sslops.cosine_momentum(step, total, base)
