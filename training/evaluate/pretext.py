"""How well a trained method does its own task on images it has not seen."""

import torch

from sslops.training.config import TrainConfig
from sslops.training.data import Dataset, subset
from sslops.training.data.loader import Feed
from sslops.training.distributed.process import World
from sslops.training.loggers.progress import working
from sslops.training.methods import Method

__all__ = ["measure_pretext"]


@working("measuring the task on test images")
@torch.no_grad()
def measure_pretext(
    method: Method, data: Dataset, config: TrainConfig, world: World
) -> dict[str, float]:
    """`Method.measure` on the test part, or at most `eval_test` of it; puts it in eval mode.

    The incomplete last batch is left out. Of several processes only the first measures, so that a
    method whose `step` talks to the others must bring a `measure` of its own; it gets {} else.
    """
    if world.size > 1 and type(method).measure is Method.measure:
        return {}
    test = data.test
    if config.eval_test is not None and config.eval_test < len(test):
        test = subset(test, config.eval_test, config.seed)
    feed, batch = Feed(test, world.device), min(config.batch, len(test))
    whole = torch.arange(len(test) // batch * batch).view(-1, batch)
    batches = (feed(index) for index in whole)
    method.eval()
    return method.measure(batches, torch.Generator().manual_seed(config.seed))
