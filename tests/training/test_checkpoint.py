"""Checkpoints are whole or absent, hold every generator, and load without running code."""

import os
import random
import resource
import signal
import stat

import numpy as np
import pytest
import torch

from sslops.training.storage import checkpoint


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
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "hacked"), "w"))

    torch.save({"f": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"tensors and plain values, got .*evil\.pt"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "hacked").exists()


def test_a_foreign_file_is_refused(tmp_path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "moco.pth.tar")
    with pytest.raises(ValueError, match=r"needs a checkpoint of sslops, .*moco\.pth\.tar"):
        checkpoint.load(tmp_path / "moco.pth.tar")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"needs a whole file .* got .*text\.pt"):
        checkpoint.load(tmp_path / "text.pt")


@pytest.mark.parametrize("damage", ["truncated", "a byte changed"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"weights": torch.arange(5000.0)})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"needs a whole file .* got .*last\.pt"):
        checkpoint.load(path)


def test_a_write_that_lies_keeps_the_old_file(tmp_path, monkeypatch):
    """What the disk gives back is looked at before the old checkpoint goes."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    save = torch.save

    def lossy(state, file):
        save(state, file)
        file.flush()
        file.truncate(file.tell() - 40)

    monkeypatch.setattr(torch, "save", lossy)
    with pytest.raises(checkpoint.StorageError, match="the checkpoint before it is as it was"):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """RLIMIT_FSIZE makes writes fail as a full disk does."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(checkpoint.StorageError, match=r"needs room to write .*last\.pt"):
            checkpoint.save(path, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.StorageError, match=r"needs room to write .*last\.pt"):
        checkpoint.save(tmp_path / "file" / "last.pt", {"step": 1})


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Content, then name, then the folder that holds the name: a power cut finds one of the two."""
    events = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def note_replace(source, target):
        events.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    assert events == ["content", "name", "folder"]
    before = path.read_bytes()
    with path.open("rb") as reader:  # whoever reads the old file goes on reading the old file
        checkpoint.save(path, {"step": 2})
        assert reader.read() == before
    assert checkpoint.load(path) == {"step": 2}
