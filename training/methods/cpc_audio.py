"""CPC on sound: what was heard so far should tell what comes next from what does not.

van den Oord et al. 2018, arXiv:1807.03748, figure 1 and section 3.1:

    for a batch of B windows of raw sound
        z_t = g_enc(x): a latent every 10 ms                      encoder.latents
        c_t = g_ar(z_1 .. z_t): the context so far                encoder.latents
        W_k c_t must pick z_t+k among negatives, k = 1 .. 12      predictor, cpc_loss

Where the negatives come from decides what is learned (table 2 and section 3.1): among windows of
other speakers the speaker tells the future from the rest; within one sequence he is the same
everywhere, and only what is said does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sslops import chance, cpc_loss
from sslops.distributed import all_gather_with_grad
from sslops.training.config import TrainConfig
from sslops.training.config.checks import positive
from sslops.training.methods.base import Batch, ContrastiveMethod, DataShape
from sslops.training.methods.cpc_charts import at_hand, step_charts
from sslops.training.methods.figures import Chart
from sslops.training.models import AudioEncoder

__all__ = ["CPCAudio", "CPCAudioConfig"]


@dataclass(frozen=True)
class CPCAudioConfig(TrainConfig):
    """CPC's own knobs; `batch` counts windows."""

    kind: ClassVar[Literal["image", "sound", "video"]] = "sound"
    archs: ClassVar[tuple[str, ...]] = ("cpc-audio",)
    unread: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("views", "image_size", "pool", "patch", "depth", "heads", "simclr_control"), ""
    )

    data: str = "tones"  # a name from `sslops list`, or a folder of wav or flac files
    arch: str = "cpc-audio"  # strided convolutions and a GRU
    window: float = 1.28  # seconds of sound in a window; shorter recordings are repeated
    context: int = 256  # size of the GRU's state
    pred_steps: int = 12  # K, frames of 10 ms ahead
    negatives: Literal["all", "sequence", "other"] | int = "all"  # as of sslops.cpc_loss
    normalize: bool = False  # compare by cosine; the paper's score is the plain product
    held_out: str | None = None  # FACTOR=VALUE that a supervised control does without
    temperature: float | None = None  # the square root of the latents' size if unset

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negatives == "other" and self.batch < 2:
            raise ValueError(
                "cpc-audio: batch must be at least 2, as negatives = other are those of other"
                f" windows, got {self.batch}"
            )
        positive(self, "window", "context", "pred_steps", "temperature")

    def encoder_options(self) -> dict[str, int]:
        """Options of `AudioEncoder`."""
        options = {"width": self.width, "context": self.context}
        return {name: value for name, value in options.items() if value is not None}


class CPCAudio(ContrastiveMethod):
    """Encoder, one linear predictor a step, and the loss over all steps.

    Args:
        config: hyper-parameters.
        shape: of the data set, with its sampling rate.
    """

    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr), whether a window holds sound (--window), and another"
        " --seed: a first layer that dies at the start stays at chance",
        "shortcut": "that recordings are not repeated in the data",
    }

    def __init__(self, config: CPCAudioConfig, shape: DataShape) -> None:
        super().__init__()
        self.encoder: AudioEncoder = AudioEncoder(shape.rate, **config.encoder_options())
        self.samples = round(config.window * shape.rate)
        with torch.no_grad():
            T = self.encoder.latents(torch.zeros(1, self.samples))[0].shape[1]
        K = self.steps = config.pred_steps
        if K >= T:
            raise ValueError(
                f"cpc-audio: pred_steps must be below the {T} frames of a window of {config.window}"
                f" s, got {K}"
            )
        width = self.encoder.width
        self.predictor = nn.Linear(self.encoder.context, K * width, bias=False)  # every W_k
        self.negatives = config.negatives
        self.normalize = config.normalize
        self.temperature = width**0.5 if config.temperature is None else config.temperature
        self.chance = chance("cpc_loss", batch=config.batch, length=T, negatives=config.negatives)

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """A window of each recording, [1, B, samples] float32."""
        windows: Tensor = batch.images.windows(self.samples, generator)
        return windows[None].to(self.predictor.weight.device, non_blocking=True)

    def embed(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions [B, K, T, D] and targets [B, T, D]."""
        z, c = self.encoder.latents(views[0])
        return self.predictor(c).unflatten(2, (self.steps, -1)).transpose(1, 2), z

    def contrast(self, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The loss over all steps; negatives may come from all processes.

        No features to watch: latents that collapse to a point have the loss of chance.
        """
        predictions, targets = embeddings
        if self.negatives != "sequence":
            predictions, targets = map(all_gather_with_grad, (predictions, targets))
        loss, stats = cpc_loss(
            predictions.transpose(0, 1),
            targets.to(predictions.dtype),
            negatives=self.negatives if self.training else at_hand(self.negatives, targets),
            normalize=self.normalize,
            temperature=self.temperature,
            return_stats=True,
        )
        return {
            "loss": loss,
            "accuracy": stats.accuracy.mean(),
            "accuracy_next": stats.accuracy[0],
            "accuracy_last": stats.accuracy[-1],
        }

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing: a window is heard, not seen."""
        return {}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """How well each step is predicted, and which frames each prediction resembles."""
        some = Batch(batch.images[torch.arange(min(64, len(batch.images)))], None)
        predictions, targets = self.embed(self.views(some, generator))
        return step_charts(
            predictions.transpose(0, 1),
            targets,
            negatives=self.negatives,
            normalize=self.normalize,
            temperature=self.temperature,
        )
