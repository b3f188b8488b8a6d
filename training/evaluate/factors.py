"""What features tell of a factor (who speaks), and of labels where its value is new to the probe.

Numbers have flat names, FACTOR standing for speaker, say:

    FACTOR.few1      the factor from one labelled recording of each value, mean over draws
    FACTOR.linear    the factor from all labels
    unseen.VALUE     the labels of one value (a speaker), the probe fitted on the others
    unseen.mean      its mean over the values
    frames.label     labels from single frames; frames.FACTOR the factor
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslops.training.data import Dataset, Split, subset
from sslops.training.evaluate.features import extract_frames
from sslops.training.evaluate.few_labels import feasible, few_labels
from sslops.training.evaluate.linear import linear_probe
from sslops.training.evaluate.table import align, arms
from sslops.training.loggers.progress import working

__all__ = ["factor_table", "factor_titles", "measure_factors", "measure_frames"]

DRAWS = 20  # of one label a value: a draw of so few is luck
FRAMED = 1000  # recordings whose frames are probed
MOST_VALUES = 12  # left out one by one at most


@working("probing factors")
def measure_factors(
    data: Dataset, train: Split, test: Split, x: Tensor, x_test: Tensor, *, seed: int
) -> dict[str, float]:
    """Probes on features of whole recordings.

    Args:
        data: names the values of factors.
        train: labels and factors of the rows of `x`; they choose and fit.
        test: of the rows of `x_test`; they score.
        x: [N, D] features.
        x_test: [M, D] features.
        seed: of draws and folds.
    """
    found: dict[str, float] = {}
    for name, values in data.factors.items():
        y, y_test = (part.factors[name].to(x.device) for part in (train, test))
        sizes: dict[str, Any] = {"classes": len(values), "seed": seed}
        if feasible(y, [1], len(values)):
            one = few_labels(x, y, x_test, y_test, n=1, draws=DRAWS, **sizes)
            found |= {f"{name}.few1": one.mean, f"{name}.few1_sd": one.sd}
        found[f"{name}.linear"] = linear_probe(x, y, x_test, y_test, **sizes).accuracy
        if train.labels is None or test.labels is None or len(values) > MOST_VALUES:
            continue
        rows, factor = torch.cat([x, x_test]), torch.cat([y, y_test])
        labels = torch.cat([train.labels, test.labels]).to(x.device)
        unseen = []
        for value, value_name in enumerate(values):
            known, asked = y != value, factor == value
            if known.any() and asked.any() and len(values) > 1:
                probe = linear_probe(
                    x[known], train.labels.to(x.device)[known], rows[asked], labels[asked],
                    classes=len(data.classes), seed=seed,
                )  # fmt: skip
                found[f"unseen.{value_name}"] = probe.accuracy
                unseen.append(probe.accuracy)
        if unseen:
            found["unseen.mean"] = sum(unseen) / len(unseen)
    return found


@working("probing frames")
def measure_frames(
    encoder: nn.Module,
    data: Dataset,
    train: Split,
    test: Split,
    *,
    seed: int,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Linear probes on single frames, labelled as the recording they are of."""
    train, test = (
        part if len(part) <= FRAMED else subset(part, FRAMED, seed) for part in (train, test)
    )
    x, x_test = (extract_frames(encoder, part.images, device=device) for part in (train, test))
    every = x.shape[1]
    x, x_test = x.flatten(0, 1), x_test.flatten(0, 1)
    targets = {name: (train.factors[name], test.factors[name], len(values))
               for name, values in data.factors.items()}  # fmt: skip
    if train.labels is not None and test.labels is not None:
        targets = {"label": (train.labels, test.labels, len(data.classes)), **targets}
    return {
        f"frames.{name}": linear_probe(
            x, y.repeat_interleave(every), x_test, y_test.repeat_interleave(every),
            classes=classes, seed=seed,
        ).accuracy
        for name, (y, y_test, classes) in targets.items()
    }  # fmt: skip


def factor_titles(results: Mapping[str, Any]) -> dict[str, str]:
    """Number -> how a table heads it, of all that any arm has, in order."""
    keys = dict.fromkeys(key for arm in arms(results).values() for key in arm if "." in key)
    titles = {}
    for key in keys:
        first, rest = key.split(".", 1)
        if first == "unseen":
            titles[key] = f"unseen {rest}"
        elif first == "frames":
            titles[key] = f"{rest}, frames"
        elif not rest.endswith("_sd"):
            titles[key] = f"{first}, 1 label" if rest == "few1" else first
    return titles


def factor_table(results: Mapping[str, Any]) -> str:
    """One row an arm; accuracies in percent. Empty where no arm has such numbers."""
    titles = factor_titles(results)
    if not titles:
        return ""
    lines = [["", *titles.values()]]
    for name, arm in arms(results).items():
        cells = [f"{100 * arm[key]:.1f}" if key in arm else "-" for key in titles]
        lines.append([name, *cells])
    return align(lines)
