"""Every shipped configuration of the Triton kernels, compiled for each target without a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from sslops.kernels._architectures import AMD, NVIDIA

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# target -> its matrix instruction, and the shared memory a program may have. sm_80's rows also
# serve sm_86, sm_89 and sm_120, which have 99 KiB
TARGETS = {
    "cuda:80": ("mma.sync", 99 << 10),
    "cuda:90": ("wgmma.mma_async", 227 << 10),
    "cuda:100": ("tcgen05.mma", 227 << 10),
    "hip:gfx942": ("v_mfma_f32", 64 << 10),
}
TILE_KERNELS = (
    "nt_xent_fwd_kernel",
    "nt_xent_bwd_kernel",
    "info_nce_fwd_kernel",
    "info_nce_bwd_kernel",
    "info_nce_frozen_keys_kernel",
    "sup_con_fwd_kernel",
    "sup_con_bwd_kernel",
    "sigmoid_negatives_kernel",
)


# The others that the package says it runs on: that what they launch compiles and fits.
ALSO = {
    "cuda:103": ("tcgen05.mma", 227 << 10),
    "cuda:120": ("mma.sync", 99 << 10),
    "hip:gfx90a": ("v_mfma_f32", 64 << 10),
    "hip:gfx950": ("v_mfma_f32", 160 << 10),
}


def compiled(*targets):
    # conftest turns the interpreter on for this process, and jit functions stay what they were
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = subprocess.run(
        [sys.executable, "-m", "tests.kernels._compile_kernels", *targets],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout)


def test_every_architecture_that_kernels_are_for_is_compiled_for():
    names = [name.split(":")[1] for name in (*TARGETS, *ALSO)]
    assert {int(name) // 10 for name in names if name.isdigit()} == set(NVIDIA)
    assert {name for name in names if not name.isdigit()} == set(AMD)


def test_other_architectures():
    for target, kernels in compiled(*ALSO).items():
        assert {k["kernel"] for k in kernels} >= {"nt_xent_fwd_kernel", "nt_xent_bwd_kernel"}
        check(kernels, target, *ALSO[target])


@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration(target):
    kernels = compiled(target)[target]
    others = {"unit_rows_kernel", "enqueue_kernel", "ema_kernel"}
    assert {k["kernel"] for k in kernels} >= {*TILE_KERNELS, *others}
    check(kernels, target, *TARGETS[target])


def check(kernels, target, instruction, shared):
    for kernel in kernels:
        name = kernel["name"]
        assert kernel["spills"] == 0, f"{name} spills {kernel['spills']}"
        assert kernel["shared"] <= shared, f"{name} wants {kernel['shared']} bytes of shared memory"
        if kernel["kernel"] in TILE_KERNELS:
            found = [code for code in kernel["matrix"] if code.startswith(instruction)]
            # exact float32 products are FMA on NVIDIA; AMD has an instruction for them
            fma = kernel["exact_float32"] and target.startswith("cuda")
            assert fma != bool(found), f"{name} has {kernel['matrix']}, expected {instruction}"
        if kernel["kernel"] == "ema_kernel" and "wide" in kernel and "'ALIGNED': True" in name:
            assert kernel["wide"], f"{name} loads element by element"
