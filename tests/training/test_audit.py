"""The audit finds the shortcut that is in the data, and none where there is none."""

import io
import json

import pytest
import torch
from torch import nn

from sslops.training.augment.aberration import _magnified, add_aberration
from sslops.training.cli import main
from sslops.training.config import make_config
from sslops.training.data import Split
from sslops.training.distributed.process import World
from sslops.training.experiments.audit import audit, audit_splits, audit_table, guards_of, verdicts
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS
from sslops.training.methods.base import DataShape
from sslops.training.methods.relative_patch import RelativePatchConfig

pytestmark = pytest.mark.slow

TINY = {"arch": "cnn-tiny", "width": 8, "hidden": 32, "batch": 64, "lr": 5e-3, "knn_every": 0}
GUARDS = {
    "all guards on",
    "without gap",
    "without jitter",
    "without colour drop",
    "without tile normalisation",
    "all guards off",
}


def quiet():
    return Console(io.StringIO(), quiet=True)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def row(**changes):
    numbers = {"pretext": 0.3, "probe": 0.5, "position": 0.2, "position_chance": 0.125}
    return {**numbers, "guarded": 0.3, "stages": [0.4, 0.5], "best_stage": 2, **changes}


def sentence(**changes):
    rows = {"untrained": row(), "all guards on": row(), "without gap": row(**changes)}
    return verdicts({"guards": {"gap": {"gap": 0.0}}, "settings": rows})["gap"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pretext": 0.5, "probe": 0.48}, "closes a shortcut (off: task +20.0 points, probe -2.0"),
        ({"pretext": 0.5}, "closes a shortcut (off: task +20.0 points, probe +0.0 points): the"),
        ({"pretext": 0.5, "guarded": 0.5}, "closes a shortcut (off: task +20.0 points, probe +0.0"),
        ({"pretext": 0.5, "guarded": 0.2}, "it falls from 50.0% to 20.0% when it is back"),
        ({"pretext": 0.5, "probe": 0.52}, "no shortcut: what makes the task easier makes the"),
        ({"pretext": 0.9, "probe": 0.52, "guarded": 0.1}, "closes a shortcut (off: task +60.0"),
        ({"pretext": 0.9, "probe": 0.52, "guarded": 0.1}, "in spite of the features"),
        ({"pretext": 0.31, "probe": 0.47}, "nothing to close was found, but features gain by it"),
        ({"pretext": 0.25, "probe": 0.52}, "nothing to close was found (off: task -5.0 points"),
        (
            {"position": 0.4},
            "a tile's place is read better without it, 40.0% against 20.0% (chance",
        ),
    ],
)
def test_verdicts_in_words(changes, expected):
    assert expected in sentence(**changes)


def test_verdict_names_the_lens():
    on = row(pretext_without_lens=0.3, position_without_lens=0.2)
    off = row(pretext=0.9, probe=0.55, pretext_without_lens=0.34)
    off |= {"position": 0.35, "position_without_lens": 0.22}
    other = row(pretext=0.35, pretext_without_lens=0.35, position_without_lens=0.2)
    rows = {"all guards on": on, "without colour drop": off, "without gap": other}
    found = verdicts({"guards": {"colour drop": {}, "gap": {}}, "settings": rows})
    assert found["colour drop"] == (
        "closes a shortcut, chromatic aberration (off: task +60.0 points, probe +5.0 points): the"
        " network trained without it falls from 90.0% to 34.0% on images without aberration; that"
        " features are better without it is the colours' doing; a tile's place is read better"
        " without it, 35.0% against 20.0% (chance 12.5%), and 22.0% on images without aberration"
    )
    assert found["gap"].startswith("closes a shortcut (off: task +5.0 points, probe +0.0")
    assert "aberration" not in found["gap"]


def test_table_has_a_row_a_setting():
    rows = {"untrained": {k: v for k, v in row().items() if k not in ("pretext", "guarded")}}
    rows |= {"all guards on": row(), "without gap": row(pretext=0.612)}
    found = {"settings": rows, "verdicts": {"gap": "closes"}}
    lines = audit_table(found).splitlines()
    assert lines[0].split() == "task guarded probe stage 1 stage 2 place".split()
    assert lines[4].split() == ["without", "gap", "61.2", "30.0", "50.0", "40.0", "50.0", "20.0"]
    assert lines[2].split()[:2] == ["untrained", "-"]
    assert lines[-1] == "gap: closes"


# The lens


def test_no_strength_changes_nothing():
    slope = torch.arange(24).byte() * 5
    images = (slope[:, None] + slope).expand(2, 3, 24, 24).contiguous()
    difference = (add_aberration(images, 0.0).int() - images.int()).abs()
    assert difference[..., 2:-2, 2:-2].max() <= 1


def test_red_grows_and_blue_shrinks_about_the_middle():
    size, strength = 64, 0.1
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    image[:, :, 31:33, 50:52] = 255  # 19 right of the middle
    out = add_aberration(image, strength).float()
    columns = torch.arange(size).float() + 0.5 - size / 2
    centre = (out.sum(2) * columns).sum(2)[0] / out.sum((2, 3))[0]
    expected = torch.tensor([19 * 1.1, 19.0, 19 * 0.9])
    torch.testing.assert_close(centre, expected, atol=0.1, rtol=0)


def test_a_channel_by_itself_hardly_tells_the_radius():
    """Its edges are about as steep everywhere, which those of a plain interpolation are not."""
    noise = torch.randint(0, 256, (400, 3, 34, 34), dtype=torch.uint8, generator=generator(0))
    images = nn.functional.avg_pool2d(noise.float(), 3, 1).sub(128).mul(3).add(128)
    images = images.clamp(0, 255).byte()

    def unevenness(x):
        energy = (x[..., 1:] - x[..., :-1]).square().mean((0, 1, 2))[2:-2]
        return (energy.max() - energy.min()) / energy.mean()

    red = add_aberration(images, 0.02)[:, :1].float()
    plain = _magnified(images[:, :1].float(), 1.02)
    assert unevenness(red) < 0.15
    assert unevenness(plain) > 0.4


@pytest.mark.parametrize(
    ("images", "strength", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 0.1, r"got \(2, 1, 8, 8\) torch.uint8"),
        (torch.zeros(2, 3, 8, 8), 0.1, r"got \(2, 3, 8, 8\) torch.float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.5, r"strength must be in \[0, 0.5\)"),
    ],
)
def test_refuses_to_change(images, strength, message):
    with pytest.raises(ValueError, match=message):
        add_aberration(images, strength)


# Whole audits


def run(images, labels, lens=0.0, **changes):
    config = RelativePatchConfig(**{**TINY, "steps": 60, **changes})
    held = len(images) // 4
    train = Split(images[held:], labels[held:])
    validation = Split(images[:held], labels[:held])
    shape = DataShape(images.shape[1], images.shape[2], 2)
    world = World(0, 1, torch.device("cpu"))
    return audit_splits("relative-patch", config, train, validation, shape, world, quiet(),
                        lens=lens)  # fmt: skip


def test_finds_light_as_the_shortcut():
    """Noise on a slope: the mean of a patch tells its place, and nothing else does."""
    N, size = 640, 24
    slope = torch.arange(size).float() / size
    labels = torch.arange(N) % 2
    images = (
        torch.randn(N, 1, size, size, generator=generator(0)) / 4 * (1 + labels.view(-1, 1, 1, 1))
    )
    images = (images + 2 * slope[:, None] + slope - 1.5).mul(40).add(128).clamp(0, 255).byte()
    found = run(images, labels)
    rows = found["settings"]
    assert set(rows) == {"untrained", *GUARDS}
    assert rows["all guards on"]["pretext"] < 0.2
    assert rows["without tile normalisation"]["pretext"] > 0.4
    assert rows["without tile normalisation"]["guarded"] < 0.2
    assert rows["without tile normalisation"]["position"] > rows["all guards on"]["position"] + 0.2
    assert found["verdicts"]["tile normalisation"].startswith("closes a shortcut")
    for innocent in ("gap", "jitter", "colour drop"):
        assert found["verdicts"][innocent].startswith("nothing to close")
    json.dumps(found)


def test_reads_the_place_through_the_lens_only_in_colour():
    """Smooth grey noise, magnified more in red than in blue: nothing else tells the place."""
    N = 320
    noise = torch.rand(N, 1, 40, 40, generator=generator(0)).mul(255)
    grey = nn.functional.avg_pool2d(noise, 5, 1).sub(128).mul(5).add(128).clamp(0, 255)
    images = grey.byte().expand(-1, 3, -1, -1).contiguous()
    found = run(images, torch.arange(N) % 2, lens=0.06, steps=40)
    rows = found["settings"]
    on, off = rows["all guards on"], rows["without colour drop"]
    assert on["pretext"] < 0.2
    assert on["position"] < 0.2
    assert off["pretext"] > 0.5
    assert off["guarded"] < 0.2
    assert off["position"] > 0.5
    assert off["position_without_lens"] < 0.2
    assert off["pretext_without_lens"] < 0.2
    assert found["verdicts"]["colour drop"].startswith("closes a shortcut, chromatic aberration")


def test_writes_a_file_and_a_table(tmp_path):
    fields = {"data": "digits", "train_images": 300, "steps": 4, "width": 4, "threads": 1}
    config = make_config(RelativePatchConfig, "relative-patch", fields)
    console = Console(io.StringIO())
    found = audit("relative-patch", config, tmp_path, console)
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written == json.loads(json.dumps(found))
    assert set(written["settings"]) == {"untrained", *GUARDS}
    assert written["lens"] == 0  # digits have no colour
    assert written["validation_images"] == 30
    assert written["config"]["steps"] == 4
    text = console.stream.getvalue()
    for guard in RelativePatchConfig.guards:
        assert f"\n{guard}: " in text


def test_command_is_train_with_flags_of_its_own(tmp_path, capsys):
    flags = ["--data", "digits", "--steps", "2", "--width", "4", "--threads", "1"]
    flags += ["--train-images", "300"]
    assert main(["audit", "jigsaw", *flags, "--out", str(tmp_path / "a"), "--lens", "0"]) == 0
    assert (tmp_path / "a" / "audit.json").is_file()
    assert "without tile normalisation" in capsys.readouterr().out


def test_other_methods_are_refused(capsys):
    with pytest.raises(ValueError, match=r"with guards \(.*jigsaw.*\), got 'simclr'"):
        guards_of("simclr")
    assert main(["audit", "simclr"]) == 2
    assert "got 'simclr'" in capsys.readouterr().err
    assert main(["audit", "jigsw"]) == 2
    assert "did you mean 'jigsaw'" in capsys.readouterr().err


def test_needs_images_to_measure_on(tmp_path):
    config = make_config(RelativePatchConfig, "relative-patch", {"data": "digits", "validation": 0})
    with pytest.raises(ValueError, match=r"validation part .* digits with validation = 0"):
        audit("relative-patch", config, tmp_path, quiet())


def test_guards_are_fields_of_their_method():
    guarded = {name for name, entry in METHODS.items() if getattr(entry.config, "guards", None)}
    assert {"relative-patch", "jigsaw"} <= guarded
    for name in guarded:
        config = METHODS[name].config
        for off in guards_of(name).values():
            config(**off)
