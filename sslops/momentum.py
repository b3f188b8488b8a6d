"""The network that follows another one: MoCo's key encoder, BYOL's target, DINO's teacher."""

import copy
import math
import weakref
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslops._names import shown
from sslops.ops._checks import check_number
from sslops.ops._wrappers import plain_name
from sslops.ops.ema import ema_update_

__all__ = ["MomentumEncoder", "cosine_momentum"]


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder that is no part of the gradient and follows by a moving average.

        encoder <- m encoder + (1 - m) source

    One call of `sslops.ema_update_` for all parameters and buffers. The encoder that is followed is
    no submodule: `state_dict` and `parameters` hold the copy alone, under `encoder.`. Names of
    wrappers (DistributedDataParallel, torch.compile) make no difference between the two, nor to
    `load_state_dict`. A deep copy, and what comes out of a pickle, follows the encoder that was
    copied with it, as in a copy of a method that holds both, or the parts of it; copied alone it
    has none to follow.

    Args:
        encoder: the one to copy and to follow.
        momentum: m in [0, 1] where `update` is given none.
        buffers: running statistics and the like: "copy" them, average the floating ones ("ema"), or
            "keep" what the copy's own forward passes in train mode leave in them (MoCo).
        stochastic_rounding: of copies in float16 or bfloat16; see `sslops.ema_update_`.
        dtype: of the copy's floating parameters and buffers, float32 for an average that keeps
            what a bfloat16 encoder's steps would lose; default as the encoder.

    Raises:
        ValueError: momentum outside [0, 1], unknown `buffers`; and what `sslops.ema_update_`
            raises, in `update`.
        RuntimeError: `update` without a source, of a copy that was made without its encoder.

    Source: He et al. 2020, arXiv:1911.05722, eq. 2. Grill et al. 2020, arXiv:2006.07733, eq. 1.

    Example:
        >>> encoder = torch.nn.Linear(4, 2)
        >>> target = MomentumEncoder(encoder, momentum=0.99)
        >>> target(torch.randn(3, 4)).requires_grad
        False
        >>> target.update()
    """

    def __init__(
        self,
        encoder: nn.Module,
        momentum: float = 0.999,
        *,
        buffers: Literal["copy", "ema", "keep"] = "copy",
        stochastic_rounding: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"MomentumEncoder: encoder must be a module, got {type(encoder).__name__}"
            )
        check_number("MomentumEncoder", "momentum", momentum)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"MomentumEncoder: momentum must be in [0, 1], got {momentum}")
        if buffers not in ("copy", "ema", "keep"):
            raise ValueError(f"MomentumEncoder: buffers must be copy, ema or keep, got {buffers!r}")
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        for tensor in chain(self.encoder.parameters(), self.encoder.buffers()):
            if dtype is not None and tensor.is_floating_point():  # nn.Module.to cuts complex ones
                tensor.data = tensor.data.to(dtype)
        self._followed = _Followed(encoder)  # nn.Module would register the encoder itself
        self.momentum = momentum
        self.buffers_by: Literal["copy", "ema", "keep"] = buffers
        self.stochastic_rounding = stochastic_rounding

    def update(
        self, source: nn.Module | None = None, momentum: float | Tensor | None = None
    ) -> None:
        """Move the copy towards `source`, by default the encoder that it was made from.

        Args:
            source: a module with the same names of parameters and buffers; it or any part of it
                may be wrapped.
            momentum: of this step, a number or a tensor of one element on the device; default the
                constructor's.
        """
        ema_update_(
            self.encoder,
            self._followed.encoder() if source is None else source,
            self.momentum if momentum is None else momentum,
            buffers=self.buffers_by,
            stochastic_rounding=self.stochastic_rounding,
        )

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy returns, without gradient."""
        return self.encoder(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module; what does not fit is named in few words."""
        try:
            found = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:  # a line for each tensor of another shape
            heading, *lines = str(error).split("\n\t")
            if not lines:
                raise
            more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
            raise RuntimeError(f"MomentumEncoder: {heading} {lines[0]:.300}{more}") from None
        if strict and (found.missing_keys or found.unexpected_keys):
            raise RuntimeError(
                "MomentumEncoder: the state dict must have the names of the encoder, got one"
                f" without {shown(set(found.missing_keys))} and with"
                f" {shown(set(found.unexpected_keys))}"
            )
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = [prefix + name for name in self.state_dict()]
        by_plain_name = {plain_name(name): name for name in own}
        if len(by_plain_name) == len(own):
            for name in [each for each in state_dict if each.startswith(prefix)]:
                mine = by_plain_name.get(plain_name(name), name)
                if name not in own and mine not in state_dict:
                    state_dict[mine] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The hyper-parameters, as `print(model)` shows them."""
        rounding = ", stochastic_rounding=True" if self.stochastic_rounding else ""
        return f"momentum={self.momentum:g}, buffers={self.buffers_by!r}{rounding}"


class _Followed:
    """Holds an encoder; a copy holds the encoder's copy only as long as something else does.

    Else a copy would follow weights that nobody trains, without a word.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._followed: nn.Module | _Copied = encoder

    def encoder(self) -> nn.Module:
        followed = self._followed
        if isinstance(followed, nn.Module):
            return followed
        found = followed.module()
        if not followed.is_held() and _has_parameters(found):
            raise RuntimeError(
                "MomentumEncoder: a copy follows the encoder that was copied with it, got one that"
                " was copied alone; copy both in one call, or give update(source)"
            )
        return found

    def _now(self) -> nn.Module:
        followed = self._followed
        return followed if isinstance(followed, nn.Module) else followed.module()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Followed":
        return _following_a_copy(copy.deepcopy(self._now(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _following_a_copy, (self._now(),)


def _following_a_copy(encoder: nn.Module) -> _Followed:
    followed = _Followed.__new__(_Followed)
    followed._followed = _Copied(encoder)
    return followed


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


class _Copied:
    """The tensors of a module, without the module: what is in it tells whether others hold it.

    What was followed may be a container, or a wrapper, that nobody else holds: its parts count.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        # missing in a module that refers to its average: it is filled after this
        self._parameters: dict[str, nn.Parameter | None] = getattr(module, "_parameters", {})
        self._buffers: dict[str, Tensor | None] = getattr(module, "_buffers", {})
        children: dict[str, nn.Module | None] = getattr(module, "_modules", {})
        self._parts = {n: None if each is None else _Copied(each) for n, each in children.items()}

    def is_held(self) -> bool:
        """Whether any module with parameters lives on."""
        found = self._module()
        if found is not None and _has_parameters(found):
            return True
        return any(part is not None and part.is_held() for part in self._parts.values())

    def module(self) -> nn.Module:
        """The module, or one like it of the parts that live on and the tensors of the others."""
        found = self._module()
        if found is None:
            found = nn.Module()
            found._parameters, found._buffers = self._parameters, self._buffers
            for name, part in self._parts.items():
                found._modules[name] = None if part is None else part.module()
        return found


def cosine_momentum(step: int, total: int, base: float = 0.996) -> float:
    r"""Momentum that rises from `base` to 1 over a training run.

        m = 1 - (1 - base) (cos(pi step / total) + 1) / 2

    Args:
        step: from 0; past `total` it counts as `total`.
        total: steps of the run.
        base: m at step 0; BYOL has 0.996, MoCo v3 0.99.

    Raises:
        ValueError: base outside [0, 1], a negative step, or no steps.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.2; Chen et al. 2021, arXiv:2104.02057.

    Example:
        >>> [round(cosine_momentum(step, 100), 4) for step in (0, 50, 100)]
        [0.996, 0.998, 1.0]
    """
    check_number("cosine_momentum", "base", base)
    check_number("cosine_momentum", "step", step)
    check_number("cosine_momentum", "total", total)
    if not 0.0 <= base <= 1.0:
        raise ValueError(f"cosine_momentum: base must be in [0, 1], got {base}")
    if step < 0 or total < 1:
        raise ValueError(
            f"cosine_momentum: needs step >= 0 and total >= 1, got step {step} of {total}"
        )
    return 1.0 - (1.0 - base) * (math.cos(math.pi * min(step, total) / total) + 1.0) / 2.0
