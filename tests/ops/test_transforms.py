"""Differentiation that the losses do not have is refused; it must never be a wrong number."""

import pytest
import torch
from torch.autograd import forward_ad

import sslops

X, Y = torch.randn(2, 6, 4)
LABELS = torch.arange(6) // 2
LOSSES = {
    "nt_xent": lambda x: sslops.nt_xent(x),
    "info_nce": lambda x: sslops.info_nce(x, Y),
    "info_nce of a queue": lambda x: sslops.info_nce(x, Y, queue=Y),
    "info_nce of both": lambda x: sslops.info_nce(x, x.roll(1, 0)),
    "clip_loss": lambda x: sslops.clip_loss(x, Y, 10.0),
    "sup_con": lambda x: sslops.sup_con(x, LABELS),
    "sigmoid_loss": lambda x: sslops.sigmoid_loss(x, Y, 10.0, -10.0),
    "cpc_loss": lambda x: sslops.cpc_loss(x.view(1, 2, 3, 4), Y.view(2, 3, 4)),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_backend = pytest.mark.parametrize("name", ["auto", "reference"])
NAMED = r"^(nt_xent|info_nce|sup_con|sigmoid_loss): differentiation by "


@each_loss
@each_backend
def test_forward_mode_is_refused(loss, name):
    with sslops.use_backend(name), forward_ad.dual_level():
        dual = forward_ad.make_dual(X, Y)
        with pytest.raises(RuntimeError, match=NAMED + "forward mode"):
            loss(dual)
        loss(X)  # a tensor without a tangent is as ever
    with pytest.raises(RuntimeError, match=NAMED + "forward mode"):
        torch.func.jvp(loss, (X,), (Y,))


@each_loss
@each_backend
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.jacrev])
def test_functional_transforms_are_refused(loss, name, transform):
    with sslops.use_backend(name), pytest.raises(RuntimeError, match=NAMED):
        transform(loss)(X)


@each_loss
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_batch_of_losses(loss):
    """Without gradients vmap calls the op once for each."""
    with torch.no_grad():
        found = torch.vmap(loss)(torch.stack([X, Y]))
        torch.testing.assert_close(found, torch.stack([loss(X), loss(Y)]))
