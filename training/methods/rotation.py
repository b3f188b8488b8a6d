"""Rotation: which way up an image stands can only be told by who knows what it shows.

Gidaris et al. 2018, arXiv:1803.07728, section 2.1 and figure 2:

    for a batch of B images
        crop and mirror each                                      views
        turn each by 0, 90, 180 and 270 degrees, all in one batch quarter_turns
        h = f(x): [4B, dim]                                       encoder
        which of the four turns was it?                           head, cross-entropy

Turning by transposes and flips leaves no trace in the pixels. Turning by interpolation does, and
the task is then solved without a look at the content (`interpolate` shows it).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.augment import make_views
from sslops.training.augment.turn import TURNS, interpolated_turns, quarter_turns
from sslops.training.config import TrainConfig
from sslops.training.methods.attention import attention_pictures
from sslops.training.methods.base import Batch, DataShape, Method, find_views
from sslops.training.methods.figures import Chart
from sslops.training.models import build_encoder

__all__ = ["Rotation", "RotationConfig"]

DEGREES = tuple(90 * k for k in range(TURNS))


@dataclass(frozen=True)
class RotationConfig(TrainConfig):
    """Rotation's own knobs."""

    interpolate: bool = False  # turn by bilinear look-up, which leaves a shortcut
    angle_error: float = 1.0  # degrees by which such a quarter turn is too wide

    guards: ClassVar[Mapping[str, Mapping[str, Any]]] = {"exact rotation": {"interpolate": True}}


class Rotation(Method):
    """Encoder and one linear layer that names the turn.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    mean_loss: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr), and that the images have an upright position at all"
        " (pictures/rotations.png)",
        "shortcut": "that turns are exact (--no-interpolate) and that no border, logo or time"
        " stamp gives the turn away (pictures/rotations.png)",
    }

    def __init__(self, config: RotationConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = find_views("rotation", config.views)
        self.error = config.angle_error if config.interpolate else None
        if config.interpolate:
            self.cautions = (
                "images are turned by interpolation (--interpolate), which leaves traces in their"
                " corners: the task can be solved without a look at the content",
            )
        self.encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        self.head = nn.Linear(cast(int, self.encoder.dim), TURNS)
        self.chance = math.log(TURNS)

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """One view of each image in its four positions, [B, 4, C, S, S]."""
        H, W = (self.recipe.size,) * 2 if self.recipe.size else batch.images.shape[2:]
        if H != W:
            raise ValueError(
                f"rotation: images must be square, got {H} x {W}; bring them to one side with"
                " --image-size"
            )
        return self._turn(make_views(batch.images, self.recipe, 1, generator)[0])

    def _turn(self, x: Tensor) -> Tensor:
        return quarter_turns(x) if self.error is None else interpolated_turns(x, self.error)

    def parts(self, views: Tensor, size: int) -> list[Tensor]:
        """`size` images at a time, each in its four positions."""
        return list(torch.split(views, size))

    def _logits(self, turned: Tensor) -> Tensor:
        """[B, 4, C, S, S] -> [B, 4 turns, 4 answers]."""
        logits: Tensor = self.head(self.encoder(turned.flatten(0, 1)))
        return logits.float().view(len(turned), TURNS, TURNS)

    def step(self, views: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over all images in all positions."""
        logits = self._logits(views).flatten(0, 1)  # [4B, 4]
        turn = torch.arange(TURNS, device=logits.device).repeat(len(views))
        accuracy = (logits.argmax(1) == turn).float().mean()
        return {"loss": F.cross_entropy(logits, turn), "accuracy": accuracy}

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Scores on whole images, neither cropped nor mirrored; also of each turn.

        With `interpolate` also the accuracy on exact turns: what was learnt beside the shortcut.
        """
        loss, right, exact, images = 0.0, torch.zeros(TURNS), 0.0, 0
        for batch in batches:
            x = batch.images.float().div(255)
            out = self._logits(self._turn(x))
            turn = torch.arange(TURNS, device=x.device).expand(len(x), TURNS)
            loss += F.cross_entropy(out.flatten(0, 1), turn.flatten()).item() * len(x)
            right += (out.argmax(2) == turn).float().sum(0).cpu()
            images += len(x)
            if self.error is not None:
                exact += (self._logits(quarter_turns(x)).argmax(2) == turn).float().sum().item()
        scores = {"loss": loss / images, "accuracy": right.mean().item() / images}
        if self.error is not None:
            scores["accuracy_exact"] = exact / (TURNS * images)
        each = (right / images).tolist()
        return scores | {f"accuracy_{d}": share for d, share in zip(DEGREES, each, strict=True)}

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Images above their views in the four positions: [5, B, C, S, S]."""
        turned = self.views(batch, generator).transpose(0, 1)
        if turned.shape[2:] != batch.images.shape[1:]:
            return {"rotations": turned}
        return {"rotations": torch.cat([batch.images.float().div(255)[None], turned])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Where the encoder looks, and which turns it takes for which."""
        said = self._logits(self._turn(batch.images.float().div(255))).argmax(2)  # [B, 4]
        share = F.one_hot(said, TURNS).float().mean(0)  # [turn, answer]
        right = 100 * share.diagonal().mean().item()
        return {
            "attention-by-stage": attention_pictures(
                self.encoder, batch.images[_spread(len(said))]
            ),
            "answers-by-rotation": Chart(
                "lines",
                {
                    f"says {answer}°": [(d, share[k, i].item()) for k, d in enumerate(DEGREES)]
                    for i, answer in enumerate(DEGREES)
                },
                x_label="degrees turned",
                y_label="share of images",
                caption=f"Each answer's share of {len(said):,} whole images; {right:.0f} % of the"
                " answers are right, 25 % by chance.",
            ),
        }


def _spread(N: int) -> Tensor:
    """A dozen of N images, from the first to the last: files are often sorted by class."""
    return torch.linspace(0, N - 1, min(12, N)).long()
