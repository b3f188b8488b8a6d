"""What CPC learned to predict: scores and accuracy of each step, and the table of all scores."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops import cpc_loss
from sslops.training.methods.figures import Chart

__all__ = ["at_hand", "step_charts"]

SHOWN_STEPS = (1, 2, 4, 8, 12)
SHOWN_SEQUENCES = 6


def at_hand(negatives: str | int, targets: Tensor) -> Any:
    """`negatives` of `cpc_loss`, or all positions of `targets` [B, T, D] where those are fewer.

    For test data, of which there may be less than a training batch.
    """
    return min(negatives, targets[..., 0].numel()) if isinstance(negatives, int) else negatives


def step_charts(
    predictions: Tensor, targets: Tensor, *, normalize: bool, temperature: float, **loss: Any
) -> dict[str, Chart | Tensor]:
    """Charts by step, and pictures of the scores within single sequences.

    Args:
        predictions: [K, B, T, D], as `cpc_loss` takes them.
        targets: [B, T, D].
        normalize: as of `cpc_loss`.
        temperature: as of `cpc_loss`.
        loss: its other arguments.
    """
    predictions, targets = predictions.detach().float(), targets.detach().float()
    loss["negatives"] = at_hand(loss.get("negatives", "all"), targets)
    _, stats = cpc_loss(
        predictions, targets, normalize=normalize, temperature=temperature, return_stats=True,
        generator=torch.Generator().manual_seed(0), **loss,
    )  # fmt: skip
    if normalize:
        predictions, targets = F.normalize(predictions, dim=3), F.normalize(targets, dim=2)
    scores = torch.einsum("kbtd,bsd->kbts", predictions, targets) / temperature
    K, _, T, _ = scores.shape
    steps = range(1, K + 1)
    true, others = [], []
    for k in steps:
        own = scores[k - 1].diagonal(k, 1, 2)  # [B, T - k]: from t to t + k
        rows = scores[k - 1, :, : T - k]
        true.append(float(own.mean()))
        others.append(float((rows.sum() - own.sum()) / (rows.numel() - own.numel())))
    return {
        "prediction-by-step": Chart(
            "lines",
            {
                "what came": list(zip(steps, true, strict=True)),
                "rest of the sequence": list(zip(steps, others, strict=True)),
            },
            x_label="steps ahead",
            y_label="score",
            caption="Mean score of the predictions with what came, and with the other positions of"
            " the same sequence.",
        ),
        "accuracy-by-step": Chart(
            "bars",
            {
                "right": [
                    (k - 0.5, value)
                    for k, value in zip(steps, stats.accuracy.tolist(), strict=True)
                ]
            },
            x_label="steps ahead",
            y_label="share of right choices",
            caption="How often what came scores above every negative.",
        ),
        "loss-by-step": Chart(
            "lines",
            {"loss": list(zip(steps, stats.loss.tolist(), strict=True))},
            x_label="steps ahead",
            y_label="nats",
        ),
        "predicted-against-true": _score_pictures(scores),
    }


def _score_pictures(scores: Tensor) -> Tensor:
    """[steps, sequences, 1, T, T] in [0, 1]: rows are times of predicting, columns of coming.

    A prediction that knows is bright where t + k is: on a line beside the diagonal.
    """
    K = scores.shape[0]
    shown = [k for k in SHOWN_STEPS if k <= K]
    some = scores[[k - 1 for k in shown], :SHOWN_SEQUENCES]
    share = some.softmax(3)
    return (share / share.amax(3, keepdim=True)).sqrt()[:, :, None]
