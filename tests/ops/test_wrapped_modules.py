"""Averages of networks that are wrapped: DistributedDataParallel, torch.compile and the like."""

import copy
import gc
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import sslops
from sslops import MomentumEncoder, ema_update_

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory):
    name = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{name}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    """Its first layer is a module of its own, which may be wrapped; one has a wrapper's name."""

    def __init__(self, wrap=lambda module: module):
        super().__init__()
        self.encoder = nn.Sequential(wrap(nn.Linear(3, 4)), nn.BatchNorm1d(4))
        self.module = nn.Linear(4, 2)

    def forward(self, x):
        return self.module(self.encoder(x))


def compiled(module):
    return torch.compile(module, backend="eager")


def ddp(module):
    return nn.parallel.DistributedDataParallel(module)


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


# name -> a network with the members of Net, wrapped anywhere
WRAPPED = {
    "plain": lambda: Net(),
    "DistributedDataParallel": lambda: ddp(Net()),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "torch.compile": lambda: compiled(Net()),
    "compiled in place": lambda: compiled_in_place(Net()),
    "compiled DistributedDataParallel": lambda: compiled(ddp(Net())),
    "DistributedDataParallel of compiled": lambda: ddp(compiled(Net())),
    "compiled layer": lambda: Net(compiled),
    "checkpointed layer": lambda: Net(checkpoint_wrapper),
    "compiled checkpointed layer in all of them": lambda: ddp(
        compiled(Net(lambda module: compiled(checkpoint_wrapper(module))))
    ),
}


def tensors(net):
    return [*net.parameters(), *net.buffers()]


@pytest.mark.parametrize("source", WRAPPED)
@pytest.mark.parametrize("target", WRAPPED)
def test_names_of_wrappers_make_no_difference(target, source):
    ours, theirs = WRAPPED[target](), WRAPPED[source]()
    ema_update_(ours, theirs, 0.0)
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_momentum_encoder(name):
    source = WRAPPED[name]()
    for start in (source, Net()):
        target = MomentumEncoder(start, 0.75)
        before = [each.clone() for each in target.encoder.parameters()]
        target.update(source)
        for was, is_, b in zip(before, target.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(is_, 0.75 * was + 0.25 * b)
        again = MomentumEncoder(Net())
        again.load_state_dict(target.state_dict())
        target.load_state_dict(again.state_dict())
        for a, b in zip(tensors(target), tensors(again), strict=True):
            assert torch.equal(a, b)
        assert target(torch.randn(4, 3)).shape == (4, 2)


def test_a_state_dict_that_lacks_something_is_still_refused():
    target = MomentumEncoder(compiled(Net()))
    wrong = MomentumEncoder(Net()).state_dict()
    wrong["encoder.more"] = wrong.pop("encoder.module.bias")
    names = r"without \['encoder\S*\.module\.bias'\] and with \['encoder\.more'\]"
    with pytest.raises(RuntimeError, match=names):
        target.load_state_dict(wrong)
    found = target.load_state_dict(wrong, strict=False)
    assert found.unexpected_keys == ["encoder.more"]


def test_a_state_dict_of_another_network_is_refused_in_few_words():
    def network(width):
        return nn.Sequential(*[nn.Linear(width, width) for _ in range(300)])

    target = MomentumEncoder(network(1))
    for wrong, first in (
        (network(1).state_dict(), r"without \['encoder.0.bias', .* with \['0.bias', "),
        (MomentumEncoder(network(2)).state_dict(), r"mismatch for encoder.0.weight.* 599 more"),
    ):
        with pytest.raises(RuntimeError, match=first) as caught:
            target.load_state_dict(wrong)
        assert len(str(caught.value)) < 500


def test_a_network_of_one_module_is_no_wrapper_where_it_has_more():
    class More(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(ValueError, match=r"sources without \['module.bias', 'module.weight'\]"):
        ema_update_(More(), nn.Linear(2, 2), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_grad_cache(name):
    """A wrapped encoder, and a function of a wrapped model."""
    net = WRAPPED[name]().eval()
    images = torch.randn(6, 3)
    net(images).square().mean().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    for encoder, model in ((net, None), (lambda x: net(x), net)):
        net.zero_grad()
        cache = sslops.GradCache(encoder, lambda z: z.square().mean(), 2, model=model)
        cache(images).backward()
        for a, b in zip(wanted, net.parameters(), strict=True):
            torch.testing.assert_close(a, b.grad)


class Normalize(nn.Module):
    """Held by what is followed alone, and never trained."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Buffer(torch.ones(3))

    def forward(self, x):
        return x - self.mean


class Scaled(nn.Module):
    """A wrapper with a parameter of its own."""

    def __init__(self, net):
        super().__init__()
        self.net, self.scale = net, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.net(x)


# name -> what is followed, of a network and a head that the method holds
FOLLOWED = {
    "network": lambda net, head: net,
    "container": lambda net, head: nn.Sequential(net, head),
    "container of containers": lambda net, head: nn.ModuleList([nn.Sequential(net), head]),
    "container with a part of its own": lambda net, head: nn.Sequential(Normalize(), net, head),
    "wrapper": lambda net, head: Scaled(net),
    "wrapped container": lambda net, head: compiled(nn.Sequential(net, head)),
}


class Method(nn.Module):
    """Holds network and head, and the average of what follows from them, in either order."""

    def __init__(self, followed, average_first):
        super().__init__()
        net, head = Net(), nn.Linear(2, 2)
        average = MomentumEncoder(followed(net, head), 0.0)
        if average_first:
            self.average = average
        self.net, self.head = net, head
        if not average_first:
            self.average = average


COPIES = {
    "deepcopy": copy.deepcopy,
    "deepcopy twice": lambda each: copy.deepcopy(copy.deepcopy(each)),
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "torch.save": lambda each: _saved(each),
    "AveragedModel": lambda each: torch.optim.swa_utils.AveragedModel(each).module,
}


@pytest.fixture
def few_objects():
    """A collection then looks at what the test made, and not at all of torch: 0.4 s each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def _saved(each):
    file = io.BytesIO()
    torch.save(each, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def followed_weight(average):
    """Of the Net in the average, wherever it is there."""
    return next(p for n, p in average.named_parameters() if n.endswith("encoder.0.weight"))


@pytest.mark.parametrize("average_first", [False, True])
@pytest.mark.parametrize("followed", FOLLOWED)
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.usefixtures("few_objects")
def test_a_copy_follows_the_source_that_was_copied_with_it(way, followed, average_first):
    method = Method(FOLLOWED[followed], average_first)
    other = COPIES[way](method)
    gc.collect()
    for value in (5.0, 6.0):
        with torch.no_grad():
            other.net.encoder[0].weight.fill_(value)
        other.average.update()
        assert (followed_weight(other.average) == value).all()
    other.net.encoder[0] = nn.Linear(3, 4)  # what is put in later is followed as well
    other.average.update()
    assert torch.equal(followed_weight(other.average), other.net.encoder[0].weight)
    method.average.update()
    assert torch.equal(followed_weight(method.average), method.net.encoder[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize("followed", FOLLOWED)
def test_the_first_update_of_a_copy_compiles(followed):
    other = copy.deepcopy(Method(FOLLOWED[followed], False))
    update = torch.compile(other.average.update, fullgraph=True, backend="eager")
    for value in (5.0, 6.0):
        with torch.no_grad():
            other.net.encoder[0].weight.fill_(value)
        update()
        assert (followed_weight(other.average) == value).all()


@pytest.mark.parametrize("followed", FOLLOWED)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_follows_a_network_that_refers_to_its_average(way, followed):
    """The network is half copied when its average's turn comes."""
    method = Method(FOLLOWED[followed], False)
    method.net.__dict__["method"] = method
    net = COPIES[way](method.net)
    with torch.no_grad():
        net.encoder[0].weight.fill_(5.0)
    net.method.average.update()
    assert (followed_weight(net.method.average) == 5.0).all()


def test_a_copy_of_what_has_no_parameters_has_nothing_to_miss():
    average = copy.deepcopy(MomentumEncoder(Normalize()))
    average.update()
    assert torch.equal(average(torch.ones(3)), torch.zeros(3))


def test_a_part_that_is_never_trained_is_no_source():
    normalize = Normalize()
    both = nn.ModuleList([normalize, MomentumEncoder(nn.Sequential(normalize, Net()))])
    with pytest.raises(RuntimeError, match="copied alone"):
        copy.deepcopy(both)[1].update()


@pytest.mark.parametrize("circle", [False, True])
@pytest.mark.parametrize("followed", FOLLOWED)
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.usefixtures("few_objects")
def test_a_copy_without_its_source_says_so(way, followed, circle):
    net, head = Net(), nn.Linear(2, 2)
    if circle:
        net.encoder.__dict__["itself"] = net  # freed by the collector alone
    average = MomentumEncoder(FOLLOWED[followed](net, head))
    other = COPIES[way](average)
    if circle:
        gc.collect()
    before = [each.clone() for each in tensors(other)]
    with pytest.raises(RuntimeError, match=r"copied alone; copy both in one call, or give update"):
        other.update()
    for a, b in zip(before, tensors(other), strict=True):
        assert torch.equal(a, b)
    other.update(FOLLOWED[followed](net, head))
    average.update()
