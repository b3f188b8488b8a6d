"""The measure during training: nearest neighbours of the validation images."""

from collections.abc import Callable

from torch import Tensor, nn

from sslops.distributed import all_gather
from sslops.training.data import Split, subset
from sslops.training.distributed.process import World, share

__all__ = ["make_monitor"]

IMAGES = 5000  # training images among which the neighbours are looked for


def make_monitor(
    train: Split, validation: Split, seed: int, world: World
) -> Callable[[nn.Module], float]:
    """Accuracy of validation images by the nearest of the training images.

    The function returned is called by every process: each encodes its share of the images.
    """
    from sslops.training.evaluate.features import extract
    from sslops.training.evaluate.knn import knn_accuracy

    if len(train) > IMAGES:  # drawn: folders and archives list one class after another
        train = subset(train, IMAGES, seed)
    images, labels = train.images, train.labels
    asked, answers = validation.images, validation.labels
    assert labels is not None
    assert answers is not None

    def encode(encoder: nn.Module, part: Tensor) -> Tensor:
        own = part[share(world, len(part))] if world.size > 1 else part
        features = extract(encoder, own, device=world.device)
        return all_gather(features.to(world.device))[: len(part)].cpu()

    def accuracy(encoder: nn.Module) -> float:
        keys, queries = encode(encoder, images), encode(encoder, asked)
        return knn_accuracy(keys, labels, queries, answers)

    return accuracy
