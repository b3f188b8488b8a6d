"""Checkpoints are whole or absent, hold every generator, and load without running code."""

import random

import numpy as np
import pytest
import torch

from sslops.training import checkpoint


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3)


def test_random_numbers_go_on_where_they_were(tmp_path):
    random.gauss(0, 1), np.random.randn()  # leaves a second gauss behind in both libraries
    checkpoint.save(tmp_path / "a.pt", {"rng": checkpoint.rng_state()})
    first = draw()
    draw()
    checkpoint.restore_rng(checkpoint.load(tmp_path / "a.pt")["rng"])
    second = draw()
    assert first[:4] == second[:4]
    assert torch.equal(first[4], second[4])


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "checkpoint" / "last.pt"
    checkpoint.save(path, {"step": 1})

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        checkpoint.save(path, {"step": 2, "weights": torch.zeros(1000), "bad": Unpicklable()})
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_save_replaces_the_file(tmp_path):
    for step in range(2):
        checkpoint.save(tmp_path / "last.pt", {"step": step})
    assert checkpoint.load(tmp_path / "last.pt") == {"step": 1}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="needs an existing file, got"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_file_with_code_is_refused(tmp_path):
    torch.save({"f": print}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.load(tmp_path / "evil.pt")
