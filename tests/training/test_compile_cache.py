"""Processors with other vectors share no compiled code; in PyTorch's own folder they do."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sslops._compile_cache import separate_by_processor
from sslops.training.engine.step import prepare_encoder
from sslops.training.methods.simclr import SimCLRConfig

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
LOWER = {"AVX512": "avx2", "AVX2": "default"}  # a level below that of this machine
HERE = torch.backends.cpu.get_cpu_capability()

COMPILED = """
import sys, torch
from torch import nn
from sslops.training.methods.simclr import SimCLRConfig
from sslops.training.engine.step import prepare_encoder

def differs(compiled, images):
    try:
        with torch.no_grad():
            result = compiled(images)  # before another result leaves the right values in memory
            return not torch.allclose(result, images.sigmoid() + 1, atol=1e-5)
    except torch._dynamo.exc.BackendCompilerFailed:
        return True

class Encoder(nn.Module):
    def forward(self, images):
        return images.sigmoid() + 1

class Plain(nn.Module):
    def forward(self, images):  # code of its own, as Dynamo keeps what it compiled with the code
        return images.sigmoid() + 1

images = torch.rand(40)
for plain in (True, False):
    encoder = (Plain if plain else Encoder)()
    if plain:
        encoder.compile()
    else:
        prepare_encoder(encoder, SimCLRConfig(compile=True))
    print(plain, differs(encoder, images))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def test_a_folder_for_each_processor(folder, monkeypatch):
    mine = separate_by_processor()
    assert os.environ[VARIABLE] == mine
    assert Path(mine).parent == folder
    assert Path(mine).name.startswith(f"sslops-{HERE.lower().replace(' ', '-')}-")
    assert separate_by_processor() == mine  # not a folder in it
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    other = separate_by_processor()
    assert Path(other).parent == folder
    assert other != mine
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "sse": False})
    third = separate_by_processor()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "sse": True})
    assert len({third, other, separate_by_processor()}) == 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_encoder_is_compiled_into_it(folder, checkpointing):
    config = SimCLRConfig(checkpointing=checkpointing)
    encoder = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    prepare_encoder(encoder, config)
    assert os.environ[VARIABLE] == str(folder)  # nothing is compiled
    prepare_encoder(encoder, replace(config, compile=True))
    assert os.environ[VARIABLE] == separate_by_processor() != str(folder)


def compiled_at(level, folder):
    env = {**os.environ, VARIABLE: str(folder), "ATEN_CPU_CAPABILITY": level}
    result = subprocess.run(
        [sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True
    )
    return result.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(HERE not in LOWER, reason="needs AVX2 or AVX-512")
def test_code_of_other_vectors_is_not_run(tmp_path):
    assert compiled_at(HERE.lower(), tmp_path) == ["True", "False", "False", "False"]
    plain, *ours = compiled_at(LOWER[HERE], tmp_path)[1:]
    assert ours == ["False", "False"]
    # If this fails, PyTorch mended it, and _compile_cache.py can go.
    assert plain == "True"
