"""Video colorization: what is copied, from where, and that a perfect copy costs nothing."""

import io
import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sslops.training import load_encoder, train
from sslops.training.cli.afterwards import evaluate_elsewhere
from sslops.training.data import Clips, Video
from sslops.training.data.moving_shapes import make_clip
from sslops.training.evaluate.tracking import score_tracks, stand_still
from sslops.training.experiments.plan.command import PlanOptions, describe
from sslops.training.loggers.console import Console
from sslops.training.methods.base import Batch, DataShape
from sslops.training.methods.colour_copy import (
    cluster_colours,
    constant_copies,
    copy_values,
    fit_colours,
    one_hot,
)
from sslops.training.methods.video_colorization import (
    LEAST,
    VideoColorization,
    VideoColorizationConfig,
)

QUIET = Console(io.StringIO())


def clips(n=4, size=32, frames=8):
    generator = torch.Generator().manual_seed(0)
    return Clips.of([make_clip(generator, size, frames) for _ in range(n)])


def method(**changes):
    torch.manual_seed(0)
    config = VideoColorizationConfig(**{"width": 8, "batch": 4, **changes})
    made = VideoColorization(config, DataShape(3, 32, 0, 0, 8))
    made.fit(clips())
    return made


def loops(queries, keys, values, temperature, radius):
    """The paper's equations 1 and 2, place by place."""
    B, _, h, w = queries.shape
    out = torch.zeros(B, values.shape[2], h, w, dtype=queries.dtype)
    for b in range(B):
        for y in range(h):
            for x in range(w):
                scores, colours = [], []
                for r in range(keys.shape[1]):
                    for v in range(h):
                        for u in range(w):
                            if radius is None or max(abs(v - y), abs(u - x)) <= radius:
                                scores.append(queries[b, :, y, x] @ keys[b, r, :, v, u])
                                colours.append(values[b, r, :, v, u])
                weights = (torch.stack(scores) / temperature).softmax(0)
                out[b, :, y, x] = weights @ torch.stack(colours)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("radius", [None, 0, 1, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_copies_by_softmax_over_all_places_of_all_references(radius, temperature):
    """Values and gradients, with 11 rows so that blocks of them are ragged."""
    torch.manual_seed(0)
    queries = torch.randn(2, 8, 11, 3, requires_grad=True)
    keys = torch.randn(2, 2, 8, 11, 3, requires_grad=True)
    values = one_hot(torch.randint(5, (4, 11, 3)), 5).unflatten(0, (2, 2))
    y = copy_values(queries, keys, values, temperature=temperature, radius=radius)
    truth_inputs = [x.detach().double().requires_grad_() for x in (queries, keys)]
    truth = loops(*truth_inputs, values.double(), temperature, radius)
    torch.testing.assert_close(y.double(), truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y.sum(1), torch.ones(2, 11, 3))
    weight = torch.randn_like(y)
    grads = torch.autograd.grad(y, (queries, keys), weight)
    expected = torch.autograd.grad(truth, truth_inputs, weight.double())
    for grad, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("radius", [None, 2])
def test_the_matrix_is_not_kept_for_the_backward_pass(radius):
    """What autograd saves grows with the places, not with their square."""
    saved = []

    def keep(x):
        saved.append(x.numel())
        return x

    h = 24
    queries = torch.randn(1, 16, h, h, requires_grad=True)
    keys = torch.randn(1, 3, 16, h, h, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        copy_values(queries, keys, torch.rand(1, 3, 4, h, h), temperature=1.0, radius=radius)
    if radius is None:
        assert max(saved) <= 3 * 16 * h * h
    assert max(saved) < 3 * (h * h) ** 2 / 2


def test_a_perfect_copy_costs_nothing():
    """A second softmax over the copied probabilities would leave log(1 + 15 / e) = 1.9."""
    made = method(temperature=1e-3)
    frames = clips(2).take(torch.tensor([[3] * 4, [5] * 4])).transpose(0, 1).float() / 255
    labels = made.labels(frames)
    h, w = labels.shape[2:]
    f = F.normalize(torch.randn(1, 2, 64, h, w), dim=2).expand(4, -1, -1, -1, -1)
    probability = made.copy(f, labels)
    assert torch.equal(probability.argmax(1), labels[-1])
    loss = -probability.gather(1, labels[-1][:, None]).clamp(min=LEAST).log().mean()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    twice = F.cross_entropy(probability, labels[-1]).item()
    assert twice == pytest.approx(math.log(1 + 15 / math.e), abs=1e-5)


@pytest.mark.slow
def test_step_is_the_logarithm_of_the_copied_probability():
    made = method()
    views = made.views(Batch(clips(), None), torch.Generator().manual_seed(0))
    out = made.step(views)
    f = F.normalize(made.encoder.feature_maps(views.flatten(0, 1))[-1], dim=1)
    f = f.unflatten(0, (4, 4))
    labels = made.labels(views)
    values = one_hot(labels[:-1].flatten(0, 1), 16).unflatten(0, (3, 4))
    probability = loops(f[-1], f[:-1].transpose(0, 1), values.transpose(0, 1), 0.05, None)
    chosen = probability.gather(1, labels[-1][:, None]).clamp(min=LEAST)
    torch.testing.assert_close(out["loss"], -chosen.log().mean(), rtol=1e-4, atol=1e-4)


def test_features_that_say_nothing_copy_everywhere_alike():
    made = method()
    views = made.views(Batch(clips(), None), torch.Generator().manual_seed(0))
    labels = made.labels(views)
    probability = made.copy(torch.zeros(4, 4, 64, 8, 8), labels)
    share = one_hot(labels[:-1].flatten(0, 1), 16).unflatten(0, (3, 4)).mean((0, 3, 4))
    torch.testing.assert_close(probability, share[..., None, None].expand(-1, -1, 8, 8))
    nothing = constant_copies(labels, 16, LEAST)
    loss = -probability.gather(1, labels[-1][:, None]).clamp(min=LEAST).log().mean()
    torch.testing.assert_close(nothing["copy_everywhere"], loss)
    assert nothing["copy_same_place"] <= nothing["copy_everywhere"]
    assert nothing["constant_colour"] <= math.log(16)
    assert made.chance == pytest.approx(math.log(16))


def test_a_still_video_is_best_copied_from_the_same_place():
    labels = torch.randint(4, (1, 3, 6, 6)).expand(4, -1, -1, -1)
    assert constant_copies(labels, 4, LEAST)["copy_same_place"].item() == pytest.approx(0, abs=1e-6)


def test_the_network_sees_no_colour():
    """Colours of the target change nothing but what it is compared with."""
    made = method().eval()
    grey = made.grey(torch.rand(2, 3, 32, 32))
    tinted = made.paint(grey, torch.randint(16, (2, 8, 8)))
    a, b = (made.encoder.feature_maps(x)[-1] for x in (grey, tinted))
    assert (a - b).abs().max() < 2e-2 * a.abs().max()  # what sRGB lacks is cut off
    assert made.encoder.layers[0][0].weight.shape[1] == 1


def test_labels_are_common_colours_and_no_averages():
    """Half red, half green: one of the two, not the brown between them."""
    centres = torch.tensor([[60.0, 50.0], [-60.0, 50.0], [0.0, 60.0]])  # red, green, brown
    image = torch.zeros(1, 3, 8, 8)
    image[:, 0, :, :5] = 0.8
    image[:, 1, :, 5:] = 0.6
    assert cluster_colours(image, centres, 1, 1).item() == 0
    assert cluster_colours(image, centres, 1, 4)[0, 0].tolist() == [0, 0, 0, 1]


def test_clusters_are_fitted_with_a_seed_and_kept():
    videos = clips()
    centres = fit_colours(videos, 16, 0)
    assert centres.shape == (16, 2)
    assert torch.equal(centres, fit_colours(videos, 16, 0))
    radius = centres.norm(dim=1)
    assert ((radius > 20) & (radius < 28)).all()  # the generated colours lie on a circle
    made = method()
    assert torch.equal(made.state_dict()["centres"], made.centres)
    only = fit_colours(videos[torch.tensor([0])], 4, 0)
    assert len(only.unique(dim=0)) == 4


def test_views_are_equally_spaced_frames_either_way():
    value = torch.arange(10, dtype=torch.uint8)
    video = Video(value.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous())
    made = VideoColorization(
        VideoColorizationConfig(spacing=2, width=8), DataShape(3, 32, 0, 0, 10)
    )
    views = made.views(Batch(Clips.of([video] * 300), None), torch.Generator().manual_seed(0))
    assert views.shape == (4, 300, 3, 4, 4)
    steps = (views[:, :, 0, 0, 0] * 255).round().diff(dim=0)  # [3, B]
    assert (steps == steps[:1]).all()
    assert steps[0].unique().tolist() == [-2, -1, 1, 2]
    assert sorted(set((views[0, :, 0, 0, 0] * 255).round().tolist())) == list(range(10))


def test_gradients_reach_everything():
    made = method()
    views = made.views(Batch(clips(), None), torch.Generator().manual_seed(0))
    made.step(views)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize(
    ("changes", "frames", "message"),
    [
        ({"references": 4}, 8, r"references x spacing must be below the 8 frames .*, got 4 x 2"),
        ({"arch": "cnn4"}, 8, "arch must be frame-cnn, .*, got cnn4"),
        ({"references": 0}, 8, "references must be at least 1, got 0"),
        ({"temperature": 0.0}, 8, "temperature must be positive, got 0.0"),
        ({"clusters": 1}, 8, "clusters must be at least 2, got 1"),
    ],
)
def test_refused(changes, frames, message):
    with pytest.raises(ValueError, match=message):
        VideoColorization(VideoColorizationConfig(**changes), DataShape(3, 32, 0, 0, frames))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"temperature": 0.0}, "temperature must be positive"), ({"C": 9}, "no wider than features")],
)
def test_copying_is_refused(changes, message):
    C = changes.pop("C", 4)
    with pytest.raises(ValueError, match=message):
        copy_values(torch.rand(1, 8, 2, 2), torch.rand(1, 1, 8, 2, 2), torch.rand(1, 1, C, 2, 2),
                    **{"temperature": 1.0, **changes})  # fmt: skip


@pytest.mark.slow
def test_learns_to_find_places_again(tmp_path):
    """Below every copy that looks at nothing, on videos whose colours grey does not tell."""
    result = train(
        "video-colorization", out=tmp_path / "a", console=QUIET, steps=100, image_size=32,
        width=16, log_every=10, threads=1, lr=5e-3,
    )  # fmt: skip
    scores = result.results["pretext"]
    nothing = min(scores[n] for n in ("constant_colour", "copy_everywhere", "copy_same_place"))
    assert scores["cross_entropy"] < nothing - 0.1
    assert set(result.results) >= {"video-colorization", "random-init", "identity"}
    records = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["loss"] < json.loads(records[0])["loss"]
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_encoder(tmp_path / "a")(images), result.encoder(images))
    html = (tmp_path / "a" / "report.html").read_text()
    assert "Objects followed" in html
    assert "Masks over time" in html


@pytest.mark.slow
def test_a_run_is_evaluated_on_videos_of_a_folder(tmp_path):
    """As part of the run, and later on another folder; a folder without masks is refused."""
    frames = tmp_path / "ball"
    video = clips(1, size=64).video(0)
    for kind, pictures in (("ball", video.frames), ("ball_mask", (video.masks > 0) * 255)):
        (tmp_path / kind).mkdir()
        for t, picture in enumerate(pictures.byte().numpy()):
            image = picture.transpose(1, 2, 0) if picture.ndim == 3 else picture
            Image.fromarray(image).save(tmp_path / kind / f"{t:03}.png")
    result = train(
        "video-colorization", out=tmp_path / "a", console=QUIET, steps=1, image_size=16, width=4,
        threads=1, eval_video=str(frames), eval_size=64,
    )  # fmt: skip
    own = result.results["video-colorization"]
    assert {"J", "F", "PCK", "ball J", "ball F"} <= own.keys()
    one = video._replace(masks=(video.masks > 0).byte())
    still = score_tracks(one, stand_still(one))
    assert result.results["identity"]["ball J"] == pytest.approx(still["J"], abs=1e-6)
    assert (tmp_path / "a" / "pictures" / "followed-ball-1.png").is_file()
    again = evaluate_elsewhere(tmp_path / "a", str(frames), None, "cpu", QUIET)
    assert again["video-colorization"]["ball J"] == own["ball J"]
    for mask in (tmp_path / "ball_mask").iterdir():
        mask.unlink()
    (tmp_path / "ball_mask").rmdir()
    with pytest.raises(ValueError, match="whose first frame has a mask, got none in ball"):
        evaluate_elsewhere(tmp_path / "a", str(frames), None, "cpu", QUIET)


def test_learns_from_a_folder_without_masks(tmp_path):
    """And says that there is nothing to follow."""
    videos = clips(4, size=16)
    for i in range(4):
        (tmp_path / "v" / str(i)).mkdir(parents=True)
        for t, picture in enumerate(videos.video(i).frames.numpy()):
            Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "v" / str(i) / f"{t}.png")
    said = io.StringIO()
    result = train(
        "video-colorization", data=str(tmp_path / "v"), out=tmp_path / "a", console=Console(said),
        steps=1, image_size=16, width=4, batch=2, threads=1,
    )  # fmt: skip
    assert "no test video has masks" in said.getvalue()
    assert result.results["pretext"]["cross_entropy"] > 0
    assert "nothing was followed" in (tmp_path / "a" / "report.html").read_text()


def test_memory_is_planned():
    config = VideoColorizationConfig(width=8, image_size=16, batch=8)
    text, fits = describe("video-colorization", config, PlanOptions(memory=1.0, probe=False))
    assert fits
    assert "3 x 16 x 16 px, batch 8" in text
