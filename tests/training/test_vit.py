"""Vision transformer: published sizes, initialisation, positions, tokens, every size and format."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslops.training.config import TrainConfig
from sslops.training.methods import DataShape
from sslops.training.models import ViT, build_encoder
from sslops.training.storage.encoder import load_encoder, save_encoder

SMALL = {"width": 24, "depth": 2, "heads": 3}


def vit(channels=3, size=16, **options):
    return build_encoder("vit-tiny", channels, size, seed=0, **{**SMALL, "patch": 4, **options})


@pytest.mark.parametrize(
    ("arch", "width", "heads", "count"),
    [
        # DeiT's counts without classifier, less its 197 learnt positions
        ("vit-tiny", 192, 3, 5_524_416 - 197 * 192),
        ("vit-small", 384, 12, 21_665_664 - 197 * 384),
        ("vit-base", 768, 12, 85_798_656 - 197 * 768),
    ],
)
def test_published_sizes(arch, width, heads, count):
    with torch.device("meta"):
        encoder = ViT(3, 224, patch=16, width=width, depth=12, heads=heads)
    assert sum(p.numel() for p in encoder.parameters()) == count
    built = build_encoder(arch, 3, 224, depth=1)
    assert (built.dim, built.patch, built.grid) == (width, 16, (14, 14))
    assert built.blocks[0].attention.heads == heads


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (16, 2), (28, 4), (32, 4), (64, 4), (96, 16)])
def test_the_patch_follows_the_image_size(size, patch):
    assert build_encoder("vit-tiny", 1, size, width=12, depth=1).patch == patch


def test_positions_are_fixed_sines_and_cosines():
    encoder, width = vit(size=12), 24
    expected = torch.zeros(9, width, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            for i in range(6):
                w = 10_000 ** (-i / 6)
                values = [math.sin(column * w), math.cos(column * w)]
                values += [math.sin(row * w), math.cos(row * w)]
                expected[3 * row + column, i::6] = torch.tensor(values)
    torch.testing.assert_close(encoder.positions.double(), expected, atol=1e-6, rtol=0)
    assert "positions" in dict(encoder.named_buffers())
    assert "positions" not in dict(encoder.named_parameters())
    assert len({tuple(row) for row in encoder.positions.tolist()}) == 9
    black = encoder.patches(torch.zeros(1, 3, 12, 12)) - encoder.patches(torch.zeros(1, 3, 4, 4))
    first = encoder.positions - encoder.positions[4]  # a single patch lies in the middle
    torch.testing.assert_close(black[0], first, atol=1e-5, rtol=0)


def test_the_class_token_has_no_position():
    encoder, seen = vit(), {}
    encoder.blocks.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    patches = encoder.patches(torch.rand(2, 3, 16, 16))
    encoder.encode(patches)
    assert torch.equal(seen["x"][:, 0], encoder.class_token.expand(2, -1))
    assert torch.equal(seen["x"][:, 1:], patches)


def test_initialisation():
    encoder = vit(width=96, heads=3, depth=2)
    D = 96

    def is_uniform(weight, bound):
        largest = float(weight.detach().abs().max())
        assert 0.98 * bound < largest <= bound
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)

    for block in encoder.blocks:
        for part in block.attention.qkv.weight.chunk(3):  # three layers D -> D, not one D -> 3 D
            is_uniform(part, math.sqrt(6 / (D + D)))
        is_uniform(block.attention.out.weight, math.sqrt(6 / (D + D)))
        is_uniform(block.mlp[0].weight, math.sqrt(6 / (D + 4 * D)))
        is_uniform(block.mlp[2].weight, math.sqrt(6 / (4 * D + D)))
    is_uniform(encoder.patch_projection.weight, math.sqrt(6 / (3 * 4 * 4 + D)))
    assert float(encoder.class_token.detach().std()) == pytest.approx(1e-6, rel=0.3)
    biases = [layer.bias for layer in encoder.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(biases) == 1 + 4 * 2
    assert not any(bias.detach().any() for bias in biases)


def test_blocks_are_pre_norm_and_the_last_norm_is_there():
    encoder = vit()
    for block in encoder.blocks:
        for layer in (block.attention.out, block.mlp[2]):
            nn.init.zeros_(layer.weight)
    patches = 5 + 3 * torch.randn(2, 16, 24)
    tokens = encoder.encode(patches)  # residual branches add nothing: only the norm is left
    torch.testing.assert_close(tokens[:, 1:], F.layer_norm(patches, (24,), eps=1e-6))


def plain(encoder, x):
    """Features and last attention, written out in float64."""
    state = {name: value.double() for name, value in encoder.state_dict().items()}
    x = (x.double() - encoder.standardise.mean) / encoder.standardise.std
    p, D, heads = encoder.patch, encoder.width, encoder.blocks[0].attention.heads
    cut = x.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = cut @ state["patch_projection.weight"].flatten(1).T + state["patch_projection.bias"]
    x = x + encoder.positions
    x = torch.cat([state["class_token"].expand(len(x), 1, D), x], 1)

    def norm(x, name):
        return F.layer_norm(x, (D,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for i in range(len(encoder.blocks)):
        name = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{name}.attention_norm"), f"{name}.attention.qkv").chunk(3, 2)
        mixed, weights = torch.zeros_like(q), []
        for head in range(heads):
            part = slice(head * D // heads, (head + 1) * D // heads)
            scores = q[..., part] @ k[..., part].mT / math.sqrt(D / heads)
            weights.append(scores.softmax(2))
            mixed[..., part] = weights[-1] @ v[..., part]
        x = x + linear(mixed, f"{name}.attention.out")
        hidden = F.gelu(linear(norm(x, f"{name}.mlp_norm"), f"{name}.mlp.0"))
        x = x + linear(hidden, f"{name}.mlp.2")
    return norm(x, "norm"), torch.stack(weights, 1)


def randomise(encoder):
    torch.manual_seed(1)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def test_against_the_formulas():
    encoder, images = randomise(vit()), torch.rand(3, 3, 16, 16)
    tokens, attention = plain(encoder, images)
    torch.testing.assert_close(encoder(images).double(), tokens[:, 0], atol=2e-4, rtol=1e-4)
    maps = encoder.attention(images)
    assert maps.shape == (3, 3, 4, 4)
    torch.testing.assert_close(maps.flatten(2).double(), attention[:, :, 0, 1:], atol=1e-4, rtol=0)
    assert not maps.requires_grad


@pytest.mark.parametrize("pool", [None, 1, 2])
def test_features(pool):
    encoder, images = randomise(vit(pool=pool)), torch.rand(2, 3, 16, 16)
    tokens = encoder.encode(encoder.patches(images))
    if pool is None:
        expected = tokens[:, 0]
    else:
        cells = tokens[:, 1:].mT.reshape(2, 24, pool, 4 // pool, pool, 4 // pool)
        expected = cells.mean((3, 5)).flatten(1)
    assert encoder.dim == expected.shape[1]
    torch.testing.assert_close(encoder(images), expected)


def test_some_patches_in_any_order():
    encoder = randomise(vit())
    patches = encoder.patches(torch.rand(2, 3, 16, 16))
    order = torch.randperm(16)[:5]
    kept = encoder.encode(patches[:, order])
    back = encoder.encode(patches[:, order.sort().values])
    assert kept.shape == (2, 6, 24)
    torch.testing.assert_close(kept[:, 0], back[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept[:, 1:][:, order.argsort()], back[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (32, 32), (8, 20)])
def test_any_multiple_of_the_patch_can_be_encoded(height, width):
    encoder = vit()
    images = torch.rand(2, 3, height, width)
    assert encoder(images).shape == (2, 24)
    assert encoder.attention(images).shape == (2, 3, height // 4, width // 4)


def test_other_sizes_are_laid_over_the_grid():
    encoder = vit(size=16)
    with torch.no_grad():
        encoder.patch_projection.weight.zero_()
    half = encoder.patches(torch.rand(1, 3, 8, 8))[0]
    expected = []
    for row, column in ((0.5, 0.5), (0.5, 2.5), (2.5, 0.5), (2.5, 2.5)):
        w = 10_000 ** -(torch.arange(6) / 6)
        both = [(column * w).sin(), (column * w).cos(), (row * w).sin(), (row * w).cos()]
        expected.append(torch.cat(both))
    torch.testing.assert_close(half, torch.stack(expected))


def test_channels_last_gives_the_same_numbers():
    images = torch.rand(4, 3, 16, 16)
    plain, last = randomise(vit()), randomise(vit()).to(memory_format=torch.channels_last)
    out = [plain(images), last(images.contiguous(memory_format=torch.channels_last))]
    torch.testing.assert_close(out[1], out[0], atol=1e-5, rtol=1e-5)
    for features in out:
        features.square().mean().backward()
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_stays_near():
    encoder, images = vit(), torch.rand(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(images)
        features.float().square().mean().backward()
    torch.testing.assert_close(features.float(), encoder(images), atol=0.05, rtol=0.05)
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.slow
def test_compiles_without_graph_break():
    encoder, images = randomise(vit()), torch.rand(4, 3, 16, 16)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), encoder(images))


def test_an_export_rebuilds_it(tmp_path):
    options = {"arch": "vit-tiny", "width": 24, "depth": 2, "heads": 3, "patch": 7, "pool": 2}
    config, shape = TrainConfig(**options), DataShape(1, 28, 10)
    encoder = randomise(build_encoder("vit-tiny", 1, 28, **config.encoder_options()))
    path = save_encoder(tmp_path / "encoder.safetensors", encoder, config, shape)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(load_encoder(path)(images), encoder(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, "ViT: image sides must be multiples of the patch, 4 pixels, got 30 x 30"),
        ({"width": 20}, "ViT: width must be a multiple of 4 and of the 3 heads, got 20"),
        ({"width": 18}, "ViT: width must be a multiple of 4 and of the 3 heads, got 18"),
        ({"channels": 2}, "build_encoder: channels must be 1 or 3, got 2"),
        ({"zero_init": True}, "options of vit-tiny are width, depth, heads, patch, pool, got zero"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        vit(**options)


def test_an_image_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"multiples of the patch, 4 pixels, got 16 x 18"):
        vit()(torch.rand(1, 3, 16, 18))
