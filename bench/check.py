"""A wrong answer has no time: results are judged before anything is measured."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import DTYPES, OPS, Case
from bench.providers import Job
from bench.providers.chunked import LOSSES, expected_state
from bench.timing import gradients

# A wrong loss or gradient is off by its own size. These bounds let TF32 and rounded logits pass:
# how well each did is a column of the results.
TOLERANCE = {torch.float32: 5e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# Logits up to which the truth is computed in float64, and above that in float32.
FLOAT64_LOGITS = {"cpu": 1 << 28, "cuda": 1 << 33}
FLOAT32_LOGITS = 1 << 36


@dataclass(frozen=True)
class Truth:
    """What a step should give.

    Attributes:
        how: the precision it was computed in.
    """

    how: str
    loss: Tensor | None
    grads: dict[str, Tensor]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """How far an implementation is from the truth.

    Attributes:
        loss_error: relative, None for ops without a loss.
        grad_error: the largest of all inputs, in the norm, relative.
        missing: inputs that got no gradient.
        wrong: what is out of bounds, "" if nothing is.
    """

    loss_error: float | None
    grad_error: float
    missing: tuple[str, ...]
    wrong: str


def truth(case: Case) -> Truth:
    """By plain PyTorch in float64, a chunk of rows at a time."""
    logits = OPS[case.op].logits(case.size)
    dtype = torch.float64
    if logits > FLOAT64_LOGITS.get(case.device.type, 0):
        dtype = torch.float32 if logits <= FLOAT32_LOGITS else DTYPES[case.dtype.split("/")[0]]
    exact = case.to(dtype)
    state = {name: x.detach() for name, x in expected_state(exact).items()}
    how = str(dtype).removeprefix("torch.")
    if case.op not in LOSSES:
        return Truth(how, None, {}, state)
    loss = LOSSES[case.op](**exact.inputs)
    values = gradients(exact, loss)
    grads = {name: g for name, g in zip(exact.leaves, values, strict=True) if g is not None}
    return Truth(how, loss.detach(), grads, state)


def judge(case: Case, job: Job, expected: Truth) -> Verdict:
    """Run one step of `job` and compare what it computes and what it leaves."""
    loss_error, errors, missing = None, {"": 0.0}, []
    with job.context():
        if job.loss is not None and expected.loss is not None:
            loss = job.loss()
            for name, grad in zip(case.leaves, gradients(case, loss), strict=True):
                if grad is None:
                    missing.append(name)
                else:
                    errors[name] = _error(grad, expected.grads[name])
            difference = (loss.detach().double() - expected.loss.double()).abs()
            loss_error = float(difference / expected.loss.double().abs().clamp_min(1e-3))
        if job.after is not None:
            job.after()
    state = job.state()
    for name, tensor in expected.state.items():
        errors[name] = _error(state[name], tensor)
    worst = max(errors, key=lambda name: errors[name])
    kinds = [x.dtype for x in case.inputs.values() if x.is_floating_point()]
    bound = max(TOLERANCE[kind] for kind in kinds)
    wrong = ""
    if len(missing) == len(case.leaves) > 0:
        wrong = "no gradient at all"
    elif not errors[worst] <= bound:
        wrong = f"{worst} is off by {errors[worst]:.2g} of its norm, allowed {bound:g}"
    elif loss_error is not None and not loss_error <= bound:
        wrong = f"the loss is off by {loss_error:.2g}, allowed {bound:g}"
    return Verdict(loss_error, errors[worst], tuple(missing), wrong)


def _error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the norm; a scalar near zero is compared with 0.1 instead of with itself."""
    if actual.shape != expected.shape:
        return float("inf")
    size = expected.double().norm()
    if expected.ndim == 0:
        size = size + 0.1
    return float((actual.detach().double() - expected.double()).norm() / size.clamp_min(1e-30))
