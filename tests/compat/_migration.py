"""The examples of docs/migration, run."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

PAGES = sorted((Path(__file__).parents[2] / "docs" / "migration").glob("*.md"))


class Encoder(nn.Module):
    """What the examples call `model`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 16)

    def __getitem__(self, n):
        return self.layer  # sentence-transformers asks what the first module is

    def forward(self, features):
        return {"sentence_embedding": self.layer(features["input_ids"])}


def names():
    """Every name that the examples use, the same at each call."""
    torch.manual_seed(0)
    rows = ("out0", "out1", "embeddings", "ref_emb", "query", "positive_key")
    found = {name: torch.randn(8, 128, requires_grad=True) for name in rows}
    found |= {name: F.normalize(torch.randn(8, 128, requires_grad=True), dim=1)
              for name in ("image_features", "text_features")}  # fmt: skip
    found |= {"logit_scale": torch.tensor(14.3), "negative_keys": torch.randn(32, 128)}
    found |= {"z": torch.randn(16, 128, requires_grad=True), "indexes": torch.arange(8)}
    features = [{"input_ids": torch.randn(8, 5)} for _ in range(2)]
    return found | {"model": Encoder(), "sentence_features": features}


def loss_of(page, which):
    """The loss that the first (before) or second (after) example of a page computes."""
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    variables = names()
    torch.manual_seed(1)  # banks start at random
    exec(examples[which], variables)
    return variables["loss"].detach()
