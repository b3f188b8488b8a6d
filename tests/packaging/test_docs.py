"""The documents: examples run, links lead somewhere, commands exist."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import sslops
from tests.compat import _migration

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize(
    "module",
    [
        "sslops._library",
        "sslops.chance",
        "sslops.compat._cross_batch",
        "sslops.compat.info_nce_pytorch",
        "sslops.compat.lightly",
        "sslops.compat.open_clip",
        "sslops.compat.pytorch_metric_learning",
        "sslops.compat.sentence_transformers",
        "sslops.compat.solo_learn",
        "sslops.grad_cache",
        "sslops.nn.info_nce",
        "sslops.nn.nt_xent",
        "sslops.nn.pairs",
        "sslops.momentum",
        "sslops.ops.clip_loss",
        "sslops.ops.cpc_loss",
        "sslops.ops.ema",
        "sslops.ops.info_nce",
        "sslops.ops.nt_xent",
        "sslops.ops.queue",
        "sslops.ops.sigmoid_loss",
        "sslops.ops.sup_con",
        "sslops.parallel.team",
        "sslops.queue",
        "sslops.queue_checkpoints",
        "sslops.training.augment.lab",
    ],
)
def test_examples_in_docstrings_run(module):
    # importlib, as some functions hide the module they are named after
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_readme_before_and_after_agree():
    """The two columns of the first example, cut apart and run."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    before, after = zip(*((line[:52], line[52:]) for line in block.splitlines()), strict=True)
    B = 12
    z1, z2 = torch.randn(2, B, 8)
    names = {"torch": torch, "F": F, "z1": z1, "z2": z2, "B": B}
    expected, actual = dict(names), dict(names)
    exec("\n".join(line.strip() for line in before), expected)
    exec("\n".join(line.strip() for line in after), actual)
    torch.testing.assert_close(actual["loss"], expected["loss"])


@pytest.mark.parametrize("page", _migration.PAGES, ids=lambda page: page.stem)
def test_migrations_run(page):
    assert _migration.loss_of(page, 1) > 0
    before, after = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    assert before.splitlines()[1:] == after.splitlines()[1:]  # only the import changes


def test_grad_cache_before_and_after_agree():
    before, after = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/grad_cache.md").read_text(), re.S
    )
    grads = []
    for code in (before, after):
        torch.manual_seed(0)
        names = {"sslops": sslops, "criterion": sslops.ClipLoss()}
        names |= {"encoder": torch.nn.Linear(7, 4), "text_encoder": torch.nn.Linear(5, 4)}
        names |= {"images": torch.randn(40, 7), "texts": torch.randn(40, 5)}
        exec(code, names)
        grads.append([names[name].weight.grad for name in ("encoder", "text_encoder")])
    torch.testing.assert_close(*grads)


def test_dense_example_is_right():
    """The example runs, and its loss is that of the stored and masked similarities."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/dense.md").read_text(), re.S).group(1)
    names: dict = {}
    exec(block, names)
    logits = F.normalize(names["rows"], dim=1) @ F.normalize(names["keys"], dim=1).T / 0.2
    same = names["cell"][names["targets"], None] == names["cell"]
    own = F.one_hot(names["targets"], logits.shape[1]).bool()
    logits = logits.masked_fill(same & ~own, float("-inf"))
    torch.testing.assert_close(names["loss"], F.cross_entropy(logits, names["targets"]))
    assert 0 <= names["accuracy"] <= 1
    assert names["first"].shape == (4, 16, 8, 8)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(r"`((?:docs|tests|bench|csrc|kernels|sslops|training)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_readme_names_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target
