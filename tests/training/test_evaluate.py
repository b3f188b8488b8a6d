"""Evaluation: each measure against a slow or closed form, and that no choice sees test labels."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from sslops.training.data import Dataset, Split, load
from sslops.training.distributed.process import World
from sslops.training.evaluate import evaluate, extract, knn, knn_accuracy, table, tsne
from sslops.training.evaluate.cluster import agreement, cluster
from sslops.training.evaluate.features import pixels, spread
from sslops.training.evaluate.few_labels import draw_labels, feasible, few_labels
from sslops.training.evaluate.knn_monitor import make_monitor
from sslops.training.evaluate.linear import Scaler, choose_strength, fold_of_each, linear_probe
from sslops.training.evaluate.logistic import fit, principal_axes


class Counter(nn.Module):
    """An encoder with a buffer that counts in forward, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(float("nan")))
        self.register_buffer("calls", torch.tensor(0))
        self.counts = True

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            self.calls += 1
        return x.flatten(1)


def blobs(n: int, classes: int, d: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + noise * torch.randn(n, d, generator=g), labels


def tiny_data(n: int = 60, test: int = 30, labelled: bool = True) -> Dataset:
    def split(n: int, seed: int) -> Split:
        x, y = blobs(n, 3, 16, 0.6, seed)
        images = (x * 40 + 128).clamp(0, 255).to(torch.uint8).view(n, 1, 4, 4)
        return Split(images, y if labelled else None)

    names = ("a", "b", "c") if labelled else ()
    return Dataset("tiny", split(n, 1), split(test, 2), names, "none", "made here")


def test_extract_is_plain_evaluation():
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
    encoder[1].running_mean.normal_()
    images = torch.randint(256, (10, 1, 5, 5), dtype=torch.uint8)
    features = extract(encoder, images, batch=4)
    assert encoder.training
    assert encoder[1].training
    assert not features.requires_grad
    torch.testing.assert_close(features, encoder.eval()(images / 255).detach())


def test_extract_refuses_an_encoder_that_changes():
    encoder = Counter()
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"must stay as it is in evaluation mode, got .*calls"):
        extract(encoder, images)
    encoder.counts = False  # the NaN buffer alone is no change
    assert extract(encoder, images).shape == (4, 4)


def test_extract_rejects():
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        extract(nn.Flatten(), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"needs images \[N, C, H, W\], got \(0, 1, 2, 2\)"):
        extract(nn.Flatten(), torch.zeros(0, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"must return \[B, dim\]"):
        extract(nn.Identity(), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_pixels_average_large_images():
    images = torch.randint(256, (3, 1, 64, 32), dtype=torch.uint8)
    want = F.avg_pool2d(images / 255, (2, 1)).flatten(1)
    torch.testing.assert_close(pixels(images), want)
    assert pixels(images[:, :, :8, :8]).shape == (3, 64)


def test_spread_of_even_and_collapsed_features():
    even = spread(torch.randn(1000, 16))
    assert even["feature_spread"] == pytest.approx(1, abs=0.05)
    assert even["rank"] == pytest.approx(16, rel=0.05)
    assert spread(torch.ones(10, 4)) == {"feature_spread": 0.0, "rank": 1.0}


@pytest.mark.parametrize("cells", [1, 50, 1 << 24])
def test_knn_matches_a_slow_loop(cells, monkeypatch):
    monkeypatch.setattr(knn, "_CELLS", cells)
    x, y = blobs(40, 3, 5, 1.5)
    queries, _ = blobs(15, 3, 5, 1.5, seed=1)
    for k, temperature in ((1, 0.07), (7, 0.5), (99, 0.01)):
        want = []
        for query in queries:
            ranked = sorted(
                ((torch.cosine_similarity(query, key, dim=0).item(), int(label))
                 for key, label in zip(x, y, strict=True)),
                reverse=True,
            )  # fmt: skip
            votes = [0.0, 0.0, 0.0]
            for similarity, label in ranked[:k]:
                votes[label] += math.exp(similarity / temperature)
            want.append(votes.index(max(votes)))
        assert knn.knn_predict(x, y, queries, k=k, temperature=temperature).tolist() == want


def test_no_image_is_its_own_neighbour():
    x, _ = blobs(30, 3, 4, 1.0)
    found = torch.cat([i for _, i in knn.neighbours(x, x, 29, exclude=torch.arange(30))])
    assert not (found == torch.arange(30)[:, None]).any()


def test_k_is_chosen_leave_one_out():
    """Classes of three images: more than 2 voters are outvoted by strangers."""
    x = torch.eye(30).repeat_interleave(3, 0) + 0.01 * torch.randn(90, 30)
    y = torch.arange(30).repeat_interleave(3)
    assert knn.choose_k(x, y, ks=(2, 80), temperature=1e6) == 2
    assert knn.choose_k(x[:4], y[:4]) == 3  # all there is
    mixed, y = torch.randn(200, 8), torch.arange(200) % 2
    mixed[:, 0] += 2.0 * y - 1
    assert knn.choose_k(mixed, y, ks=(1, 50)) == 50  # with its own vote each is right at k = 1


def test_the_monitor_asks_for_the_validation_images():
    """Labelled the wrong way round all are missed, whatever is known of the training images."""
    images, labels = torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.arange(40) % 2
    images[labels == 0, :, :2], images[labels == 1, :, 2:] = 200, 200
    train, validation = Split(images, labels), Split(images[:10], 1 - labels[:10])
    monitor = make_monitor(train, validation, 0, World(0, 1, torch.device("cpu")))
    assert monitor(nn.Flatten()) == 0.0


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_logistic_regression_matches_sklearn(strength):
    x, y = blobs(120, 4, 6, 2.0)
    ours = fit(x, y, 4, torch.tensor([strength]), tolerance=1e-5)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x.double(), y)
    torch.testing.assert_close(
        ours.weight[0].T.double(), torch.tensor(theirs.coef_), rtol=0.02, atol=5e-3
    )
    p = (x @ ours.weight[0] + ours.bias[0]).softmax(1)
    torch.testing.assert_close(
        p.double(), torch.tensor(theirs.predict_proba(x)).double(), rtol=0, atol=5e-3
    )


def test_logistic_regression_reads_an_axis_of_little_variance():
    """A thousandth of the deviation of the first: float32 holds it, so must the fit."""
    f, sign = torch.randn(4000, 1), torch.randn(4000)
    v = torch.linspace(-1, 1, 16)
    x = f + 1e-3 * sign[:, None] * v
    y = (sign > 0).long()
    found = fit(Scaler.of(x)(x), y, 2, torch.tensor([1e3]))
    assert (found.predict(Scaler.of(x)(x))[0] == y).float().mean() > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "C"), [(3000, 1e4), (200, 10.0)])
def test_logistic_regression_of_correlated_features_reaches_the_optimum(rows, C):
    """300 features of 12 numbers, as cells of a map are; more of them than rows, too."""
    x, y = blobs(rows, 4, 12, 3.0)
    x = (x @ torch.randn(12, 300) + 2).relu()
    x = Scaler.of(x)(x)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit(x.double(), y)

    def objective(weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(x.double() @ weight + bias, y) + weight.square().sum() / (
            2 * C * rows
        )

    optimum = objective(torch.tensor(theirs.coef_).T, torch.tensor(theirs.intercept_))
    ours = fit(x, y, 4, torch.tensor([C]))
    assert objective(ours.weight[0].double(), ours.bias[0].double()) < optimum + 1e-3


@pytest.mark.parametrize("rows", [50, 5])
def test_a_feature_that_never_varies_has_no_weight(rows):
    x, y = blobs(rows, 2, 8, 1.0)
    x[:, 3] = 0
    x[:, 5] = x[:, 4]
    found = fit(x, y, 2, torch.tensor([1e6]))
    assert (found.weight[0, 3] == 0).all()
    torch.testing.assert_close(found.weight[0, 5], found.weight[0, 4], rtol=1e-3, atol=1e-5)
    flat = fit(torch.zeros(4, 3), torch.tensor([0, 1, 1, 1]), 2, torch.tensor([1.0]))
    assert (flat.weight == 0).all()
    torch.testing.assert_close(flat.bias[0].softmax(0)[1], torch.tensor(0.75), rtol=0, atol=1e-3)


def test_problems_side_by_side_are_problems_alone():
    x, y = blobs(90, 3, 5, 2.0)
    members = torch.rand(90, 3) < 0.7
    strengths = torch.tensor([0.1, 1.0, 10.0])
    together = fit(x, y, 3, strengths, members=members, tolerance=1e-5)
    for g in range(3):
        mine = members[:, g]
        alone = fit(x[mine], y[mine], 3, strengths[g : g + 1], tolerance=1e-5)
        torch.testing.assert_close(together.weight[g], alone.weight[0], rtol=0.02, atol=5e-3)


def test_folds_are_stratified():
    labels = torch.tensor([0] * 9 + [1] * 6 + [2] * 3)[torch.randperm(18)]
    fold = fold_of_each(labels, 3, seed=0)
    for label, share in ((0, 3), (1, 2), (2, 1)):
        assert fold[labels == label].bincount(minlength=3).tolist() == [share] * 3


def test_strength_is_the_best_in_cross_validation():
    x, y = blobs(90, 3, 8, 2.5)
    grid = (0.01, 1.0, 100.0)
    chosen, validation = choose_strength(x, y, classes=3, seed=0, strengths=grid)
    fold = fold_of_each(y, 3, 0)
    for strength in grid:
        scores = []
        for k in range(3):
            model = LogisticRegression(C=strength, max_iter=5000).fit(x[fold != k], y[fold != k])
            scores.append(model.score(x[fold == k], y[fold == k]))
        want = sum(scores) / 3
        assert validation[strength] == pytest.approx(want, abs=0.025)
    assert validation[chosen] == max(validation.values())


def test_scaler_gives_unit_rows_and_ignores_dead_features():
    x = torch.randn(500, 8) * torch.tensor([1, 5, 0.2, 1, 1, 1, 1, 0.0]) + 3
    for per_feature in (True, False):
        scaled = Scaler.of(x, per_feature=per_feature)(x)
        assert scaled.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)
        assert scaled[:, 7].abs().max() < 1e-4
    sd = Scaler.of(x)(x).std(0)
    torch.testing.assert_close(sd[[0, 3]], sd[[1, 4]], rtol=0.01, atol=0)
    assert torch.equal(Scaler.of(torch.ones(3, 2))(torch.ones(3, 2)), torch.zeros(3, 2))


def test_choices_do_not_see_test_labels():
    data = tiny_data()
    assert data.test.labels is not None
    shuffled = data.test.labels[torch.randperm(30)]
    other = replace(data, test=Split(data.test.images, shuffled))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    arms: dict[str, nn.Module | None] = {"pixels": None, "random-init": encoder}
    first, second = (
        evaluate(arms, d, seed=0, labels_per_class=(1, 5), draws=2) for d in (data, other)
    )
    for arm in arms:
        for name in ("knn_k", "linear_C", "linear_cv"):
            assert first[arm][name] == second[arm][name]
        for n in ("1", "5"):
            assert first[arm]["few"][n]["strengths"] == second[arm]["few"][n]["strengths"]
        assert first[arm]["linear"] != second[arm]["linear"]


def test_draws_are_the_same_for_all_arms_and_balanced():
    labels = torch.arange(40) % 4
    index = draw_labels(labels, 3, 4, seed=7)
    assert torch.equal(index, draw_labels(labels, 3, 4, seed=7))
    assert labels[index].bincount().tolist() == [3, 3, 3, 3]
    assert len(index.unique()) == 12
    assert not torch.equal(index, draw_labels(labels, 3, 4, seed=8))
    assert feasible(labels, (1, 10, 11), 4) == [1, 10]
    assert feasible(labels, (1,), 5) == []  # a class without an image
    with pytest.raises(ValueError, match="class 0 must have 11 images, got 10"):
        draw_labels(labels, 11, 4, seed=0)


def test_few_labels_mean_and_sd():
    x, y = blobs(60, 3, 4, 1.5)
    found = few_labels(x, y, x, y, n=2, classes=3, seed=0, draws=4)
    values = torch.tensor(found.accuracies, dtype=torch.float64)
    assert found.mean == pytest.approx(values.mean().item())
    assert found.sd == pytest.approx(values.std().item())
    assert found.strengths == [10.0] * 4


def test_separated_clusters_agree_perfectly():
    x, y = blobs(90, 3, 8, 0.01)
    found = cluster(x, y, classes=3, seed=0)
    assert found == pytest.approx((1.0, 1.0, 1.0))


def test_agreement_of_known_partitions():
    truth = torch.tensor([0, 0, 1, 1])
    assert agreement(truth, torch.tensor([5, 5, 2, 2])) == pytest.approx((1.0, 1.0, 1.0))
    halves = agreement(truth, torch.tensor([0, 1, 0, 1]))
    assert halves.nmi == pytest.approx(0.0, abs=1e-9)
    assert halves.accuracy == 0.5
    assert agreement(truth, torch.tensor([0, 0, 0, 1])).accuracy == 0.75


def test_tsne_repeats_from_its_seed():
    x, _ = blobs(40, 2, 60, 0.1)
    first = tsne(x, 3)
    assert first.shape == (40, 2)
    assert first.dtype.name == "float32"
    assert (first == tsne(x, 3)).all()
    assert (tsne(torch.ones(5, 3), 0) == 0).all()  # collapsed features
    with pytest.raises(ValueError, match="needs 4 to 2000 images, got 2"):
        tsne(x[:2], 0)


def test_digits_floors():
    result = evaluate({"pixels": None}, load("digits"), seed=0, labels_per_class=(1,))
    pixels_arm = result["pixels"]
    assert 0.60 < pixels_arm["few"]["1"]["mean"] < 0.72
    assert pixels_arm["knn"] > 0.98
    assert pixels_arm["linear"] > 0.96
    assert 0.68 < pixels_arm["nmi"] < 0.78


def test_results_are_json_and_repeat():
    arms: dict[str, nn.Module | None] = {"pixels": None}
    first, second = (
        evaluate(arms, tiny_data(), seed=1, draws=2, max_train=45, max_test=20) for _ in range(2)
    )
    for result in (first, second):
        del result["pixels"]["evaluation_seconds"]
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(second))
    assert first["protocol"]["probe_images"] == 45
    assert first["protocol"]["test_images"] == 20
    assert first["protocol"]["few"]["skipped"] == [50]


@pytest.mark.parametrize(("train_labels", "test_labels"), [(False, False), (False, True)])
def test_missing_labels_leave_out_what_needs_them(train_labels, test_labels):
    data = tiny_data()
    data = replace(
        data,
        train=data.train if train_labels else Split(data.train.images, None),
        test=data.test if test_labels else Split(data.test.images, None),
    )
    result = evaluate({"pixels": None}, data, seed=0)
    assert "linear" not in result["pixels"]
    assert ("nmi" in result["pixels"]) == test_labels
    assert result["pixels"]["dim"] == 16
    assert "pixels" in table(result)


@pytest.mark.parametrize("weight", [float("nan"), 1e25])
def test_not_finite_features_are_said_and_do_not_fail(weight):
    broken = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.constant_(broken[1].weight, weight)
    result = evaluate({"simclr": broken, "pixels": None}, tiny_data(), seed=0, draws=1)
    assert result["simclr"]["failed"].startswith("features are not finite")
    assert result["pixels"]["linear"] > 0.5
    assert "simclr" in table(result)


def test_linear_probe_and_knn_separate_blobs():
    x, y = blobs(90, 3, 8, 0.2)
    x_test, y_test = blobs(30, 3, 8, 0.2, seed=5)
    assert linear_probe(x, y, x_test, y_test, classes=3, seed=0).accuracy == 1.0
    assert knn_accuracy(x, y, x_test, y_test, k=5) == 1.0


def test_table_is_aligned():
    text = table(evaluate({"pixels": None}, tiny_data(), seed=0, draws=2))
    head, rule, row = text.splitlines()
    assert [*head.split()][-4:] == ["kNN", "linear", "NMI", "ARI"]
    assert set(rule) == {"-"}
    assert len(head) == len(row)


def test_evaluate_rejects():
    with pytest.raises(ValueError, match="at least one arm, got none"):
        evaluate({}, tiny_data(), seed=0)
    with pytest.raises(ValueError, match="must not be called 'protocol'"):
        evaluate({"protocol": None}, tiny_data(), seed=0)


@pytest.mark.parametrize("refused", [False, True])
def test_features_of_which_most_are_constant_have_axes(monkeypatch, refused):
    """Grey pictures leave the colour half of an encoder constant; LAPACK's float32 gave up."""
    generator = torch.Generator().manual_seed(7)
    features = torch.zeros(1000, 1024)
    alive = torch.randperm(1024, generator=generator)[:600]
    few = torch.randn(1000, 20, generator=generator) @ torch.randn(20, 600, generator=generator)
    features[:, alive] = few * torch.rand(600, generator=generator) ** 8
    features -= features.mean(0)
    features /= features.norm() / 1000**0.5
    if refused:  # whatever this machine's LAPACK does with it

        def eigh(matrix, eigh=torch.linalg.eigh):
            if matrix.dtype is torch.float32:
                raise torch.linalg.LinAlgError("failed to converge")
            return eigh(matrix)

        monkeypatch.setattr(torch.linalg, "eigh", eigh)
    axes = principal_axes(features)
    assert axes.dtype is torch.float32
    torch.testing.assert_close(features @ axes @ axes.T, features, rtol=1e-4, atol=1e-4)
