"""Labels taken along a video, and the scores of what comes out."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslops.training.data import Clips, Video
from sslops.training.evaluate import propagate as propagation
from sslops.training.evaluate.propagate import Propagation, propagate
from sslops.training.evaluate.tracking import (
    follow,
    score_tracks,
    stand_still,
    track,
    tracking_table,
)
from sslops.training.evaluate.video_scores import boundary, jaccard, pck

CPU = torch.device("cpu")


def dense(features, labels, how):
    """Place by place, with every similarity at hand."""
    f = F.normalize(features.double(), dim=1) if how.normalize else features.double()
    T, _, h, w = f.shape
    out = [labels.double()]
    places = [(y, x) for y in range(h) for x in range(w)]
    for t in range(1, T):
        references = [0, *range(max(1, t - how.context), t)]
        now = torch.zeros_like(out[0])
        for y, x in places:
            near = [
                (float(f[t, :, y, x] @ f[r, :, v, u]) / how.temperature, out[r][:, v, u])
                for r in references
                for v, u in places
                if how.radius is None or max(abs(v - y), abs(u - x)) <= how.radius
            ]
            near = sorted(near, key=lambda pair: -pair[0])[: how.top_k]
            weights = torch.tensor([score for score, _ in near], dtype=torch.float64).softmax(0)
            now[:, y, x] = torch.stack([label for _, label in near], 1) @ weights
        out.append(now)
    return torch.stack(out)


@pytest.mark.parametrize("how", [
    Propagation(top_k=3, context=2, temperature=0.2),
    Propagation(top_k=None, radius=1, context=7),
    Propagation(top_k=4, radius=2, context=0),
    Propagation(top_k=500, context=1, temperature=1.0, normalize=False),
])  # fmt: skip
@pytest.mark.parametrize("kept", [1, 1 << 22])
def test_is_the_sum_over_the_most_similar_places(how, kept, monkeypatch):
    """Row by row as well as all at once."""
    monkeypatch.setattr(propagation, "SIMILARITIES", kept)
    features, labels = torch.randn(4, 6, 5, 4), torch.rand(3, 5, 4)
    found = propagate(features, labels, how)
    torch.testing.assert_close(found.double(), dense(features, labels, how), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radius", [None, 0, 2])
def test_a_static_video_is_the_identity(radius):
    """Every place is most like itself: labels stay to the bit, whatever their number."""
    features = torch.randn(1, 16, 7, 9).expand(5, -1, -1, -1)
    labels = torch.rand(4, 7, 9)
    found = propagate(features, labels, Propagation(top_k=1, radius=radius))
    assert torch.equal(found, labels.expand(5, -1, -1, -1))


def test_a_shifted_video_is_followed():
    """Features move one column a frame; so do the labels."""
    features = torch.randn(1, 32, 6, 12)
    features = torch.cat([features.roll(t, 3) for t in range(4)])
    labels = torch.rand(2, 6, 12)
    found = propagate(features, labels, Propagation(top_k=1, context=3))
    for t in range(4):
        assert torch.equal(found[t], labels.roll(t, 2))


def test_a_radius_holds_back():
    features = torch.randn(1, 32, 6, 12)
    features = torch.cat([features.roll(4 * t, 3) for t in range(2)])
    labels = torch.zeros(1, 6, 12)
    labels[0, :, 0] = 1
    far, near = (
        propagate(features, labels, Propagation(top_k=1, radius=radius))[1, 0]
        for radius in (None, 3)
    )
    assert far[:, 4].eq(1).all()
    assert not near[:, 4].any()


def test_probabilities_stay_probabilities():
    labels = torch.rand(3, 6, 6)
    found = propagate(torch.randn(5, 8, 6, 6), labels / labels.sum(0), Propagation())
    torch.testing.assert_close(found.sum(1), torch.ones(5, 6, 6))


def test_memory_is_bounded(monkeypatch):
    """The largest matrix of similarities, of a frame that would need 64 times as much."""
    monkeypatch.setattr(propagation, "SIMILARITIES", 1 << 16)
    sizes = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: sizes.append(matmul(a, b).numel()) or matmul(a, b)
    )
    propagate(torch.randn(3, 4, 32, 32), torch.rand(1, 32, 32), Propagation())
    assert max(sizes) <= 1 << 16


@pytest.mark.parametrize(
    ("labels", "how", "message"),
    [
        (torch.rand(1, 4, 5), Propagation(), "labels must be as large as features, 4 x 4"),
        (torch.rand(1, 4, 4), Propagation(top_k=0), "needs top_k and temperature above 0"),
        (torch.rand(1, 4, 4), Propagation(temperature=0.0), "needs top_k and temperature above 0"),
    ],
)
def test_refused(labels, how, message):
    with pytest.raises(ValueError, match=message):
        propagate(torch.rand(2, 3, 4, 4), labels, how)


# scores


def square(left, top, side, size=20):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_jaccard():
    truth = torch.stack([square(2, 2, 4)] * 4 + [square(0, 0, 0)] * 2)
    found = torch.stack([square(2, 2, 4), square(4, 2, 4), square(10, 10, 4), square(0, 0, 0),
                         square(0, 0, 0), square(1, 1, 2)])  # fmt: skip
    torch.testing.assert_close(jaccard(found, truth), torch.tensor([1, 8 / 24, 0, 0, 1, 0]))


def test_boundary_forgives_what_is_near():
    truth = square(4, 4, 8)[None]
    assert boundary(truth, truth, 0).item() == 1
    moved = square(5, 4, 8)[None]
    assert boundary(moved, truth, 1).item() == 1
    assert 0 < boundary(moved, truth, 0).item() < 1
    assert boundary(square(16, 16, 2)[None], truth, 1).item() == 0
    empty = square(0, 0, 0)[None]
    assert boundary(empty, empty, 1).item() == 1
    assert boundary(empty, truth, 1).item() == 0


def test_boundary_is_precision_and_recall():
    """The mask and another beside it: recall is 1, precision a half."""
    truth = square(2, 2, 5)[None]
    found = truth | square(9, 2, 5)[None]  # its boundary is 2 pixels away
    assert boundary(found, truth, 1).item() == pytest.approx(2 * 0.5 / 1.5)


def test_boundary_of_a_pixel_is_the_four_around_its_corner():
    """Pixels that differ from the one right, below or diagonally below: 4 of a single one."""
    from sslops.training.evaluate.video_scores import _edge

    edges = _edge(square(5, 5, 1)[None]).nonzero()[:, 1:]
    assert edges.tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]


def test_default_tolerance_is_a_share_of_the_diagonal():
    truth = torch.zeros(1, 300, 400, dtype=torch.bool)
    truth[0, 100:200, 100:200] = True
    assert boundary(truth.roll(4, 2), truth).item() == 1  # 0.008 * 500 = 4
    assert boundary(truth.roll(5, 2), truth).item() < 1


def test_pck_counts_visible_points():
    truth = torch.tensor([[[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]]])
    found = truth + torch.tensor([[[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, True, False]])
    assert pck(found, truth, visible, 5.0).item() == 1
    assert pck(found, truth, visible, 4.9).item() == 0.5
    assert math.isnan(pck(found, truth, visible & False, 1.0).item())


# following


class Pixels(torch.nn.Module):
    """Features that know each place: the colours themselves, in cells of 4 pixels."""

    dim = 3

    def feature_maps(self, x):
        return [F.avg_pool2d(x, 4) - 0.5]


def moving(frames=4):
    """A square of noise moves 4 pixels a frame over an even ground."""
    ground = torch.tensor([200, 60, 90], dtype=torch.uint8)[:, None, None].repeat(1, 8, 8)
    thing = torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8)
    images, masks, points = [], [], []
    for t in range(frames):
        small = ground.clone()
        small[:, 2:4, t + 1 : t + 3] = thing
        mask = torch.zeros(8, 8, dtype=torch.uint8)
        mask[2:4, t + 1 : t + 3] = 7
        images.append(small.repeat_interleave(4, 1).repeat_interleave(4, 2))
        masks.append(mask.repeat_interleave(4, 0).repeat_interleave(4, 1))
        points.append(torch.tensor([[4.0 * t + 6, 10.0], [4.0 * t + 10, 14.0]]))
    points = torch.stack(points)
    return Video(torch.stack(images), torch.stack(masks), points,
                 torch.ones(frames, 2, dtype=torch.bool))  # fmt: skip


def test_objects_are_followed_and_standing_still_is_not():
    video, how = moving(), Propagation(top_k=1)
    tracks = follow(Pixels(), video, how, CPU)
    scores = score_tracks(video, tracks)
    assert scores["PCK"] == scores["PCK05"] == 1
    assert scores["J"] > 0.7  # cells, brought to pixels bilinearly, round the corners off
    assert tracks.masks.unique().tolist() == [0, 7]
    still = score_tracks(video, stand_still(video))
    assert still["J"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert still["PCK"] == 0


def test_a_static_video_is_scored_as_perfect():
    video = Video(*(part[:1].expand(3, *part.shape[1:]) for part in moving()))
    scores = score_tracks(video, stand_still(video))
    assert scores == {"J": 1, "F": 1, "PCK": 1, "PCK05": 1}


def test_scores_are_means_over_the_videos_with_objects():
    first = moving()
    empty = first._replace(masks=torch.zeros_like(first.masks))
    clips = Clips.of([first, empty])
    how = Propagation(top_k=1)
    assert track(Pixels(), clips, how, CPU) == score_tracks(
        first, follow(Pixels(), first, how, CPU)
    )
    table = tracking_table({"identity": {"dim": 0, **track(None, clips, how, CPU)}})
    assert table.splitlines()[0].split() == ["J", "F", "PCK", "PCK05"]
    assert tracking_table({"pixels": {"dim": 3, "knn": 0.5}}) == ""
