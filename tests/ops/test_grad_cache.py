"""GradCache: the gradients of the big batch, with the activations of a micro-batch."""

import copy
from collections import OrderedDict, UserDict, defaultdict
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslops import ClipLoss, GradCache, NTXentLoss, clip_loss, nt_xent
from sslops._tree import map_tensors, tensors_of

B, D = 24, 5


def relative(actual, expected):
    """Distance of two lists of tensors, in the norm of the second."""
    a, b = (torch.cat([t.double().flatten() for t in each]) for each in (actual, expected))
    return float((a - b).norm() / b.norm())


def grads(module):
    return [p.grad.clone() for p in module.parameters()]


def mlp(*layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(7, 16), *layers, nn.ReLU(), nn.Linear(16, D))


def pair_loss(z1, z2):
    return nt_xent(torch.stack([z1, z2]), temperature=0.5)


def with_graph(encoder, inputs, size):
    """Embeddings of the micro-batches, one after the other, as one graph: what is meant."""
    return [torch.cat([encoder(part) for part in x.split(size)]) for x in inputs]


@pytest.mark.parametrize("size", [1, 7, 8, 24, 100])
def test_gradients_are_those_of_the_big_batch(size):
    encoder, inputs = mlp(), torch.randn(2, B, 7)
    loss = pair_loss(*(encoder(x) for x in inputs))
    loss.backward()
    expected = grads(encoder)
    encoder.zero_grad()
    cached = GradCache(encoder, pair_loss, size)(*inputs)
    cached.backward()
    assert relative([cached.detach()], [loss.detach()]) < 1e-6
    assert relative(grads(encoder), expected) < 1e-6


def test_dropout_is_that_of_the_first_pass():
    encoder, inputs = mlp(nn.Dropout(0.5)), torch.randn(2, B, 7)
    torch.manual_seed(3)
    pair_loss(*with_graph(encoder, inputs, 5)).backward()
    after, expected = torch.rand(3), grads(encoder)
    encoder.zero_grad()
    torch.manual_seed(3)
    GradCache(encoder, pair_loss, 5)(*inputs).backward()
    assert torch.equal(torch.rand(3), after)  # the second pass has drawn nothing of its own
    assert relative(grads(encoder), expected) < 1e-6


class Augmented(nn.Module):
    """Draws its augmentation itself, from torch's generator and from its own."""

    def __init__(self):
        super().__init__()
        self.linear, self.generator = nn.Linear(7, D), torch.Generator().manual_seed(5)

    def forward(self, x):
        noise = torch.randn(x.shape, generator=self.generator)
        return self.linear((x + noise) * torch.rand(len(x), 1))


def test_augmentation_inside_the_encoder_is_drawn_again():
    torch.manual_seed(1)
    encoder, inputs = Augmented(), torch.randn(2, B, 7)
    start = encoder.generator.get_state()
    torch.manual_seed(3)
    pair_loss(*with_graph(encoder, inputs, 9)).backward()
    after, expected = encoder.generator.get_state(), grads(encoder)
    encoder.zero_grad()
    encoder.generator.set_state(start)
    torch.manual_seed(3)
    GradCache(encoder, pair_loss, 9, generators=[encoder.generator])(*inputs).backward()
    assert torch.equal(encoder.generator.get_state(), after)
    assert relative(grads(encoder), expected) < 1e-6


class GroupedBN(nn.Module):
    """Batch norm written by hand whose statistics are those of `size` rows in a row."""

    def __init__(self, bn, size):
        super().__init__()
        self.bn, self.size = copy.deepcopy(bn), size
        self.mean, self.var = bn.running_mean.clone(), bn.running_var.clone()

    def forward(self, x):
        groups = []
        for part in x.split(self.size):
            mean, var = part.mean(0), part.var(0, unbiased=False)
            self.mean = 0.9 * self.mean + 0.1 * mean.detach()
            self.var = 0.9 * self.var + 0.1 * part.var(0).detach()
            groups.append((part - mean) / (var + self.bn.eps).sqrt())
        return torch.cat(groups) * self.bn.weight + self.bn.bias


def test_batch_norm_has_the_statistics_of_a_micro_batch_and_counts_once():
    inputs = torch.randn(2, B, 7)
    encoder = mlp(nn.BatchNorm1d(16))
    grouped = copy.deepcopy(encoder)
    grouped[1] = GroupedBN(encoder[1], 8)
    expected = pair_loss(*(grouped(x) for x in inputs))
    expected.backward()
    loss = GradCache(encoder, pair_loss, 8)(*inputs)
    assert int(encoder[1].num_batches_tracked) == 0  # the first pass leaves no trace
    loss.backward()
    assert relative([loss.detach()], [expected.detach()]) < 1e-6
    assert relative(grads(encoder), grads(grouped)) < 1e-6
    assert int(encoder[1].num_batches_tracked) == 6  # three micro-batches of two views
    torch.testing.assert_close(encoder[1].running_mean, grouped[1].mean)
    torch.testing.assert_close(encoder[1].running_var, grouped[1].var)


def test_frozen_batch_norm_gives_the_gradients_of_the_big_batch():
    inputs = torch.randn(2, B, 7)
    encoder = mlp(nn.BatchNorm1d(16))
    encoder(torch.randn(64, 7))  # statistics that are not those of the batch
    encoder.eval()
    pair_loss(*(encoder(x) for x in inputs)).backward()
    expected, mean = grads(encoder), encoder[1].running_mean.clone()
    encoder.zero_grad()
    GradCache(encoder, pair_loss, 8)(*inputs).backward()
    assert relative(grads(encoder), expected) < 1e-6
    assert torch.equal(encoder[1].running_mean, mean)


class Text(nn.Module):
    """Takes token ids and a mask by name, as text encoders do."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, D)

    def forward(self, ids, mask, scale=1.0):
        words = self.table(ids) * mask[..., None] * scale
        return self.head(words.sum(1) / mask.sum(1, keepdim=True))


def clip_inputs():
    torch.manual_seed(2)
    mask = (torch.arange(4) <= torch.randint(0, 4, (B, 1))).float()
    return torch.randn(B, 7), {"ids": torch.randint(0, 11, (B, 4)), "mask": mask, "scale": 2.0}


def test_two_encoders_and_a_learnt_temperature():
    image, text = clip_inputs()
    torch.manual_seed(1)
    encoders, loss = nn.ModuleList([mlp(), Text()]), ClipLoss()
    loss(encoders[0](image), encoders[1](**text)).backward()
    expected, scale = grads(encoders), loss.log_scale.grad.clone()
    encoders.zero_grad()
    loss.zero_grad()
    GradCache(list(encoders), loss, [7, 5])(image, text).backward()
    assert relative(grads(encoders), expected) < 1e-6
    torch.testing.assert_close(loss.log_scale.grad, scale)


class TwoHeads(nn.Module):
    """Several embeddings from a pair of inputs: trained, frozen, and whole numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(7, D), nn.Linear(7, D).requires_grad_(False)

    def forward(self, x, y):
        return self.a(x), {"key": self.b(y), "id": (x[:, 0] > 0).long()}


def test_tuples_of_inputs_and_nests_of_embeddings():
    x, y = torch.randn(2, B, 7)
    model, seen = TwoHeads(), []

    def loss(out):
        query, other = out
        seen.append((query.requires_grad, other["key"].requires_grad, other["id"].dtype))
        value = clip_loss(query, other["key"], 2.0)
        return {"loss": value, "features": query, "same": other["id"].float().mean()}

    plain = loss(model(x, y))
    plain["loss"].backward()
    expected = grads(model.a)
    model.zero_grad()
    out = GradCache(model, loss, 10)((x, y))
    out["loss"].backward()
    assert seen[0] == seen[1] == (True, False, torch.int64)  # no gradient for what has none
    assert relative(grads(model.a), expected) < 1e-6
    assert not out["features"].requires_grad
    assert torch.equal(out["same"], plain["same"])
    assert model.b.weight.grad is None


class Output(OrderedDict):
    """Items that are attributes too, as transformers' ModelOutput has them."""

    def __init__(self, rows=None, pooled=None):
        super().__init__(rows=rows, pooled=pooled)
        self.__dict__.update(self)


class Other(dict):
    """A dict that its items as keywords do not make."""

    def __init__(self, items):
        super().__init__(items)


@pytest.mark.parametrize("kind", [UserDict, MappingProxyType, dict, OrderedDict])
def test_mappings_of_inputs_and_of_embeddings(kind):
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(7, D)

        def forward(self, input_ids, scale):
            z = self.linear(input_ids) * scale
            return Output(rows=z[:, None], pooled=z)

    def loss(first, second):
        assert type(first) is type(second) is Output
        assert first.pooled is first["pooled"]
        return Output(rows=pair_loss(first.pooled, second.pooled), pooled=first.rows)

    encoder = Tower()
    inputs = [{"input_ids": torch.randn(B, 7), "scale": torch.rand(B, 1)} for _ in range(2)]
    value = loss(*(encoder(**each) for each in inputs)).rows
    value.backward()
    expected = grads(encoder)
    encoder.zero_grad()
    step = GradCache(encoder, lambda *z: {"loss": loss(*z).rows, "seen": loss(*z)}, 5)
    returned = step(*(kind(each) for each in inputs))
    assert returned["seen"].rows.shape == ()
    returned["loss"].backward()
    assert relative(grads(encoder), expected) < 1e-6


def test_a_mapping_that_cannot_be_made_again_is_a_dict():
    x = torch.ones(2)
    counted = defaultdict(list, {1: x})
    for value in (Other({"x": x}), UserDict(x=x), counted):
        found = map_tensors(value, torch.Tensor.neg)
        assert type(found) is dict
        assert list(found) == list(value)
    assert tensors_of((Other({"x": x}), [counted, 3])) == [x, x]


def test_stats_beside_the_loss():
    inputs = torch.randn(2, B, 7)
    loss_of = NTXentLoss(0.5, return_stats=True)
    loss, stats = GradCache(mlp(), lambda a, b: loss_of(torch.stack([a, b])), 6)(*inputs)
    assert loss.requires_grad
    assert stats.hit.shape == (2 * B,)


def test_scales_and_weights_reach_the_encoders():
    encoder, inputs = mlp(), torch.randn(2, B, 7)
    step = GradCache(encoder, pair_loss, 8)
    step(*inputs).backward()
    expected = grads(encoder)
    encoder.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(step(*inputs)).backward()
    assert relative([g / 1024 for g in grads(encoder)], expected) < 1e-6
    encoder.zero_grad()
    weight = torch.tensor(1.0, requires_grad=True)
    (step(*inputs) * weight / 4 + weight**2).backward()  # beside another loss
    assert relative([4 * g for g in grads(encoder)], expected) < 1e-6


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_that_of_the_first_pass(inside):
    encoder, inputs, seen = mlp(), torch.randn(2, B, 7), []
    encoder.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = GradCache(encoder, pair_loss, 8)(*inputs)
        if inside:
            loss.backward()
    if not inside:  # backward outside of autocast, as PyTorch recommends
        loss.backward()
    assert len(seen) == 12
    assert set(seen) == {torch.bfloat16}
    cached = grads(encoder)
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        pair_loss(*with_graph(encoder, inputs, 8)).backward()
    assert relative(cached, grads(encoder)) < 2e-2  # the order of bfloat16 sums


def test_an_outer_autocast_keeps_its_gradients():
    """A weight that was cast without graph must not be found again by a pass with one."""
    encoder, inputs = mlp(), torch.randn(2, B, 7)
    with torch.autocast("cpu", torch.bfloat16):
        GradCache(encoder, pair_loss, 8)(*inputs).backward()
        encoder.zero_grad()
        encoder(inputs[0]).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_without_grad_it_is_the_loss_alone():
    encoder, inputs = mlp(), torch.randn(2, B, 7)
    with torch.no_grad():
        loss = GradCache(encoder, pair_loss, 8)(*inputs)
        torch.testing.assert_close(loss, pair_loss(*(encoder(x) for x in inputs)))
    assert not loss.requires_grad


def test_gradients_add_up_over_losses():
    encoder, inputs = mlp(), torch.randn(2, B, 7)
    step = GradCache(encoder, pair_loss, 8)
    step(*inputs).backward()
    once = grads(encoder)
    first, second = step(*inputs), step(*inputs)  # two losses before their backward passes
    second.backward()
    first.backward()
    assert relative(grads(encoder), [3 * g for g in once]) < 1e-6


def test_functions_and_parts_of_ones_own():
    """Views [V, B, ...] are cut along their second dimension."""
    encoder, views = mlp(), torch.randn(2, B, 7)
    pair_loss(*(encoder(x) for x in views)).backward()
    expected = grads(encoder)
    encoder.zero_grad()
    step = GradCache(
        lambda v: encoder(v).transpose(0, 1),
        lambda z: pair_loss(*z.transpose(0, 1)),
        5,
        model=encoder,
        split=lambda v, size: list(v.split(size, 1)),
    )
    step(views).backward()
    assert relative(grads(encoder), expected) < 1e-6


def test_a_second_backward_and_changed_weights_are_refused():
    encoder, inputs = mlp(), torch.randn(2, B, 7)
    step = GradCache(encoder, pair_loss, 8)
    loss = step(*inputs)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="has one backward pass, got a second"):
        loss.backward()
    loss = step(*inputs)
    torch.optim.SGD(encoder.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match="weights must stay as they are"):
        loss.backward()


X = torch.zeros(4, 7)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "for all, got 1 and 1 for 0 inputs"),
        ((X[:0],), "at least one row, got 0"),
        (((X, X[:3]),), r"same number of rows, got \[3, 4\]"),
        ((3,), "must hold tensors with rows, got <class 'int'>"),
        ((torch.zeros(()),), "must hold tensors with rows"),
    ],
)
def test_wrong_inputs(inputs, message):
    with pytest.raises(ValueError, match=message):
        GradCache(mlp(), lambda *z: z[0].sum(), 2)(*inputs)


def test_wrong_settings():
    encoder = mlp()
    for size in (0, 2.5, "16", (8, 0), (8, 2.5), (), None):
        with pytest.raises(ValueError, match="GradCache: micro_batch must be an integer of at"):
            GradCache(encoder, pair_loss, size)
    with pytest.raises(ValueError, match="model must name the module behind encoders"):
        GradCache(lambda x: encoder(x), pair_loss, 2)
    with pytest.raises(ValueError, match="got 2 and 1 for 3 inputs"):
        GradCache([encoder, encoder], pair_loss, 2)(X, X, X)
    with pytest.raises(ValueError, match=r"must be a scalar tensor, got shape \(4, 5\)"):
        GradCache(encoder, lambda z: z, 2)(X)
    with pytest.raises(
        ValueError, match=r"one row for each row of its micro-batch, got \[10\] for"
    ):
        GradCache(nn.Sequential(encoder, nn.Flatten(0)), F.mse_loss, 2, model=None)(X[:, None])
