"""Losses that compare a whole batch, with the activations of a few rows at a time (GradCache)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslops._names import shown
from sslops._parallel import Averaging
from sslops._replay import Autocast, Buffers, Draws, kept_buffers
from sslops._tree import concatenate, map_tensors, split_rows, tensors_of

__all__ = ["GradCache", "kept_buffers"]

Encoder = Callable[..., Any]


class _Piece(NamedTuple):
    """A micro-batch: the number of its input, what encodes it, and its rows."""

    column: int
    encoder: Encoder
    rows: Any

    def __call__(self) -> Any:
        if isinstance(self.rows, Mapping):
            return self.encoder(**self.rows)
        if isinstance(self.rows, tuple | list):
            return self.encoder(*self.rows)
        return self.encoder(self.rows)


class GradCache:
    r"""A contrastive loss of a batch whose activations do not fit in memory.

    The encoders run twice. First without graph, micro-batch after micro-batch, for all embeddings
    $z_i = f(x_i)$, from which the loss is computed once, with every negative of the batch. Its
    backward pass gives $g_i = \partial L / \partial z_i$, runs the encoders again, each micro-batch
    with the random numbers and the autocast of its first time, and adds up

    $$ \frac{\partial L}{\partial \theta} = \sum_i g_i^\top \frac{\partial z_i}{\partial \theta}. $$

    Parameters of the loss (a temperature) get their gradient from the loss itself. Batch
    normalisation has the statistics of a micro-batch; running statistics and other buffers are
    written by the second pass alone. Gradients are those of embedding the micro-batches one after
    the other with graph; where rows do not depend on each other and nothing is random, those of
    the whole batch.

    Args:
        encoders: one for all inputs, or one for each. Called with a tensor, with the members of a
            tuple or list, or with the items of a mapping as keywords; returns a tensor or a nest
            of tensors with one row for each row of its input. The loss gets a dict of the type
            that came (ModelOutput) where its items as keywords make one, else a plain one.
        loss: from the embeddings of each input to a scalar, to a tuple that begins with it, or to
            a dict that has it as "loss".
        micro_batch: rows that are encoded at once; one number, or one for each input.
        model: module that the encoders run, where they are functions: its buffers are kept, and
            DistributedDataParallel in it averages gradients in the last micro-batch alone.
        split: (input, size) to its parts; default: along the first dimension of every tensor.
        generators: from which the encoders draw besides torch's own. Numbers of `random` and
            `numpy.random` are not drawn again.

    Raises:
        ValueError: wrong `micro_batch`, or a function as encoder without `model`.

    Source: Gao et al. 2021, arXiv:2101.06983, section 3.

    Example:
        >>> from sslops.nn import ClipLoss
        >>> encoder = torch.nn.Linear(8, 4)
        >>> step = GradCache(encoder, ClipLoss(0.1), micro_batch=16)
        >>> loss = step(torch.randn(64, 8), torch.randn(64, 8))
        >>> loss.backward()
        >>> encoder.weight.grad.shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        encoders: Encoder | Sequence[Encoder],
        loss: Callable[..., Any],
        micro_batch: int | Sequence[int],
        *,
        model: nn.Module | None = None,
        split: Callable[[Any, int], list[Any]] | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        sizes: list[Any] = list(micro_batch) if isinstance(micro_batch, Iterable) else [micro_batch]
        if not sizes or not all(isinstance(size, Integral) and int(size) >= 1 for size in sizes):
            raise ValueError(
                "GradCache: micro_batch must be an integer of at least 1, or one for each input,"
                f" got {micro_batch!r}"
            )
        for each in (loss, *([encoders] if not isinstance(encoders, Sequence) else encoders)):
            if not callable(each):
                raise TypeError(
                    "GradCache: encoders and loss must be modules or functions, got"
                    f" {type(each).__name__}"
                )
        self._encoders: list[Encoder] = [encoders] if callable(encoders) else list(encoders)
        if model is None and not all(isinstance(each, nn.Module) for each in self._encoders):
            raise ValueError(
                "GradCache: model must name the module behind encoders that are functions, got None"
            )
        self._own_split = split is None
        self._split = split or split_rows
        self._sizes, self._loss, self._generators = sizes, loss, tuple(generators)
        behind = [e if isinstance(e, nn.Module) else model for e in self._encoders]
        self._modules = [module for module in behind if module is not None]

    def __call__(self, *inputs: Any, **arguments: Any) -> Any:
        """Compute the loss; its `backward` fills the gradients and may be called once.

        A scale (`GradScaler.scale(loss).backward()`) or a weight (`(loss / 2).backward()`)
        reaches the encoders. `torch.autograd.grad` of the loss does not: it needs `backward`.

        Args:
            inputs: as many as encoders, or any number for one encoder.
            arguments: handed to the loss.

        Returns:
            What the loss returns; everything but the scalar is detached.

        Raises:
            ValueError: numbers of inputs, encoders and micro-batch sizes that do not match, an
                empty input, tensors of an input or embeddings that differ in their rows, or a
                loss that is no scalar.
            RuntimeError: in `backward`, at its second call, or if the weights have changed since
                the loss was computed; DistributedDataParallel that the encoders pass by.
        """
        return _Step(self, self._pieces(inputs)).loss(arguments)

    def _pieces(self, inputs: Sequence[Any]) -> list[_Piece]:
        count, encoders, sizes = len(inputs), self._encoders, self._sizes
        if not inputs or len(encoders) not in (1, count) or len(sizes) not in (1, count):
            raise ValueError(
                "GradCache: needs an encoder and a micro-batch size for each input, or one for"
                f" all, got {len(encoders)} and {len(sizes)} for {count} inputs"
            )
        pieces: list[_Piece] = []
        for column, value in enumerate(inputs):
            encoder, size = encoders[column % len(encoders)], sizes[column % len(sizes)]
            pieces += [_Piece(column, encoder, part) for part in self._split(value, size)]
        return pieces


class _Step:
    """One loss and its backward pass."""

    def __init__(self, cache: GradCache, pieces: list[_Piece]) -> None:
        self.cache, self.pieces = cache, pieces
        inputs = [tensor for piece in pieces for tensor in tensors_of(piece.rows)]
        weights = [p for module in cache._modules for p in module.parameters()]
        places = list({tensor.device: tensor for tensor in [*inputs, *weights]}.values())
        self.places = places
        self.autocast = Autocast(places)
        self.draws: list[Draws] = []
        self.leaves: list[list[Tensor]] = []  # of each input
        self.counts: list[list[int]] = [[] for _ in range(pieces[-1].column + 1)]
        self.buffers = Buffers()
        self.averaging = Averaging(cache._modules, [piece.encoder for piece in pieces])

    def loss(self, arguments: dict[str, Any]) -> Any:
        embeddings = self._embed()
        returned = self.cache._loss(*embeddings, **arguments)
        loss = returned
        if isinstance(returned, Mapping):
            loss = returned.get("loss")
        elif isinstance(returned, tuple | list):
            loss = returned[0]
        if not isinstance(loss, Tensor) or loss.ndim:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss)}"
            raise ValueError(f"GradCache: the loss must be a scalar tensor, got {what}")
        result = loss.detach()
        if loss.requires_grad:
            self._inner: Tensor | None = loss
            self.versions = self._versions()
            hook = torch.empty(0, requires_grad=True)
            result = _Replay.apply(hook, result, self.backward)  # type: ignore[no-untyped-call]
        return map_tensors(returned, lambda t: result if t is loss else t.detach())

    def _embed(self) -> list[Any]:
        """Embeddings of each input, as leaves of a new graph."""
        parts: list[list[Any]] = [[] for _ in self.counts]
        wanted: list[list[bool]] = [[] for _ in self.counts]
        with ExitStack() as stack:
            if not self.averaging.modules:
                self.buffers.take(self.cache._modules)
            for module in self.averaging.modules:  # it may first write buffers of its own process
                handle = module.module.register_forward_pre_hook(
                    lambda *_: self.buffers.take(self.cache._modules)
                )
                stack.callback(handle.remove)
            for piece in self.pieces:
                self.draws.append(Draws(self.places, self.cache._generators))
                first = not parts[piece.column]
                # The first one is run with graph to learn which embeddings have a gradient.
                with (
                    self.averaging.postponed(None),
                    self.autocast.again(),
                    torch.set_grad_enabled(torch.is_grad_enabled() and first),
                ):
                    out = piece()
                tensors = tensors_of(out)
                if first:
                    wanted[piece.column] = [tensor.requires_grad for tensor in tensors]
                self.counts[piece.column].append(self._rows(piece, tensors))
                parts[piece.column].append(map_tensors(out, torch.Tensor.detach))
                del out, tensors
        if self.averaging.modules and not self.buffers.taken:
            raise RuntimeError(
                "GradCache: encoders must call the DistributedDataParallel module itself, or"
                " nothing averages their gradients, got functions that pass it by"
            )
        self.buffers.restore()
        embeddings = [concatenate(column) for column in parts]
        for embedding, flags in zip(embeddings, wanted, strict=True):
            leaves = tensors_of(embedding)
            for leaf, flag in zip(leaves, flags, strict=True):
                leaf.requires_grad_(flag)
            self.leaves.append(leaves)
        return embeddings

    def _rows(self, piece: _Piece, tensors: list[Tensor]) -> int:
        rows = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
        expected = rows
        if self.cache._own_split:
            expected = {len(tensor) for tensor in tensors_of(piece.rows) if tensor.ndim}
        if len(rows) != 1 or rows != expected or rows == {0}:
            raise ValueError(
                "GradCache: an encoder must return one row for each row of its micro-batch, got"
                f" {shown(rows)} for {shown(expected)}"
            )
        return rows.pop()

    def backward(self, grad: Tensor) -> None:
        if self._inner is None:
            raise RuntimeError(
                "GradCache: a loss has one backward pass, got a second; compute the loss again"
            )
        if self.versions != self._versions():
            raise RuntimeError(
                "GradCache: the weights must stay as they are between the loss and its backward"
                " pass, got changed ones; call backward before the optimiser's step"
            )
        inner, self._inner = self._inner, None
        with torch.enable_grad():
            inner.backward(grad)  # type: ignore[no-untyped-call]
        del inner
        grads = [[leaf.grad for leaf in leaves] for leaves in self.leaves]
        self.leaves.clear()
        starts = [0] * len(grads)
        turn = [iter(counts) for counts in self.counts]
        for number, piece in enumerate(self.pieces):
            start = starts[piece.column]
            starts[piece.column] = end = start + next(turn[piece.column])
            part = [None if g is None else g[start:end] for g in grads[piece.column]]
            with self.averaging.postponed(number), torch.enable_grad():
                with self.draws[number].again(), self.autocast.again():
                    out = piece()
                self._add(number, tensors_of(out), part)
                del out
        self.pieces, self.draws = [], []

    def _add(self, number: int, outs: list[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of a micro-batch to those of the weights."""
        pairs = [
            (out, grad)
            for out, grad in zip(outs, grads, strict=True)
            if grad is not None and out.requires_grad
        ]
        tensors = [out for out, _ in pairs]
        more = self.averaging.completion(number, tensors)
        if tensors or more:
            gradients = [*(grad for _, grad in pairs), *(None for _ in more)]
            torch.autograd.backward([*tensors, *more], gradients)

    def _versions(self) -> int:
        return sum(p._version for module in self.cache._modules for p in module.parameters())


class _Replay(torch.autograd.Function):
    """The loss, with the second pass as its backward."""

    @staticmethod
    def forward(ctx: Any, hook: Tensor, loss: Tensor, backward: Callable[[Tensor], None]) -> Tensor:
        ctx.replay = backward
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.replay(grad)
        return None, None, None
