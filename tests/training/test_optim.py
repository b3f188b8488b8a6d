"""LARS against a slow formula; groups; the schedule at its closed-form points."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from sslops.training import train
from sslops.training.engine.optim import (
    LARS,
    learning_rate,
    make_optimizer,
    parameter_groups,
    scaled_lr,
)
from sslops.training.loggers.console import Console
from sslops.training.methods.simclr import SimCLR
from sslops.training.storage.checkpoint import load


def slow_lars(w, grads, lr, momentum, decay, trust, adapt):
    """Element by element, in Python floats."""
    w, v = list(w), [0.0] * len(w)
    for grad in grads:
        g = [grad[i] + decay * w[i] for i in range(len(w))]
        norm_w, norm_g = math.sqrt(sum(x * x for x in w)), math.sqrt(sum(x * x for x in g))
        ratio = trust * norm_w / norm_g if adapt and norm_w > 0 and norm_g > 0 else 1.0
        for i in range(len(w)):
            v[i] = momentum * v[i] + lr * ratio * g[i]
            w[i] -= v[i]
    return w


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("start", ["random", "zero weights", "zero gradient"])
def test_lars_matches_the_slow_formula(adapt, start):
    w = torch.zeros(5) if start == "zero weights" else torch.randn(5)
    grads = torch.zeros(4, 5) if start == "zero gradient" else torch.randn(4, 5)
    param = nn.Parameter(w.double())
    # no decay where the gradient should stay zero
    decay = 0.0 if start == "zero gradient" else 0.01
    optimizer = LARS([param], 0.3, momentum=0.9, weight_decay=decay, trust=0.02, adapt=adapt)
    for grad in grads.double():
        param.grad = grad
        optimizer.step()
    expected = slow_lars(w.tolist(), grads.tolist(), 0.3, 0.9, decay, 0.02, adapt)
    torch.testing.assert_close(param.detach(), torch.tensor(expected, dtype=torch.float64))


def test_lars_state_survives_a_checkpoint():
    def make():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, make_optimizer("lars", model, lr=0.1, weight_decay=0.1, momentum=0.9)

    def update(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    model, optimizer = make()
    update(model, optimizer)
    other, resumed = make()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    update(model, optimizer)
    update(other, resumed)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("kwargs", [{"lr": -1}, {"lr": 1, "momentum": 1.0}, {"lr": 1, "trust": 0}])
def test_lars_rejects(kwargs):
    with pytest.raises(ValueError, match="LARS: needs lr >= 0"):
        LARS([nn.Parameter(torch.ones(1))], **kwargs)


def test_bias_and_norm_are_excluded_from_decay_and_adaptation():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    model[3].bias.requires_grad_(False)
    with_decay, without = parameter_groups(model, 0.1)
    assert [p.ndim for p in with_decay["params"]] == [4, 2]
    assert (with_decay["weight_decay"], with_decay["adapt"]) == (0.1, True)
    assert [p.ndim for p in without["params"]] == [1, 1, 1]  # conv bias, BN weight and bias
    assert (without["weight_decay"], without["adapt"]) == (0.0, False)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimizer_moves_the_weights_only_where_asked(name):
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(name, model, lr=0.1, weight_decay=0.01, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before["weight"])
    assert torch.equal(model.bias, before["bias"])


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="must be adamw, sgd or lars, got 'adam'"):
        make_optimizer("adam", nn.Linear(1, 1), lr=1, weight_decay=0, momentum=0)


def test_schedule_at_its_closed_form_points():
    def lr(step):
        return learning_rate(step, total=110, warmup=10, peak=2.0)

    assert lr(0) == pytest.approx(0.2)  # one tenth of the rise
    assert lr(4) == pytest.approx(1.0)
    assert lr(9) == pytest.approx(2.0)
    assert lr(10) == pytest.approx(2.0)  # start of the cosine
    assert lr(35) == pytest.approx(2.0 * (1 + math.sqrt(0.5)) / 2)  # a quarter down it
    assert lr(60) == pytest.approx(1.0)  # half
    assert lr(110) == pytest.approx(0.0)
    assert learning_rate(0, total=10, warmup=0, peak=2.0) == 2.0


def test_schedule_rises_then_falls():
    values = [learning_rate(step, total=50, warmup=7, peak=1.0) for step in range(50)]
    assert values[:7] == sorted(values[:7])
    assert values[7:] == sorted(values[7:], reverse=True)
    assert 0 < values[-1] < 0.01


def test_step_schedule_is_that_of_moco():
    """120 and 160 of 200 epochs, of 5 steps here."""

    def lr(step, warmup=0):
        return learning_rate(step, total=1000, warmup=warmup, peak=0.03, schedule="step")

    assert {lr(step) for step in range(600)} == {0.03}
    assert all(lr(step) == pytest.approx(0.003) for step in range(600, 800))
    assert all(lr(step) == pytest.approx(0.0003) for step in range(800, 1000))
    assert lr(4, warmup=10) == pytest.approx(0.015)
    with pytest.raises(ValueError, match="schedule must be cosine or step, got 'linear'"):
        learning_rate(0, total=1, warmup=0, peak=1.0, schedule="linear")


def test_lr_scaling():
    assert scaled_lr(0.3, 4096, "linear") == pytest.approx(4.8)  # SimCLR's at its batch
    assert scaled_lr(0.3, 1024, "sqrt") == pytest.approx(0.6)
    assert scaled_lr(0.3, 4096, "none") == 0.3
    with pytest.raises(ValueError, match="linear, sqrt or none, got 'cubic'"):
        scaled_lr(0.3, 256, "cubic")


def test_parts_of_a_method_have_settings_of_their_own():
    whole = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    parts = [{"module": whole[1], "lr_scale": 10.0, "betas": (0.5, 0.999)}, {"module": whole}]
    groups = parameter_groups(parts, 0.1)
    assert [(len(g["params"]), g["weight_decay"], g.get("lr_scale")) for g in groups] == [
        (1, 0.1, 10.0),
        (1, 0.0, 10.0),
        (1, 0.1, None),
        (1, 0.0, None),
    ]
    optimizer = make_optimizer("adamw", parts, lr=0.1, weight_decay=0.1, momentum=0.9)
    assert [group["betas"][0] for group in optimizer.param_groups] == [0.5, 0.5, 0.9, 0.9]


def test_the_loop_scales_the_learning_rate_of_a_part(tmp_path, monkeypatch):
    """With lr_scale 0 the projector stays as it began, and the rest does not."""
    fields = {"out": tmp_path, "steps": 2, "batch": 64, "width": 8, "evaluate": False}
    start = {}

    def groups(self):
        start.update({name: value.clone() for name, value in self.state_dict().items()})
        return [{"module": self.projector, "lr_scale": 0.0}, {"module": self}]

    monkeypatch.setattr(SimCLR, "optimizer_groups", groups)
    train("simclr", console=Console(io.StringIO()), knn_every=0, **fields)
    end = load(tmp_path / "checkpoint" / "last.pt")["method"]
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    weights = {name for name in moved if name.endswith("weight")}
    assert any(name.startswith("encoder.") for name in weights)
    assert not any(name.startswith("projector.") for name in weights)
