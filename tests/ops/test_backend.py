"""Choosing what implements an op."""

import os
import subprocess
import sys

import pytest
import torch

import sslops
from sslops import _library


def test_a_with_block_restores_the_choice():
    assert sslops.backend() == "auto"
    with sslops.use_backend("reference"):
        with sslops.use_backend("cpp"):
            assert sslops.backend() == "cpp"
        assert sslops.backend() == "reference"
    assert sslops.backend() == "auto"


def test_a_plain_call_stays():
    sslops.use_backend("reference")
    try:
        assert _library.op("nt_xent_fwd", torch.ones(1)) is torch.ops.sslops.nt_xent_fwd_reference
    finally:
        sslops.use_backend("auto")


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"use_backend: backend must be one of .* got 'tpu'"):
        sslops.use_backend("tpu")
    assert sslops.backend() == "auto"


def test_the_wrong_device_is_refused():
    with sslops.use_backend("triton"), pytest.raises(RuntimeError, match="triton needs cuda"):
        sslops.nt_xent(torch.ones(4, 2))


def test_cpp_without_a_compiled_module_is_refused(monkeypatch):
    monkeypatch.setattr(_library, "load_extension", lambda: False)
    with sslops.use_backend("cpp"), pytest.raises(RuntimeError, match=r"cpp needs sslops\._C"):
        sslops.nt_xent(torch.ones(4, 2))


def test_cuda_without_a_kernel_is_refused():
    with sslops.use_backend("cuda"), pytest.raises(RuntimeError, match="has no compiled kernel"):
        _library.gpu_kernel("nt_xent_fwd", "nt_xent.nt_xent_fwd", False, (torch.ones(1),))


def test_compiled_kernels_stand_in_for_triton(monkeypatch):
    ones = (torch.ones(1),)
    monkeypatch.setattr(_library, "load_cuda_extension", lambda: True)
    found = _library.gpu_kernel("info_nce_fwd", None, True, ones)
    assert found is torch.ops.sslops.info_nce_fwd_cuda
    monkeypatch.setattr(_library, "load_cuda_extension", lambda: False)
    assert _library.gpu_kernel("info_nce_fwd", None, True, ones) is None


@pytest.mark.slow
def test_the_environment_sets_the_start_value():
    env = os.environ | {"SSLOPS_BACKEND": "reference"}
    code = "import sslops; print(sslops.backend())"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "reference"
