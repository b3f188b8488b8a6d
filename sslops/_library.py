"""The one torch.library namespace of the package, and which implementation of an op runs.

Schemas are declared in Python (docs/adr/0002-schemas-in-python.md): every op exists even where
nothing was compiled, and compiled modules only add faster kernels for a device.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sslops.kernels._architectures import note, refusal

LIB = torch.library.Library("sslops", "DEF")  # type: ignore[no-untyped-call]
HAS_TRITON = importlib.util.find_spec("triton") is not None
BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")

_backend = "auto"
_has_extension = False


@functools.cache
def load_extension() -> bool:
    """Load sslops._C, whose static initialisers register the C++ kernels; False if not built."""
    global _has_extension
    if importlib.util.find_spec("sslops._C") is None:
        return False
    importlib.import_module("sslops._C")  # a broken build must raise, not fall back
    _has_extension = True  # a global, as torch.compile does not look into cached functions
    return True


@functools.cache
def load_cuda_extension() -> bool:
    """Load sslops._C_cuda, which has no Python in it; False if it was not built."""
    spec = importlib.util.find_spec("sslops._C_cuda")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)  # type: ignore[no-untyped-call]
    return True


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"use_backend: backend must be one of {BACKENDS}, got {name!r}")
    return name


class _UseBackend:
    """Returned by `use_backend`: leaving its `with` block restores what was chosen before."""

    def __init__(self, previous: str) -> None:
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        global _backend
        _backend = self._previous


def use_backend(name: str) -> _UseBackend:
    """Choose what implements every op, for benchmarks and tests; also a context manager.

    The environment variable SSLOPS_BACKEND sets the start value. For the whole process, not for
    one thread; a compiled graph keeps what was chosen when it was traced.

    Args:
        name: "auto", the compiled kernels on a CPU and Triton's on a GPU, but for GPUs that they
            are not for (`sslops doctor`); "reference", plain PyTorch; "cpp", the compiled CPU
            kernels; "triton" or "cuda", the GPU kernels of that kind, also on an architecture that
            nobody has tried.

    Raises:
        ValueError: unknown name. An op that is called on a device for which the chosen back end
            has no kernel raises RuntimeError.

    Example:
        >>> with use_backend("reference"):
        ...     backend()
        'reference'
    """
    global _backend
    previous, _backend = _backend, _checked(name)
    return _UseBackend(previous)


def backend() -> str:
    """The back end that `use_backend` or SSLOPS_BACKEND chose."""
    return _backend


_backend = _checked(os.environ.get("SSLOPS_BACKEND", "auto"))


def op(name: str, tensor: Tensor) -> Any:
    """The registered op `name`, or its plain twin if the reference was chosen.

    Args:
        name: without the namespace.
        tensor: one of the arguments; its device must suit the chosen back end.
    """
    if _backend == "reference":
        return getattr(torch.ops.sslops, name + "_reference")
    if _backend != "auto" and tensor.device.type != "meta":
        wants = "cpu" if _backend == "cpp" else "cuda"
        if tensor.device.type != wants:
            raise RuntimeError(
                f"{name}: the chosen back end {_backend} needs {wants} tensors, got a tensor on"
                f" {tensor.device}"
            )
        if _backend == "cpp" and not load_extension():
            raise RuntimeError(f"{name}: the chosen back end cpp needs sslops._C, not compiled")
    return getattr(torch.ops.sslops, name)


def runs_compiled(tensor: Tensor) -> bool:
    """Whether an op on `tensor` runs on the compiled CPU kernels, by device, dtype and back end.

    The one place to ask before memory is spent on what only they can use.
    """
    on_cpu = tensor.device.type == "cpu" and tensor.dtype is not torch.float64
    return on_cpu and _has_extension and _backend in ("auto", "cpp")


def define(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    triton: str | None = None,
    cuda: bool = False,
    on_gpu: Callable[..., bool] | None = None,
    tags: tuple[torch.Tag, ...] = (),
) -> None:
    """Define an op and its twin `<name>_reference`, which compiled kernels also fall back to.

    Args:
        name: without the namespace.
        schema: "(Tensor x, ...) -> ...".
        reference: implementation in plain PyTorch, for any device without a kernel of its own.
        fake: shapes and dtypes of the results.
        triton: "<module>.<function>" below sslops.kernels, with the reference's signature.
            Imported at the first call: the import costs more than all of sslops.
        cuda: whether csrc/cuda has a kernel, registered as `<name>_cuda`.
        on_gpu: whether the GPU kernels are for these arguments; else the reference runs. Default:
            for all.
        tags: of torch.Tag.
    """
    plain = _without_autocast(reference)
    for twin in (name, name + "_reference"):
        LIB.define(twin + schema, tags=tags)  # type: ignore[no-untyped-call]
        LIB.impl(twin, plain, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"sslops::{twin}", fake, lib=LIB)
    if cuda:
        LIB.define(f"{name}_cuda{schema}", tags=tags)  # type: ignore[no-untyped-call]
    if triton is None and not cuda:
        return

    def run_on_gpu(*args: Any) -> Any:
        kernel = gpu_kernel(name, triton if HAS_TRITON else None, cuda, args)
        if kernel is None or not (on_gpu is None or on_gpu(*args)):
            return reference(*args)
        for n in written:  # or autograd would not notice that a saved tensor has changed
            tensors = args[n] if isinstance(args[n], list) else [args[n]]
            tensors = [t for t in tensors if t is not None and not t.is_inference()]
            torch.autograd.graph.increment_version(tensors)
        return kernel(*args)

    arguments = getattr(torch.ops.sslops, name).default._schema.arguments
    written = [n for n, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    LIB.impl(name, _without_autocast(run_on_gpu), "CUDA")  # type: ignore[no-untyped-call]


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with autocast off, which inside an op would round every product once more."""

    def run(*args: Any) -> Any:
        kinds = {each.device.type for each in args if isinstance(each, Tensor)} - {"meta"}
        active = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
        if not active:
            return function(*args)
        with torch.autocast(active[0], enabled=False):
            return function(*args)

    return run


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    each = (t for arg in args for t in (arg if isinstance(arg, list) else (arg,)))
    return (t for t in each if isinstance(t, Tensor))


def gpu_kernel(name: str, triton: str | None, cuda: bool, args: tuple[Any, ...]) -> Any:
    """What runs `args` on a GPU; None for the reference, which alone takes float64, or any GPU."""
    if any(each.dtype is torch.float64 for each in _tensors(args)):
        return None
    device = next(each.device for each in _tensors(args))
    if why := refusal(device, chosen=_backend != "auto"):
        if _backend != "auto":
            raise RuntimeError(f"{name}: the chosen back end {_backend} {why}")
        note(device, why)
        return None
    if _backend == "cuda" or triton is None:
        if cuda and load_cuda_extension():
            return getattr(torch.ops.sslops, name + "_cuda")
        if _backend == "cuda":
            raise RuntimeError(f"{name}: the chosen back end cuda has no compiled kernel of it")
        return None
    module, function = triton.split(".")
    return getattr(importlib.import_module(f"sslops.kernels.{module}"), function)


def register_autograd(
    forward: str, backward: str, gradient: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Differentiate `forward` through `gradient`; refuse to differentiate `backward`.

    As torch.library.register_autograd, less what that does at each call for arguments with
    default values, which no op here has: 40 us for a dozen of arguments.

    Args:
        forward: name of the op, without the namespace, as is `backward`.
        backward: the op that `gradient` calls.
        gradient: `gradient(op, ctx, *grads)`, where `op` is the backward op or its twin; returns
            one gradient an argument of `forward`.
        setup_context: `setup_context(ctx, inputs, output)`.
    """

    def refuse(*_: Any) -> None:
        raise RuntimeError(
            f"{forward.removesuffix('_fwd')}: double backward is not implemented, got a second"
            " differentiation (create_graph=True); write the loss with plain PyTorch ops where"
            " second derivatives are needed"
        )

    for suffix in ("", "_reference"):
        bwd = getattr(torch.ops.sslops, backward + suffix)
        _differentiate(forward + suffix, functools.partial(gradient, bwd), setup_context)
        _differentiate(backward + suffix, refuse, lambda ctx, inputs, output: None)


def _refused(name: str, what: str, instead: str) -> RuntimeError:
    loss = name.removesuffix("_reference").removesuffix("_fwd")
    return RuntimeError(
        f"{loss}: differentiation by {what} is not implemented, got a tensor that needs it; use"
        f" {instead}, or write the loss with plain PyTorch ops"
    )


def _refuse_tangents(name: str, args: tuple[Any, ...]) -> None:
    tensors = (each for each in args if isinstance(each, Tensor) and each.is_floating_point())
    unpack: Any = forward_ad.unpack_dual
    if any(unpack(each).tangent is not None for each in tensors):
        raise _refused(name, "forward mode", "torch.autograd.grad or .backward()")


def _differentiate(
    name: str, gradient: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    overload = getattr(torch.ops.sslops, name).default
    after_autograd = torch._C._after_autograd_keyset

    def below(keyset: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & after_autograd, *args)

    class Apply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, keyset = args
            output = below(keyset, *inputs)
            setup_context(ctx, tuple(inputs), output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return *gradient(ctx, *grads), None

    def implementation(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0:  # or tangents would be lost without a word
            _refuse_tangents(name, args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if torch._C._are_functorch_transforms_active():
                raise _refused(name, "torch.func", "torch.autograd.grad or .backward()")
            return Apply.apply(*args, keyset)  # type: ignore[no-untyped-call]
        return below(keyset, *args)

    LIB.impl(name, implementation, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
