"""Features and probes of every stage, and the decoder that goes the way back."""

import pytest
import torch
from torch import nn

from sslops.training.data import Dataset, Split
from sslops.training.evaluate import evaluate, stage_table
from sslops.training.evaluate.features import extract, extract_stages
from sslops.training.evaluate.stages import MOST, measure_stages
from sslops.training.models import Decoder, build_encoder
from sslops.training.report.summary import summarise, summary_table

ENCODERS = [
    ("cnn-tiny", {"width": 4}, 3),
    ("cnn4", {"width": 4, "pool": 2}, 4),
    ("resnet18", {"width": 8}, 5),
    ("resnet50", {"width": 8}, 5),
    ("cpc-patches", {"width": 4}, 1),
    ("frame-cnn", {"width": 4}, 5),
    ("vit-tiny", {"width": 12, "depth": 3, "pool": 2}, 3),
]


def images(n, seed=0, side=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("arch", "options", "count"), ENCODERS)
def test_the_last_map_is_what_features_are_pooled_from(arch, options, count):
    encoder = build_encoder(arch, 3, 16, seed=0, **options).eval()
    maps = encoder.feature_maps(images(2).float() / 255)
    assert len(maps) == len(encoder.stage_modules()) == count
    assert all(each.ndim == 4 and len(each) == 2 for each in maps)
    side = options.get("pool", 1)
    pooled = nn.functional.adaptive_avg_pool2d(maps[-1], side).flatten(1)
    torch.testing.assert_close(pooled, encoder(images(2).float() / 255), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("arch", "options", "count"), ENCODERS)
def test_stage_modules_hold_the_weights_of_their_stage(arch, options, count):
    """Weights of a stage move its map and those after it, and none before."""
    encoder = build_encoder(arch, 3, 16, seed=0, **options).eval()
    x = images(2).float() / 255
    before = encoder.feature_maps(x)
    middle = count // 2
    with torch.no_grad():
        for param in encoder.stage_modules()[middle].parameters():
            if param.ndim > 1:
                param.mul_(1.5).add_(0.1)
    after = encoder.feature_maps(x)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [i < middle for i in range(count)]


def test_stages_are_pooled_to_a_comparable_size():
    encoder = build_encoder("cnn4", 3, 16, width=8, seed=0)
    x = images(7)
    features = extract_stages(encoder, x, most=128, batch=3)
    # Maps of 8 x 8 x 8, 16 x 8 x 8, 32 x 4 x 4 and 64 x 2 x 2, cut where that can be.
    assert [tuple(each.shape) for each in features] == [(7, 128), (7, 64), (7, 128), (7, 64)]
    torch.testing.assert_close(features[3], extract(encoder, x))
    few = extract_stages(encoder, x, most=10)
    assert [each.shape[1] for each in few] == [8, 16, 32, 64]


def labelled(seed, n=60):
    """The class is which half is brighter."""
    y = torch.arange(n) % 2
    x = images(n, seed) // 4
    x[y == 0, :, :, :8] += 60
    x[y == 1, :, :, 8:] += 60
    return Split(x, y)


def dataset():
    return Dataset("halves", labelled(0), labelled(1), ("left", "right"), "none", "generated")


def test_a_stage_that_keeps_places_knows_the_side_and_one_that_forgets_does_not():
    class Two(nn.Module):
        dim = 3

        def feature_maps(self, x):
            return [x, x.mean((2, 3), keepdim=True)]

        def forward(self, x):
            return x.mean((2, 3))

    data = dataset()
    found = measure_stages(Two(), data.train, data.test, classes=2, seed=0)
    first, second = found["stages"]
    assert first["linear"] == 1.0
    assert second["linear"] < 0.8
    assert found["best_stage"] == 1
    assert (found["best_stage_linear"], found["last_stage_linear"]) == (1.0, second["linear"])
    assert (first["dim"], second["dim"]) == (3 * 16 * 16, 3)


def test_evaluate_measures_stages_where_there_are_any():
    data = dataset()
    arms = {"net": build_encoder("cnn-tiny", 3, 16, width=4, seed=0), "pixels": None}
    result = evaluate(arms, data, seed=0, labels_per_class=(1,), draws=1)
    assert [each["stage"] for each in result["net"]["stages"]] == [1, 2, 3]
    assert "stages" not in result["pixels"]
    assert "stages" in result["protocol"]
    text = stage_table(result)
    assert "stage 3" in text
    assert "pixels" not in text
    without = evaluate(arms, data, seed=0, labels_per_class=(1,), draws=1, stages=False)
    assert "stages" not in without["net"]
    assert stage_table(without) == ""


def test_tables_of_several_seeds_show_stages_and_no_factors():
    arm = {"dim": 3, "linear": 0.5, "few": {"1": {"mean": 0.25, "sd": 0.0}}}
    arm |= {"stages": [{"stage": 1, "linear": 0.75}, {"stage": 2, "linear": 0.5}]}
    runs = [{"net": arm, "cost": {}, "pretext": {"accuracy": value}} for value in (0.5, 0.7)]
    text = summary_table(summarise(runs))
    assert "stage 1     stage 2" in text
    assert "75.0 ± 0.0" in text
    assert "accuracy" in text
    assert "60.0 ± 14.1" in text  # in percent
    assert "median" not in text


def test_deep_networks_are_probed_at_some_stages_and_the_last():
    encoder = build_encoder("vit-tiny", 3, 16, width=12, depth=13, seed=0)
    data = dataset()
    found = measure_stages(encoder, data.train, data.test, classes=2, seed=0)
    numbers = [each["stage"] for each in found["stages"]]
    assert len(numbers) == MOST
    assert numbers[-1] == 13
    assert numbers == sorted(set(numbers))


def test_decoder_doubles_the_side():
    decoder = Decoder(32, 5, 2).eval()
    assert decoder(torch.zeros(2, 32, 4, 3)).shape == (2, 5, 16, 12)
    assert Decoder(32, 5, 0)(torch.zeros(2, 32, 4, 4)).shape == (2, 5, 4, 4)
    with pytest.raises(ValueError, match="doublings must not be negative, got -1"):
        Decoder(32, 5, -1)
