"""The CUDA kernels compile for every architecture without a GPU, as setup.py compiles them."""

import re
import subprocess
import sys

import pytest
import torch

from ._cuda import OPS, ROOT, SOURCES, TORCH, built_once, run_all, setup, tool

NVCC = setup().find_nvcc()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="there is no nvcc")]
ARCHS = ("sm_80", "sm_90a", "sm_100")


@pytest.fixture(scope="module")
def objects(monkeypatch_module):
    monkeypatch_module.delenv("SSLOPS_CUDA_ARCHS", raising=False)
    flags = setup().cuda_flags()
    with built_once("cuda_objects", *flags) as folder:
        out = [folder / f"{source.stem}.o" for source in SOURCES]
        missing = [pair for pair in zip(SOURCES, out, strict=True) if not pair[1].exists()]
        run_all([[NVCC, *flags, "-c", str(a), "-o", str(b)] for a, b in missing])
        return out


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def cuobjdump(*arguments):
    program = tool("cuobjdump")
    if program is None:
        pytest.skip("there is no cuobjdump")
    run = [program, *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_nothing_spills(objects):
    seen = {}
    for file in objects:
        arch = function = None
        for line in cuobjdump("--dump-resource-usage", file).splitlines():
            if match := re.match(r"arch = (\S+)", line):
                arch = match[1]
            elif match := re.match(r"\s*Function (\S+):", line):
                function = match[1]
            elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
                seen[arch, function] = int(match[2]) + int(match[3])
    assert {arch for arch, _ in seen} == set(ARCHS)
    tiles = [name for arch, name in seen if "tile_kernel" in name and arch == ARCHS[0]]
    assert len(tiles) == 3 * 3 * 3  # dtypes, widths, passes
    assert [name for name, spilled in seen.items() if spilled] == []


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["bf16", "f16", "f32"])
def test_tiles_are_multiplied_by_the_matrix_unit(objects, name, arch):
    (file,) = (each for each in objects if each.stem == f"tiles_{name}")
    code = cuobjdump("-sass", "-arch", arch, file)
    expected = {"bf16": r"HMMA\.16816\.F32\.BF16", "f16": r"HMMA\.16816\.F32 ", "f32": "HMMA.1688"}
    functions = re.split(r"Function : ", code)[1:]
    assert len(functions) == 9
    for each in functions:
        assert re.search(expected[name], each), each[:80]
        assert "LDGSTS" in each  # asynchronous copies


def test_the_library_loads_without_a_gpu_and_registers_every_op(objects, tmp_path):
    library = tmp_path / "_C_cuda.so"
    link = [NVCC, "-shared", *map(str, objects), f"-L{TORCH / 'lib'}"]
    run_all([[*link, "-ltorch_cpu", "-ltorch", "-lc10", "-o", str(library)]])
    names = [name for name in OPS if hasattr(torch.ops.sslops, f"{name}_cuda")]
    assert {"info_nce_fwd", "info_nce_bwd"} <= set(names)
    code = f"""
import torch, sslops
torch.ops.load_library({str(library)!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(all(has(f"sslops::{{name}}_cuda", "CUDA") for name in {names!r}))
"""
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "True"
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True).stdout
    assert not re.search(r"libpython|libtorch_python|libtorch_cuda|libcudart", needed)
