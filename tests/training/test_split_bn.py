"""SplitBN and shuffle-BN: what batch norm may see, and that it gives nothing away."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslops.training.data import load
from sslops.training.methods.base import DataShape
from sslops.training.methods.moco import MoCo, MoCoConfig
from sslops.training.models import build_encoder
from sslops.training.models.shuffle_bn import encode_shuffled
from sslops.training.models.split_bn import SplitBatchNorm2d, groups_here, split_batch_norm


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_group_is_normalised_by_itself(groups):
    layer, plain = SplitBatchNorm2d(3, groups), nn.BatchNorm2d(3)
    for each in (layer, plain):
        nn.init.uniform_(each.weight, generator=torch.Generator().manual_seed(1))
        each.bias.data.fill_(0.3)
    x = torch.randn(8, 3, 4, 4)
    parts = [copy.deepcopy(plain) for _ in range(groups)]
    expected = torch.cat([bn(part) for bn, part in zip(parts, x.chunk(groups), strict=True)])
    torch.testing.assert_close(layer(x), expected)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(bn, name) for bn in parts]).mean(0)
        torch.testing.assert_close(getattr(layer, name), mean)
    assert layer.num_batches_tracked == 1


def test_evaluates_like_a_plain_one():
    layer, plain = SplitBatchNorm2d(3, 4).eval(), nn.BatchNorm2d(3).eval()
    layer(torch.randn(8, 3, 2, 2))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 2, 2)  # no multiple of the groups
    assert torch.equal(layer(x), plain(x))


def test_gradient_is_that_of_the_parts():
    layer = SplitBatchNorm2d(2, 2).double()
    x = torch.randn(4, 2, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


def test_conversion_keeps_tensors_names_and_mode():
    encoder = build_encoder("resnet18", 3, 32, width=8).eval()
    before = dict(encoder.state_dict(keep_vars=True))
    assert split_batch_norm(encoder, 4) is encoder
    after = encoder.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in after)
    layers = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 20
    assert all(type(m) is SplitBatchNorm2d and m.groups == 4 for m in layers)
    assert not any(m.training for m in layers)
    alone = split_batch_norm(nn.BatchNorm2d(3, eps=0.5, momentum=0.3), 2)
    assert (alone.eps, alone.momentum, alone.groups) == (0.5, 0.3, 2)
    assert "groups=2" in repr(alone)


def test_refused():
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        SplitBatchNorm2d(3, 0)
    with pytest.raises(ValueError, match="multiple of 4 groups, got 6 images"):
        SplitBatchNorm2d(3, 4)(torch.zeros(6, 3, 2, 2))
    with pytest.raises(ValueError, match=re.escape("divide the batch of 64, got 0")):
        groups_here(0, 64, 1)
    with pytest.raises(ValueError, match="divide the batch of 60, got 8"):
        groups_here(8, 60, 1)
    assert [groups_here(8, 64, n) for n in (1, 2, 8, 16)] == [8, 4, 1, 1]


def test_shuffling_alone_changes_nothing_and_repeats():
    """A network without batch norm; and one whose answer depends on an image's place."""
    images = torch.randn(12, 3)
    assert torch.equal(encode_shuffled(nn.Identity(), images, 5), images)

    def place(x):
        return torch.arange(len(x), dtype=torch.float)[:, None]

    places = encode_shuffled(place, images, 5).flatten()
    assert sorted(places.tolist()) == list(range(12))
    assert places.tolist() != list(range(12))
    assert torch.equal(places, encode_shuffled(place, images, 5).flatten())
    assert not torch.equal(places, encode_shuffled(place, images, 6).flatten())


@torch.no_grad()
def batch_told_by_batch_norm(splits: int, shuffled: bool, batch: int = 32, batches: int = 64):
    """How often what batch norm does to one image tells which batch its key comes from.

    One image is query and key in every batch. Less its mean over the batches, what is left of its
    embedding is the mark of the other images, and only batch norm can have made it.
    """
    config = MoCoConfig(width=8, proj_hidden=32, proj_dim=16, queue=64, batch=batch,
                        bn_splits=splits)  # fmt: skip
    method = MoCo(config, DataShape(1, 8, 10)).train()
    digits = load("digits").train.images.float() / 255
    queries, keys = [], []
    for step in range(batches):
        x = digits[torch.randint(1, len(digits), (batch,))] * torch.rand(batch, 1, 1, 1)
        x[0] = digits[0]
        method.shuffle_seed = step
        q, k = method.embed(torch.stack([x, x]))
        if not shuffled:
            k = F.normalize(method.key_encoder(x), dim=1)
        queries.append(q[0])
        keys.append(k[0])
    queries, keys = (torch.stack(z) for z in (queries, keys))
    marks = (queries - queries.mean(0)), (keys - keys.mean(0))
    similarities = F.normalize(marks[0], dim=1) @ F.normalize(marks[1], dim=1).T
    return (similarities.argmax(1) == torch.arange(batches)).float().mean().item()


@pytest.mark.slow
def test_batch_norm_leaks_unless_it_is_split_and_the_keys_are_shuffled():
    """Chance is 1 in 64."""
    assert batch_told_by_batch_norm(1, shuffled=False) > 0.9
    assert batch_told_by_batch_norm(1, shuffled=True) > 0.9  # still the same images together
    assert batch_told_by_batch_norm(8, shuffled=False) > 0.9
    assert batch_told_by_batch_norm(8, shuffled=True) < 0.15


def test_a_group_of_one_value_a_channel_is_refused():
    layer = SplitBatchNorm2d(3, 4)
    assert layer(torch.randn(4, 3, 2, 1)).isfinite().all()  # one image, and two places
    with pytest.raises(ValueError, match=r"each of 4 groups needs 2 values .*, got one image of 1"):
        layer(torch.randn(4, 3, 1, 1))
    assert layer.eval()(torch.randn(4, 3, 1, 1)).isfinite().all()
