"""Moving average of a whole network: schema, kernels per device, public function."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from sslops._library import define, op
from sslops._names import shown
from sslops.ops._checks import FLOATING, OR_TENSOR, check_floating, check_number, kind_of
from sslops.ops._wrappers import unwrapped
from sslops.reference import ema as _reference

__all__ = ["ema_update_"]

AVERAGED = frozenset(FLOATING)
ODD = (nn.Module, Tensor, Mapping)  # a state dict has tensors that are no parameters, in any order
INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _fake(
    targets: list[Tensor],
    sources: list[Tensor],
    momentum: Tensor | None,
    momentum_value: float,
    seed: int,
) -> None:
    return None


define(
    "ema_update_",
    "(Tensor(a!)[] targets, Tensor[] sources, Tensor? momentum, float momentum_value, int seed)"
    " -> ()",
    _reference.ema_update_,
    fake=_fake,
    triton="ema.ema_update_",
    cuda=True,
)


def ema_update_(
    targets: nn.Module | Iterable[Tensor],
    sources: nn.Module | Iterable[Tensor],
    momentum: float | Tensor,
    *,
    buffers: Literal["copy", "ema", "keep"] = "copy",
    stochastic_rounding: bool = False,
) -> None:
    r"""Move every target towards its source, all tensors of a network in one call.

        t <- m t + (1 - m) s

    In float32, or in float64 for a pair with float64; rounded once, to the target's dtype.
    m = 1 leaves every bit, m = 0 copies. Nothing is differentiated: parameters that require grad
    are written in place, as an optimizer does. A tensor that occurs twice (tied weights) is updated
    once. Integer and boolean tensors are copied.

    Args:
        targets: written; a module, or tensors of float16, bfloat16, float32 or float64.
        sources: a module with the same names of parameters and buffers, or as many tensors; each of
            its target's shape, of any of these dtypes. All on one device. Names are those inside of
            DistributedDataParallel, torch.compile and the like, which may wrap any module of either
            side. Of tensors divided among processes (DTensor), alike on both sides, each process
            moves its part.
        momentum: m in [0, 1], or a tensor of one element on that device, which is never read on
            the host on a GPU: its range is not checked.
        buffers: of modules: "copy" them, average the floating ones ("ema"), or leave them all alone
            ("keep"), as MoCo does: its key encoder's own forward moves its running statistics.
        stochastic_rounding: round float16 and bfloat16 targets up or down at random, each with the
            probability of its nearness: else an average in bfloat16 stands still once
            (1 - m) |s - t| is below 2**-9 |t|. The seed is drawn from PyTorch's default CPU
            generator, so `torch.manual_seed` repeats it. A captured CUDA graph repeats one seed.

    Raises:
        TypeError: not tensors or modules; or dtypes that cannot be averaged or copied.
        ValueError: names, numbers, shapes or devices that differ, a tensor that is both target and
            source, one target with two sources, momentum outside [0, 1], unknown `buffers`.
            Nothing is written then.

    Source: Polyak & Juditsky 1992; as a target network, He et al. 2020, arXiv:1911.05722, eq. 2.

    Example:
        >>> teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> expected = 0.9 * teacher.weight + 0.1 * student.weight
        >>> ema_update_(teacher, student, 0.9)
        >>> torch.allclose(teacher.weight, expected)
        True
    """
    if buffers not in ("copy", "ema", "keep"):
        raise ValueError(f"ema_update_: buffers must be copy, ema or keep, got {buffers!r}")
    if isinstance(targets, nn.Module) and isinstance(sources, nn.Module):
        pairs = _of_modules(targets, sources, buffers)
    elif isinstance(targets, ODD) or isinstance(sources, ODD) or not _both_lists(targets, sources):
        kinds = f"{type(targets).__name__} and {type(sources).__name__}"
        raise TypeError(f"ema_update_: needs two modules or two lists of tensors, got {kinds}")
    else:
        pairs = _of_lists(list(targets), list(sources))
    if not pairs.targets:
        return
    ours, theirs = _prepare(pairs)
    tensor, number = _momentum(momentum, ours, theirs)
    if not ours:
        return
    seed = int(torch.randint(1 << 62, (), device="cpu")) if stochastic_rounding else -1
    op("ema_update_", ours[0])(ours, theirs, tensor, number, seed)


class _Pairs(NamedTuple):
    names: list[str]
    targets: list[Tensor]
    sources: list[Tensor]
    averaged: int  # how many of them, from the first; the others are copied


def _both_lists(*given: object) -> bool:
    return all(isinstance(each, Iterable) for each in given)


def _of_lists(targets: list[Tensor], sources: list[Tensor]) -> _Pairs:
    if len(targets) != len(sources):
        raise ValueError(
            f"ema_update_: needs as many sources as targets, got {len(sources)} and {len(targets)}"
        )
    for each in chain(targets, sources):
        if not isinstance(each, Tensor):
            raise TypeError(f"ema_update_: needs tensors, got {kind_of('x', each)}")
    return _Pairs([], targets, sources, len(targets))


def _of_modules(target: nn.Module, source: nn.Module, by: str) -> _Pairs:
    ours, theirs = _names(target), _names(source)
    if by == "keep":
        ours, theirs = (ours[0], {}), (theirs[0], {})
    for kind, mine, other in zip(("parameters", "buffers"), ours, theirs, strict=True):
        if mine.keys() != other.keys():
            raise ValueError(
                f"ema_update_: the modules must have the same {kind}, got sources without"
                f" {shown(mine.keys() - other.keys())} and targets without"
                f" {shown(other.keys() - mine.keys())}"
            )
    parameters, buffers = ours
    return _Pairs(
        [*parameters, *buffers],
        [*parameters.values(), *buffers.values()],
        [theirs[0][name] for name in parameters] + [theirs[1][name] for name in buffers],
        len(parameters) + (len(buffers) if by == "ema" else 0),
    )


def _names(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers, tied ones too; in 40 % of the time of nn.Module's named_*.

    Without the names of wrappers: what is averaged may be compiled, or in DDP, on one side alone.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}

    def collect(module: nn.Module, prefix: str) -> None:
        module = unwrapped(module)
        for out, members in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in members.items():
                if tensor is not None:
                    out[prefix + name] = tensor
        for name, child in module._modules.items():
            if child is not None:
                collect(child, f"{prefix}{name}.")

    collect(module, "")
    return parameters, buffers


def _prepare(pairs: _Pairs) -> tuple[list[Tensor], list[Tensor]]:
    """What the op gets: checked, each target once, and what is copied as integers."""
    # a tied weight may come as another tensor object on the same memory; tracing has no memory
    memory: Callable[[Tensor], int] = id if torch.compiler.is_compiling() else Tensor.data_ptr
    names, targets, sources, averaged = pairs
    targets, sources = ([_local(each) for each in tensors] for tensors in (targets, sources))
    pairs = _Pairs(names, targets, sources, averaged)
    read = list(map(memory, sources))
    device = targets[0].device
    seen: dict[int, int] = {}
    for n, (t, s) in enumerate(zip(targets, sources, strict=True)):
        a, b = t.dtype, s.dtype
        if not (
            a in AVERAGED
            and b in AVERAGED
            and t.shape == s.shape
            and t.device == device
            and s.device == device
            and t.is_contiguous()
        ):
            _check_odd(pairs, n)
        key = memory(t)
        if key == 0:  # empty, or on the meta device
            continue
        first = seen.setdefault(key, n)
        if first != n and not (
            t.shape == targets[first].shape
            and t.stride() == targets[first].stride()
            and read[n] == read[first]
        ):
            raise ValueError(
                f"ema_update_: targets that share memory must share their source, got"
                f" {_name(pairs, first)} and {_name(pairs, n)}"
            )
    for n, key in enumerate(read):
        if key in seen:
            raise ValueError(
                f"ema_update_: no tensor may be both target and source, got {_name(pairs, n)} of"
                f" the sources, which is {_name(pairs, seen[key])} of the targets"
            )
    ours = [targets[n] for n in seen.values()]
    theirs = [sources[n] for n in seen.values()]
    for k, n in enumerate(seen.values()):
        dtype = ours[k].dtype
        if n >= averaged and (dtype.is_floating_point or dtype.is_complex):
            ours[k], theirs[k] = _as_integers(ours[k], theirs[k])
    return ours, theirs


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor divided among several (DTensor): it has an address."""
    plain = type(tensor) is Tensor or type(tensor) is nn.Parameter
    if plain or not hasattr(tensor, "to_local"):
        return tensor
    local: Tensor = cast(Any, tensor.detach()).to_local()
    return local


def _as_integers(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the same bits: the op copies integers, whatever the momentum."""
    source = source.to(target.dtype)
    if target.is_complex():
        target, source = torch.view_as_real(target), torch.view_as_real(source)
    dtype = INTEGER_OF_SIZE[target.element_size()]
    return target.view(dtype), source.view(dtype)


def _momentum(
    momentum: float | Tensor, targets: list[Tensor], sources: list[Tensor]
) -> tuple[Tensor | None, float]:
    if not isinstance(momentum, Tensor):
        check_number("ema_update_", "momentum", momentum, OR_TENSOR)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"ema_update_: momentum must be in [0, 1], got {momentum}")
        return None, float(momentum)
    check_floating("ema_update_", "momentum", momentum)
    if momentum.numel() != 1:
        raise ValueError(
            f"ema_update_: momentum must have one element, got shape {tuple(momentum.shape)}"
        )
    if momentum.device != targets[0].device:
        raise ValueError(
            f"ema_update_: momentum must be on the device of the targets, got {momentum.device} and"
            f" {targets[0].device}"
        )
    wide = any(each.dtype is torch.float64 for each in chain(targets, sources))
    dtype = torch.float64 if wide else torch.float32
    return momentum.detach().reshape(()).to(dtype), 0.0


def _name(pairs: _Pairs, n: int) -> str:
    return pairs.names[n] if pairs.names else f"tensor {n}"


def _check_odd(pairs: _Pairs, n: int) -> None:
    """Refuse a pair, or let it pass if it is merely copied or strided."""
    t, s, device = pairs.targets[n], pairs.sources[n], pairs.targets[0].device
    name = _name(pairs, n)
    if t.shape != s.shape:
        raise ValueError(
            f"ema_update_: a source must have the shape of its target, got {tuple(s.shape)} and"
            f" {tuple(t.shape)} for {name}"
        )
    if not t.device == s.device == device:
        raise ValueError(
            f"ema_update_: all tensors must be on one device, got {t.device} and {s.device} for"
            f" {name}, {device} before"
        )
    if t.dtype is not s.dtype and not AVERAGED.issuperset((t.dtype, s.dtype)):
        raise TypeError(
            f"ema_update_: a pair must be of float16, bfloat16, float32 and float64, or of one"
            f" dtype, got {t.dtype} and {s.dtype} for {name}"
        )
    if any(step == 0 and size > 1 for step, size in zip(t.stride(), t.shape, strict=True)):
        raise ValueError(
            f"ema_update_: a target's elements must not share memory, got strides {t.stride()} for"
            f" {name}"
        )
    if n < pairs.averaged and t.dtype not in AVERAGED and (t.is_floating_point() or t.is_complex()):
        raise TypeError(f"ema_update_: cannot average dtype {t.dtype}, got it for {name}")
