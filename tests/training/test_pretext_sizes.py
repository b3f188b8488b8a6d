"""Every pretext task on images takes a step, and can be measured, at the usual sizes."""

import pytest
import torch

from sslops.training.config import make_config
from sslops.training.methods import METHODS
from sslops.training.methods.base import Batch, DataShape

TASKS = {
    "rotation": {},
    "relative-patch": {"hidden": 8},
    "jigsaw": {"embed": 4, "hidden": 8, "permutations": 24, "puzzles": 2},
    "inpainting": {},
    "colorization": {"decoder_width": 8},
    "split-brain": {"decoder_width": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["cnn4", "resnet18"])
@pytest.mark.parametrize("size", [32, 64, 96, 224])
@pytest.mark.parametrize("name", TASKS)
def test_a_step_at_every_size(name, size, arch):
    entry = METHODS[name]
    given = {"data": "photos", "arch": arch, "width": 8, "batch": 2, **TASKS[name]}
    torch.manual_seed(0)
    method = entry.build(make_config(entry.config, name, given), DataShape(3, size, 0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    batch = Batch(images, None)
    out = method.step(method.views(batch, generator))
    out["loss"].backward()
    grads = [param.grad for param in method.encoder.parameters()]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
    assert all(grad is None or bool(grad.isfinite().all()) for grad in grads)
    method.eval()
    with torch.no_grad():
        scores = method.measure([batch], generator)
    assert scores
    assert torch.tensor(list(scores.values())).isfinite().all()
