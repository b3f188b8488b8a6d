import itertools
from typing import Any

import pytest
import torch
from torch import nn

from sslops.training.models import Projector, build_encoder, encoder_names

SHAPES = [("cnn-tiny", 1, 8), ("cnn4", 1, 28), ("cnn4", 3, 32), ("resnet18", 3, 32)]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "arch,size,count,dim",
    [
        ("resnet18", 224, 11_176_512, 512),
        ("resnet50", 224, 23_508_032, 2048),
        # 7x7 becomes 3x3 in the first of 64 filters over 3 channels
        ("resnet18", 32, 11_176_512 - 64 * 3 * (49 - 9), 512),
        ("resnet50", 64, 23_508_032 - 64 * 3 * (49 - 9), 2048),
    ],
)
def test_resnets_have_the_published_parameter_counts(
    arch: str, size: int, count: int, dim: int
) -> None:
    encoder = build_encoder(arch, 3, size)
    assert parameters(encoder) == count
    assert encoder.dim == dim


def test_cnn_parameter_counts() -> None:
    w, channels = 8, 3
    widths = [channels, w, 2 * w, 4 * w, 8 * w]
    expected = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    assert parameters(build_encoder("cnn4", channels, 32, width=w)) == expected
    expected = sum(9 * a * b + 2 * b for a, b in itertools.pairwise([1, w, 2 * w, 4 * w]))
    assert parameters(build_encoder("cnn-tiny", 1, 8, width=w)) == expected


@pytest.mark.parametrize("arch,channels,size", SHAPES)
@pytest.mark.parametrize("pool", [1, 2])
def test_features_have_the_stated_width(arch: str, channels: int, size: int, pool: int) -> None:
    options: dict[str, Any] = {} if arch.startswith("resnet") else {"pool": pool}
    encoder = build_encoder(arch, channels, size, width=4, **options)
    features = encoder(torch.rand(2, channels, size, size))
    assert features.shape == (2, encoder.dim)
    assert encoder.dim % (4 * pool**2 if options else 4) == 0


@pytest.mark.parametrize("size,side", [(32, 32), (64, 64), (65, 17), (224, 56)])
def test_the_stem_follows_the_image_size(size: int, side: int) -> None:
    encoder = build_encoder("resnet18", 3, size, width=8)
    assert encoder.get_submodule("stem")(torch.rand(1, 3, size, size)).shape[2:] == (side, side)


@pytest.mark.parametrize("arch,channels,size", SHAPES)
def test_channels_last_gives_the_same_numbers(arch: str, channels: int, size: int) -> None:
    encoder = build_encoder(arch, channels, size, width=8, seed=1)
    images = torch.rand(16, channels, size, size)
    grads, features = [], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        copy = build_encoder(arch, channels, size, width=8, seed=1)
        copy.load_state_dict(encoder.state_dict())
        copy.to(memory_format=memory_format)
        features.append(copy(images.contiguous(memory_format=memory_format)))
        features[-1].square().mean().backward()
        grads.append([p.grad for p in copy.parameters()])
    torch.testing.assert_close(features[1], features[0], atol=1e-4, rtol=1e-4)
    for a, b in zip(*grads, strict=True):
        assert a is not None
        torch.testing.assert_close(b, a, atol=1e-4 * float(a.abs().max()) + 1e-6, rtol=1e-3)


def test_zero_init_makes_every_residual_block_the_identity() -> None:
    for zero_init in (True, False):
        encoder = build_encoder("resnet18", 3, 32, width=8, zero_init=zero_init)
        block = encoder.get_submodule("stages.1")  # same width and stride: no shortcut layers
        x = torch.rand(2, 8, 8, 8)
        assert torch.equal(block(x), x) == zero_init


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnet_weights_with_two_names_of_a_batch_norm_load(arch: str) -> None:
    """Saved when the last batch norm of a block was a member of its branch as well."""
    encoder = build_encoder(arch, 3, 32, width=8, zero_init=False)
    state = encoder.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)  # each has one name
    older = dict(state)
    for name, value in state.items():
        block, found, rest = name.partition(".last_bn.")
        if found:
            last = 2 if arch == "resnet18" else 3
            older[f"{block}.branch.{last}.{rest}"] = value
    assert len(older) > len(state)
    fresh = build_encoder(arch, 3, 32, width=8)
    fresh.load_state_dict(older)
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())
    wrapped = nn.ModuleDict({"encoder": build_encoder(arch, 3, 32, width=8)})
    wrapped.load_state_dict({f"encoder.{name}": value for name, value in older.items()})


def test_weights_follow_the_seed() -> None:
    def weights(**options: int) -> torch.Tensor:
        return torch.cat(
            [p.flatten() for p in build_encoder("cnn4", 3, 32, **options).parameters()]
        )

    before = torch.get_rng_state()
    assert torch.equal(weights(seed=3), weights(seed=3))
    assert not torch.equal(weights(seed=3), weights(seed=4))
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is not touched
    torch.manual_seed(5)
    first = weights()
    torch.manual_seed(5)
    assert torch.equal(weights(), first)


def test_convolutions_keep_the_scale_of_their_input() -> None:
    encoder = build_encoder("cnn4", 3, 32, width=64, seed=0)
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * 9
            assert float(layer.weight.detach().std()) == pytest.approx(
                (2 / fan_out) ** 0.5, rel=0.1
            )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projector_has_bn_in_every_layer_and_no_bias_before_it(layers: int) -> None:
    projector = Projector(12, 16, 5, layers)
    kinds = [type(m) for m in projector.modules() if isinstance(m, nn.Linear | nn.BatchNorm1d)]
    assert kinds == [nn.Linear, nn.BatchNorm1d] * layers
    assert all(m.bias is None for m in projector.modules() if isinstance(m, nn.Linear))
    widths = [12, *[16] * (layers - 1), 5]
    expected = sum(a * b + 2 * b for a, b in itertools.pairwise(widths))
    assert parameters(projector) == expected
    z = projector(torch.randn(64, 12))
    assert z.shape == (64, 5)
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)


def test_standardisation_is_inside_and_fixed() -> None:
    encoder = build_encoder("cnn4", 3, 32)
    standardise = encoder.get_submodule("standardise")
    images = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((images.movedim(1, -1) - mean) / std).movedim(-1, 1)
    torch.testing.assert_close(standardise(images), expected)
    assert not list(standardise.parameters())


@pytest.mark.parametrize(
    "arch,channels,options,message",
    [
        ("vgg", 3, {}, "arch must be one of cnn-tiny, cnn4, .*resnet18, .*, got 'vgg'"),
        ("cnn4", 3, {"widht": 3}, "options of cnn4 are width, pool, got widht"),
        ("resnet18", 3, {"pool": 2}, "options of resnet18 are width, zero_init, got pool"),
        ("cnn4", 2, {}, "channels must be 1 or 3, got 2"),
    ],
)
def test_bad_arguments(arch: str, channels: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"build_encoder: {message}"):
        build_encoder(arch, channels, 32, **options)


def test_projector_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="Projector: layers must be at least 1, got 0"):
        Projector(4, 4, 4, layers=0)


def test_every_name_builds() -> None:
    for arch in encoder_names():
        assert isinstance(build_encoder(arch, 3, 32, width=12), nn.Module)
