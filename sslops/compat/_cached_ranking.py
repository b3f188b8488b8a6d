"""sentence-transformers' cached ranking loss."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from sslops._join import cat
from sslops.compat._grad_cache import cached
from sslops.compat._pieces import pieces
from sslops.compat._ranking import cos_sim
from sslops.compat._ranking_loss import (
    MultipleNegativesRankingLoss,
    fused_ranking,
    settings,
)


class CachedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """The same loss with the encoder's activations of `mini_batch_size` texts at a time.

    The encoder runs twice, the second time in the backward with the random numbers and the
    autocast of the first.

    Args:
        model: see `MultipleNegativesRankingLoss`, like all arguments not listed here.
        scale: multiplies the similarities.
        similarity_fct: of [M, D] and [N, D].
        mini_batch_size: texts of one pass of the encoder; the loss needs no pieces.
        mini_batch_num_tokens: instead of `mini_batch_size`, as many texts of one pass as together
            have at most so many tokens, of one text any number.
        gather_across_devices: candidates of all processes.
        directions: of the sums.
        partition_mode: of the directions.
        show_progress_bar: accepted; there is none.
        hardness_mode: which negatives weigh more.
        hardness_strength: how much more.

    Raises:
        ValueError: pieces of no token or text, features that cannot be cut by texts.

    Example:
        >>> layer = nn.Linear(4, 16)
        >>> model = lambda x: {"sentence_embedding": layer(x["values"])}
        >>> loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
        >>> loss([{"values": torch.randn(8, 4)}, {"values": torch.randn(8, 4)}], None).backward()
        >>> layer.weight.grad.shape
        torch.Size([16, 4])
    """

    uses_gradient_cache = True  # what MatryoshkaLoss and AdaptiveLayerLoss ask for

    def __init__(
        self,
        model: Callable[[dict[str, Any]], Any],
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        show_progress_bar: bool = False,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__(
            model, scale, similarity_fct, gather_across_devices, directions, partition_mode,
            hardness_mode, hardness_strength,
        )  # fmt: skip
        name = type(self).__name__
        if mini_batch_num_tokens is not None and mini_batch_num_tokens <= 0:
            raise ValueError(
                f"{name}: mini_batch_num_tokens must be positive, got {mini_batch_num_tokens}"
            )
        if mini_batch_num_tokens is None and mini_batch_size < 1:
            raise ValueError(f"{name}: mini_batch_size must be positive, got {mini_batch_size}")
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def extra_repr(self) -> str:
        """The settings, as `print(model)` shows them."""
        return f"{super().extra_repr()}, mini_batch_size={self.mini_batch_size}"

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> Tensor:
        """Loss of the columns [anchors, positives, *negatives]; labels are not used."""
        limits = (self.mini_batch_size, self.mini_batch_num_tokens)
        columns = [pieces(features, *limits) for features in sentence_features]
        # looked up now: MatryoshkaLoss wraps it
        return cached(self._embed, partial(self.calculate_loss, labels=labels), columns, self.model)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Loss of the pieces of each column; `with_backward`, their gradients are filled too."""
        loss = self.compute_loss_from_embeddings([cat(each) for each in reps], labels)
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        return loss

    def fused(  # type: ignore[override]
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Any:
        """`calculate_loss` by kernels, or NotImplemented."""
        loss = fused_ranking([cat(each) for each in reps], *settings(self))
        if loss is not NotImplemented and with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The hyper-parameters, for a model card."""
        sizes = {
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }
        return {**super().get_config_dict(), **sizes}
