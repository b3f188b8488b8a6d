"""Optimisers, parameter groups and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = [
    "LARS",
    "clip_gradient",
    "learning_rate",
    "make_optimizer",
    "parameter_groups",
    "scaled_lr",
]


class LARS(torch.optim.Optimizer):
    r"""SGD with momentum whose step is scaled, tensor by tensor, to the weights' norm.

    $$ g' = g + \lambda w, \qquad
       v \leftarrow \mu v + \gamma\, \eta \frac{\lVert w\rVert}{\lVert g'\rVert}\, g', \qquad
       w \leftarrow w - v $$

    The ratio is one for groups with `adapt=False` (biases, batch norm) and where a norm is zero.

    Args:
        params: tensors, or groups that may set `adapt` and `weight_decay`.
        lr: gamma; inside the momentum buffer, as in SimCLR's code.
        momentum: mu.
        weight_decay: lambda.
        trust: eta, the trust coefficient.
        adapt: False for plain SGD with momentum.

    Source:
        You et al. 2017, arXiv:1708.03888, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt: bool = True,
    ) -> None:
        if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0 and trust > 0):
            raise ValueError(
                "LARS: needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0 and trust > 0, got"
                f" {lr}, {momentum}, {weight_decay} and {trust}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        update = grad.add(param, alpha=group["weight_decay"])
        if group["adapt"]:
            weight_norm, update_norm = param.norm(), update.norm()
            ratio = group["trust"] * weight_norm / update_norm
            # torch.where: no read on the host; 0 / 0 and x / 0 are both taken out
            update *= torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(update, alpha=group["lr"])
        param.sub_(buffer)


def parameter_groups(
    parts: nn.Module | Iterable[Mapping[str, Any]], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with decay; biases, norms and other 1-d tensors without.

    Both carry `adapt`, which only LARS reads.

    Args:
        parts: a module, or several with settings of their own, as `Method.optimizer_groups` says.
        weight_decay: of the first group.
    """
    groups, seen = [], set[Tensor]()
    for part in [{"module": parts}] if isinstance(parts, nn.Module) else parts:
        settings = {name: value for name, value in part.items() if name != "module"}
        params = [
            param
            for param in part["module"].parameters()
            if param.requires_grad and param not in seen
        ]
        seen.update(params)
        groups += [{**group, **settings} for group in _by_decay(params, weight_decay)]
    return [group for group in groups if group["params"]]


def _by_decay(params: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {
            "params": [param for param in params if param.ndim > 1],
            "weight_decay": weight_decay,
            "adapt": True,
        },
        {
            "params": [param for param in params if param.ndim <= 1],
            "weight_decay": 0.0,
            "adapt": False,
        },
    ]


def make_optimizer(
    name: Literal["adamw", "sgd", "lars"],
    parts: nn.Module | Iterable[Mapping[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    trust: float = 0.001,
) -> torch.optim.Optimizer:
    """AdamW, SGD with momentum as MoCo has it, or LARS, over `parameter_groups`.

    Raises:
        ValueError: unknown name.
    """
    groups = parameter_groups(parts, weight_decay)
    if name == "lars":
        return LARS(groups, lr, momentum=momentum, trust=trust)
    for group in groups:
        del group["adapt"]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum)
    raise ValueError(f"make_optimizer: name must be adamw, sgd or lars, got {name!r}")


def scaled_lr(lr: float, batch: int, rule: Literal["linear", "sqrt", "none"]) -> float:
    """`lr` is meant for 256 images a step; grow it with the batch, its root, or not at all."""
    factors = {"linear": batch / 256, "sqrt": math.sqrt(batch / 256), "none": 1.0}
    if rule not in factors:
        raise ValueError(f"scaled_lr: rule must be linear, sqrt or none, got {rule!r}")
    return lr * factors[rule]


def learning_rate(
    step: int,
    *,
    total: int,
    warmup: int,
    peak: float,
    schedule: Literal["cosine", "step"] = "cosine",
) -> float:
    """Linear rise over `warmup` steps, then the fall of the schedule.

    Args:
        step: 0 for the first update. It gets peak / warmup, and update `warmup` gets the peak.
        total: updates in the run.
        warmup: updates of the rise; 0 starts at the peak.
        peak: largest value.
        schedule: "cosine" is half a cosine down to zero after `total` updates; "step" divides by
            ten after 60 and after 80 % of them, as MoCo does after 120 and 160 of 200 epochs.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in ("cosine", "step"):
        raise ValueError(f"learning_rate: schedule must be cosine or step, got {schedule!r}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "step":
        return peak * 0.1 ** sum(step >= share * total for share in (0.6, 0.8))
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def clip_gradient(module: nn.Module, limit: float | None) -> Tensor:
    """The L2 norm of the whole gradient, which is scaled to `limit` where it is above."""
    grads = [each.grad for each in module.parameters() if each.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    # Of sharded gradients a DTensor; asked like this, as its module takes half a second to import.
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole.detach()
