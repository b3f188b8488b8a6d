"""Error messages that name many things stay short: below 500 characters, the first names shown."""

import ast
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

import sslops
from sslops._names import shown
from sslops.compat import sentence_transformers
from sslops.parallel import agree, team

ROOT = Path(__file__).parents[2]
MANY = 400
NAMES = [f"backbone.stages.{n:03}.blocks.{n:03}.attention.projection.weight" for n in range(MANY)]


def wide_net(names=NAMES, buffers=()):
    net = nn.Module()
    for name in names:
        net.register_parameter(name.replace(".", "_"), nn.Parameter(torch.zeros(1)))
    for name in buffers:
        net.register_buffer(name.replace(".", "_"), torch.zeros(1))
    return net


def ranks(same):
    """`agree` of many ranks, of which all but this one differ."""
    rows = [[0.0, 1.0, float(n), float(n)] for n in range(MANY)]
    one = team.Team(None, 0, MANY, False)
    with patch("sslops.parallel.agree._exchange", lambda *_: rows):
        agree(one, "nt_xent", torch.zeros(1), {"rows": 1}, same, {})


def refused_by_many():
    one = team.Team(None, 0, MANY, False)
    with patch("sslops.parallel.agree._exchange", lambda *_: [[1.0, 1.0, 1.0]] * MANY):
        agree(one, "nt_xent", torch.zeros(1), {"rows": 1}, {}, {})


class Ragged(nn.Module):
    def forward(self, x):
        return tuple(torch.zeros(n + 1, 2) for n in range(MANY))


def shapes():
    return [torch.zeros(n + 2, 3) for n in range(MANY)]


ST = sentence_transformers
# what is called -> what of the first names the message must have
LONG = {
    "ema_update_ parameters": (
        lambda: sslops.ema_update_(wide_net(), nn.Linear(2, 2), 0.5),
        r"stages_000.*\] and 39\d more .*\['bias', 'weight'\]",
    ),
    "ema_update_ other parameters": (
        lambda: sslops.ema_update_(nn.Linear(2, 2), wide_net(), 0.5), r"stages_000.* and 39\d more"
    ),
    "ema_update_ both": (
        lambda: sslops.ema_update_(wide_net(), wide_net([f"x.{each}" for each in NAMES]), 0.5),
        "and 39. more.*and 39. more",
    ),
    "ema_update_ buffers": (
        lambda: sslops.ema_update_(wide_net([], NAMES), nn.ReLU(), 0.5), "stages_000"
    ),
    "MomentumEncoder.update": (
        lambda: sslops.MomentumEncoder(wide_net()).update(nn.Linear(2, 2)), "stages_000"
    ),
    "NTXentLoss shapes": (lambda: sslops.NTXentLoss()(*shapes()), r"\(2, 3\), \(3, 3\)"),
    "NTXentLoss dtypes": (
        lambda: sslops.NTXentLoss()(
            torch.zeros(2, 3, dtype=torch.half), *[torch.zeros(2, 3)] * MANY
        ),
        "torch.float16 on cpu, torch.float32 on cpu",
    ),
    "GradCache rows of embeddings": (
        lambda: sslops.GradCache(Ragged(), sum, 4)(torch.zeros(4, 2)), r"got \[1, 10, .* for \[4\]"
    ),
    "GradCache rows of an input": (
        lambda: sslops.GradCache(nn.Identity(), sum, 4)(shapes()), r"got \[.*\] and \d+ more"
    ),
    "load_queue": (
        lambda: sslops.load_queue(dict.fromkeys(NAMES, torch.zeros(1))), "stages.000"
    ),
    "load_queue many queues": (
        lambda: sslops.load_queue(
            {f"{name}.{end}": torch.zeros(1) for name in NAMES for end in ("queue", "queue_ptr")}
        ),
        r"\.queue'",
    ),
    "load_queue position": (
        lambda: sslops.load_queue(
            {"queue": torch.zeros(4, 9), "queue_ptr": torch.arange(5000)}, layout="KD"
        ),
        r"got \[0, 1, 2, .* more",
    ),
    "patch": (lambda: sslops.patch("lightly", NAMES), "stages.000"),
    "directions unknown": (
        lambda: ST.MultipleNegativesRankingLoss(None, directions=NAMES), "stages.000"
    ),
    "directions without the first": (
        lambda: ST.MultipleNegativesRankingLoss(None, directions=["query_to_query"] * MANY),
        "query_to_query",
    ),
    "ranks that differ": (
        lambda: ranks({"number of features": 4}), r"number of features, got \[0, 1, 2"
    ),
    "ranks that differ in a name": (
        lambda: ranks({"reduction": "mean"}), r"reduction, got \['another'"
    ),
    "ranks that refuse": (refused_by_many, r"a refusal by \[0, 1, 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_messages_stay_short(name):
    call, match = LONG[name]
    with pytest.raises((ValueError, TypeError), match=match) as error:
        call()
    assert len(str(error.value)) < 500


def test_what_is_shown():
    assert shown([]) == "[]"
    assert shown({2, 10, 1}) == "[1, 10, 2]"
    assert shown(["b", "a"], " or ") == "b or a"
    assert shown(["x" * 900]) == "[..." + "x" * 56 + "']"
    assert len(shown(NAMES)) < 150
    assert shown(range(MANY)).endswith(f"] and {MANY - 33} more")
    assert shown((each for each in range(3)), ", ") == "0, 1, 2"


# f-string values in a raise that join few things: constants, registries, a method's few choices
FEW = {
    "', '.join(LOSSES)", "tuple(_PACKAGES)", "tuple(places)", "' and '.join(tensors)",
    "', '.join(KINDS)", "' or '.join(self.archs)", "' or '.join(sorted(SUFFIXES))",
    "', '.join(CLASSES)", "', '.join(sorted(SUFFIXES))", "', '.join(names())",
    "', '.join(map(str, places)) or 'any package'", "', '.join(map(str, strides))",
    "' and '.join(names)", "', '.join(INPUTS)", "', '.join(BUILDERS)",
}  # fmt: skip
FEW_IN = {  # the same text may stand for many elsewhere
    "sslops/compat/_shared.py": {"' and '.join(rows)"},  # the arguments of a function
    "training/experiments/audit.py": {"', '.join(known)"},  # methods
    "training/storage/folder.py": {"', '.join(ways)"},  # what to do instead
    "training/models/registry.py": {"', '.join(known)"},  # parameters of a function
}
COLLECTS = {"sorted", "list", "set", "tuple", "map", "join", "tolist", "keys", "values", "items"}


def collections_in(node):
    """Texts of the f-string values below `node` that print a collection."""
    for value in ast.walk(node):
        if not isinstance(value, ast.FormattedValue):
            continue
        text = ast.unparse(value.value)
        calls = [each.func for each in ast.walk(value.value) if isinstance(each, ast.Call)]
        names = {getattr(each, "id", getattr(each, "attr", None)) for each in calls}
        made = any(isinstance(each, ast.ListComp | ast.GeneratorExp) for each in ast.walk(value))
        if (names & COLLECTS or made) and "shown" not in names and ".shape" not in text:
            yield text


@pytest.mark.parametrize("folder", ["sslops", "training"])
def test_every_message_that_joins_many_is_cut(folder):
    """A new one goes through `shown`, or is registered above as one of few."""
    found = 0
    for file in sorted((ROOT / folder).rglob("*.py")):
        where = file.relative_to(ROOT).as_posix()
        if where.startswith(("sslops/training/", "sslops/kernels/")):  # links
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise):
                for text in collections_in(node):
                    found += 1
                    assert text in FEW | FEW_IN.get(where, set()), f"{where}:{node.lineno}: {text}"
    assert found
