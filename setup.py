"""Build of sslops: maps the top-level folders into the package and compiles csrc/ where it can.

SSLOPS_BUILD=none|cpu|cuda says what is compiled; cuda is cpu and the CUDA kernels, which nvcc
compiles for SSLOPS_CUDA_ARCHS without a GPU. Unset: cpu if torch can be imported (as with
`pip install --no-build-isolation .`), and cuda where that torch was built with CUDA and there is an
nvcc; else none, which gives the pure package.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup

DURATION = "half a minute to one on two idle cores, several on busy ones"  # as the Makefile says
FOLDERS = {"sslops.kernels": "kernels", "sslops.training": "training"}


def packages() -> list[str]:
    """The names to install; the folders are walked themselves, never through sslops/'s links."""
    found = find_packages(include=["sslops", "sslops.*"], exclude=[f"{name}*" for name in FOLDERS])
    for name, folder in FOLDERS.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return found


def package_dirs() -> dict[str, str]:
    """Where the packages lie.

    An editable install is one folder on Python's path, with nothing in it but a link to sslops/,
    whose own links lead to the other folders. An import hook, which setuptools installs for mapped
    folders, comes too late: beside a clone named sslops, Python takes the clone for the package.
    """
    mapped = {"sslops": "sslops", **FOLDERS}
    linked = all(Path(name.replace(".", "/")).is_dir() for name in FOLDERS)
    if "editable_wheel" not in sys.argv or not linked:
        return mapped
    link = Path(".editable/sslops")  # not in build/, which anyone may delete
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(Path("../sslops"), target_is_directory=True)
    except OSError:  # no links here, as on Windows without the right to make them
        return mapped
    return {"": str(link.parent)}


def find_nvcc() -> str | None:
    """The CUDA compiler, of CUDA_HOME or of the path."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def cuda_flags() -> list[str]:
    """Flags of nvcc: no Python and nothing of torch but its stable ABI, of its first version."""
    import torch

    archs = os.environ.get("SSLOPS_CUDA_ARCHS", "80,90a,100").split(",")
    lowest = min(archs, key=lambda arch: int(arch.rstrip("af")))
    codes = [(arch, f"sm_{arch}") for arch in archs] + [(lowest, f"compute_{lowest}")]  # and PTX
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror=all-warnings"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"-isystem={include}"]
    flags += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    return flags + [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes]


def compile_cuda(nvcc: str, sources: list[str], output: Path) -> None:
    """Compile and link sslops._C_cuda; the CUDA runtime is linked in."""
    import torch

    output.parent.mkdir(parents=True, exist_ok=True)
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    threads = f"--threads={os.environ.get('MAX_JOBS', '0')}"
    command = [nvcc, *cuda_flags(), threads, "-shared", *sources, *libraries, "-o", str(output)]
    print(*command)
    subprocess.run(command, check=True)


def extension() -> dict[str, Any]:
    """setup()'s arguments for the compiled modules; empty if nothing is compiled."""
    build = os.environ.get("SSLOPS_BUILD", "auto")
    if build not in ("auto", "none", "cpu", "cuda"):
        raise SystemExit(f"setup.py: SSLOPS_BUILD must be none, cpu or cuda, got {build!r}")
    if build == "none":
        return {}
    if importlib.util.find_spec("torch") is None:
        if build != "auto":
            raise SystemExit(f"setup.py: SSLOPS_BUILD={build} needs torch; --no-build-isolation")
        print("sslops: torch is not visible to this build, so no C++ kernels are compiled")
        return {}
    import torch
    from torch.utils import cpp_extension as cpp

    nvcc = find_nvcc()
    if build == "cuda" and nvcc is None:
        raise SystemExit("setup.py: SSLOPS_BUILD=cuda needs nvcc, on the path or in CUDA_HOME")

    # -g0: Python's own flags say -g, which takes a quarter more time and four times the space
    args = ["-std=c++20", "-O3", "-g0", "-fopenmp", "-Wall", "-Wno-psabi", "-fvisibility=hidden"]
    if os.environ.get("SSLOPS_EMULATE_AMX"):
        args.append("-DSSLOPS_EMULATE_AMX")  # csrc/cpu/tiles/amx_emulated.h
    sanitizers = ["-fsanitize=address,undefined"] if os.environ.get("SSLOPS_SANITIZE") else []
    if sanitizers:
        args += [*sanitizers, "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined", "-g1", "-O2"]
    if sys.platform == "darwin":
        args.remove("-fopenmp")
    sources = sorted(str(file) for file in Path("csrc").rglob("*.cpp"))
    depends = sorted(str(file) for file in Path("csrc").rglob("*.h"))
    module = cpp.CppExtension(
        "sslops._C",
        sources,
        include_dirs=[str(Path("csrc/cpu").resolve())],
        extra_compile_args=args,
        extra_link_args=sanitizers,
        depends=depends,
    )
    modules = [module]
    if nvcc is not None and (build == "cuda" or (build == "auto" and torch.version.cuda)):
        kernels = sorted(str(file) for file in Path("csrc/cuda").glob("*.cu"))
        modules.append(Extension("sslops._C_cuda", kernels, depends=depends, py_limited_api=True))
    for each in modules:
        each.optional = build == "auto"

    class BuildExtension(cpp.BuildExtension):
        """Torch's builder; without a working compiler it leaves the pure package, and says so."""

        def run(self) -> None:
            count = sum(len(each.sources) for each in self.extensions)
            print(f"sslops: compiling {count} files of csrc/, {DURATION}", flush=True)
            try:
                super().run()
            except Exception as error:
                if build != "auto":
                    raise
                print(
                    f"sslops: no C++ kernels, plain PyTorch runs instead; they failed with {error}"
                )

        def build_extensions(self) -> None:
            """The CUDA module by hand: torch's builder refuses nvcc where torch has no CUDA."""
            every = self.extensions
            self.extensions = [ext for ext in every if ext.name != "sslops._C_cuda"]
            super().build_extensions()
            self.extensions = every
            for ext in every:
                if ext.name == "sslops._C_cuda" and nvcc is not None:
                    compile_cuda(nvcc, ext.sources, Path(self.get_ext_fullpath(ext.name)))

    return {"ext_modules": modules, "cmdclass": {"build_ext": BuildExtension}}


if __name__ == "__main__":
    setup(
        packages=packages(),
        package_dir=package_dirs(),
        package_data={"sslops": ["py.typed", "*.pyi"]},
        **extension(),
    )
