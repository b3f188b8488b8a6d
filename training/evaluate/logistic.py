"""Logistic regression for many strengths and many subsets of the same rows at once.

    loss[g] = sum_i m[i, g] CE(x[i] W[g] + b[g], y[i]) / n[g]  +  |W[g]|^2 / (2 C[g] n[g])
    n[g]    = sum_i m[i, g]

which is scikit-learn's objective. Cross-validation wants 3 folds x 5 strengths = 15 such problems
on nearly the same rows: side by side they are wide matrix products instead of 15 thin ones.
L-BFGS after Nocedal & Wright 2006, algorithm 7.4, with a step length and a history a problem.

Features of one map are correlated by orders of magnitude, which plain L-BFGS feels. A rotation of
the features changes neither the penalty nor the predictions, so the fit runs along the principal
axes of the rows, where a diagonal is close to the Hessian (exactly so at W = 0, where every class
has p = 1 / K) and stands for its inverse: 1 / (variance / K + penalty).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MAX_ITERATIONS", "TOLERANCE", "Linear", "fit", "principal_axes"]

MAX_ITERATIONS = 200
TOLERANCE = 1e-3
HISTORY = 10
ARMIJO = 1e-4
ROUNDING = 1e-12  # of the largest variance: along such an axis float32 holds nothing else
HALVINGS = 20
_TINY = 1e-12

# theta [G, K, D + 1] of the problems at [G] -> losses [G], gradient [G, K, D + 1]
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Linear(NamedTuple):
    """G linear classifiers: weight [G, D, K], bias [G, K]."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """[N, D] -> classes [G, N]."""
        return torch.stack(
            [(features @ w + b).argmax(1) for w, b in zip(self.weight, self.bias, strict=True)]
        )


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strengths: Tensor,
    *,
    members: Tensor | None = None,
    axes: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Linear:
    """Fit G classifiers.

    Args:
        features: [N, D] float32.
        labels: [N] int64.
        classes: K.
        strengths: [G], the C of each; a larger one is a weaker penalty.
        members: [N, G] bool, the rows each may see; all if None.
        axes: `principal_axes(features)`, for who fits to the same features again.
        tolerance: a problem is solved where no entry of its gradient, over the square root of the
            curvature along its axis, is larger, as a share of the largest one at the start.
        max_iterations: stop there in any case.

    Returns:
        The classifiers, on the device of the features.
    """
    N, K, G = len(features), classes, len(strengths)
    if members is None:
        members = torch.ones(N, G, dtype=torch.bool)
    counts = members.sum(0).to(features)  # [G]
    shares = (members.to(features) / counts).T.contiguous()  # [G, N]; rows sum to 1
    penalties = 1 / (strengths.to(features) * counts)  # [G]
    axes = principal_axes(features) if axes is None else axes  # [D, R]
    rotated = features @ axes
    variances = rotated.square().mean(0)
    kept = variances > ROUNDING * variances.max()
    axes, rotated, variances = axes[:, kept], rotated[:, kept], variances[kept]
    rows = torch.cat([rotated, features.new_ones(N, 1)], 1)  # the last weight is the bias
    columns = rows.T.contiguous()
    R = rotated.shape[1]
    curvature = features.new_full((G, R + 1), 1 / K)  # that of the bias
    curvature[:, :R] = variances / K + penalties[:, None]
    preconditioner = curvature.clamp_min(_TINY).reciprocal()[:, None]  # [G, 1, R + 1]

    def objective(theta: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        G, share, penalty = len(which), shares[which], penalties[which]
        # Images run along rows: thin products are twice as fast so, and so are sums over classes.
        logits = (theta.flatten(0, 1) @ columns).view(G, K, N)
        index = labels.expand(G, 1, N)
        logits -= logits.amax(1, keepdim=True)
        picked = logits.gather(1, index)[:, 0]  # [G, N]
        p = logits.exp_()
        total = p.sum(1)  # [G, N]
        loss = (share * (total.log() - picked)).sum(1)
        p *= (share / total)[:, None]
        p.scatter_(1, index, p.gather(1, index) - share[:, None])
        grad = (p.flatten(0, 1) @ rows).view(G, K, R + 1)
        grad[:, :, :R] += penalty[:, None, None] * theta[:, :, :R]
        return loss + 0.5 * penalty * _dot(theta[:, :, :R], theta[:, :, :R]), grad

    start = features.new_zeros(G, K, R + 1)
    theta = _minimise(objective, start, preconditioner, tolerance, max_iterations)
    return Linear(axes @ theta[:, :, :R].transpose(1, 2), theta[:, :, R])


def principal_axes(features: Tensor) -> Tensor:
    """[N, D] -> orthonormal [D, R], R = min(N, D): no weight leaves the span of the rows."""
    N, D = features.shape
    span = torch.linalg.qr(features.T).Q if N < D else None  # [D, N]
    rows = features if span is None else features @ span
    axes = _eigenvectors(rows.T @ rows)
    axes = axes if span is None else span @ axes
    return axes * (features != 0).any(0)[:, None]  # exactly no weight where there is no feature


def _eigenvectors(gram: Tensor) -> Tensor:
    """Of a symmetric matrix; float32's algorithm may fail where many features are constant."""
    try:
        vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        vectors = torch.linalg.eigh(gram.double()).eigenvectors.to(gram)
    return vectors


def _minimise(
    objective: Objective,
    start: Tensor,
    preconditioner: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """L-BFGS on each problem; one that is solved leaves the batch."""
    result = start.clone()
    which = torch.arange(len(start), device=start.device)  # the problems still at work
    theta = start
    loss, grad = objective(theta, which)
    unit = preconditioner.sqrt()  # without it the axis of most variance would speak for all
    limit = tolerance * _largest(grad * unit).clamp_min(_TINY)
    pairs: list[tuple[Tensor, Tensor]] = []  # steps and changes of the gradient
    for _ in range(max_iterations):
        going = _largest(grad * unit) > limit
        if not going.all():
            result[which[~going]] = theta[~going]
            which, theta, loss, grad, limit, preconditioner, unit = (
                x[going] for x in (which, theta, loss, grad, limit, preconditioner, unit)
            )
            pairs = [(s[going], y[going]) for s, y in pairs]
            if not len(which):
                return result
        direction = -_times_inverse_hessian(grad, pairs, preconditioner)
        slope = _dot(grad, direction)
        scale = torch.ones_like(loss)
        for _ in range(HALVINGS):
            candidate = theta + scale[:, None, None] * direction
            new_loss, new_grad = objective(candidate, which)
            # Rounding of the loss is no reason to shorten a step.
            low = new_loss <= loss + ARMIJO * scale * slope + 1e-6 * loss.abs()
            if low.all():
                break
            scale = torch.where(low, scale, scale / 2)
        pairs = [*pairs, (candidate - theta, new_grad - grad)][-HISTORY:]
        theta, loss, grad = candidate, new_loss, new_grad
    result[which] = theta
    return result


def _times_inverse_hessian(
    grad: Tensor, pairs: list[tuple[Tensor, Tensor]], preconditioner: Tensor
) -> Tensor:
    """The two-loop recursion; a pair without positive curvature counts for nothing."""
    q = grad.clone()
    used = []
    scale = torch.ones_like(grad[:, 0, 0])
    for newest, (s, y) in enumerate(reversed(pairs)):
        curvature = _dot(s, y)
        rho = torch.where(curvature > _TINY, 1 / curvature.clamp_min(_TINY), 0)
        alpha = rho * _dot(s, q)
        q -= alpha[:, None, None] * y
        used.append((rho, alpha, s, y))
        if newest == 0:
            length = _dot(y, preconditioner * y).clamp_min(_TINY)
            scale = torch.where(rho > 0, curvature / length, 1)
    q *= scale[:, None, None] * preconditioner
    for rho, alpha, s, y in reversed(used):
        q += (alpha - rho * _dot(y, q))[:, None, None] * s
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[G, ...] and [G, ...] -> [G]."""
    return (a * b).flatten(1).sum(1)


def _largest(a: Tensor) -> Tensor:
    """[G, ...] -> [G]."""
    return a.abs().flatten(1).amax(1)
