"""The documents: examples run, links lead somewhere, commands exist."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize(
    "module",
    [
        "sslops._library",
        "sslops.chance",
        "sslops.momentum",
        "sslops.nn",
        "sslops.ops.clip_loss",
        "sslops.ops.cpc_loss",
        "sslops.ops.ema",
        "sslops.ops.info_nce",
        "sslops.ops.nt_xent",
        "sslops.ops.sigmoid_loss",
        "sslops.ops.sup_con",
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
