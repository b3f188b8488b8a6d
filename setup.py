"""Build of sslops: maps the top-level folders into the package and compiles csrc/ where it can.

SSLOPS_BUILD=none|cpu says what is compiled. Unset: cpu if torch can be imported (as with
`pip install --no-build-isolation .`), else none, which gives the pure package.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

FOLDERS = {"sslops.kernels": "kernels", "sslops.training": "training"}


def packages() -> list[str]:
    """The names to install; the folders are walked themselves, never through sslops/'s links."""
    found = find_packages(include=["sslops", "sslops.*"], exclude=[f"{name}*" for name in FOLDERS])
    for name, folder in FOLDERS.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return found


def extension() -> dict[str, Any]:
    """setup()'s arguments for the compiled module, sslops._C; empty if nothing is compiled."""
    build = os.environ.get("SSLOPS_BUILD", "auto")
    if build not in ("auto", "none", "cpu"):
        raise SystemExit(f"setup.py: SSLOPS_BUILD must be none or cpu, got {build!r}")
    if build == "none":
        return {}
    if importlib.util.find_spec("torch") is None:
        if build == "cpu":
            raise SystemExit("setup.py: SSLOPS_BUILD=cpu needs torch; add --no-build-isolation")
        print("sslops: torch is not visible to this build, so no C++ kernels are compiled")
        return {}
    from torch.utils import cpp_extension as cpp

    args = ["-std=c++20", "-O3", "-fopenmp", "-Wall", "-fvisibility=hidden"]
    if os.environ.get("SSLOPS_EMULATE_AMX"):
        args.append("-DSSLOPS_EMULATE_AMX")  # csrc/cpu/amx_emulated.h
    sanitizers = ["-fsanitize=address,undefined"] if os.environ.get("SSLOPS_SANITIZE") else []
    if sanitizers:
        args += [*sanitizers, "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined", "-g1", "-O2"]
    if sys.platform == "darwin":
        args.remove("-fopenmp")
    sources = sorted(
        str(file) for file in [*Path("csrc").glob("*.cpp"), *Path("csrc").glob("cpu/*.cpp")]
    )
    depends = sorted(str(file) for file in Path("csrc").rglob("*.h"))
    module = cpp.CppExtension(
        "sslops._C", sources, extra_compile_args=args, extra_link_args=sanitizers, depends=depends
    )
    module.optional = build == "auto"

    class BuildExtension(cpp.BuildExtension):
        """Torch's builder; without a working compiler it leaves the pure package, and says so."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if build == "cpu":
                    raise
                print(
                    f"sslops: no C++ kernels, plain PyTorch runs instead; they failed with {error}"
                )

    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(
    packages=packages(),
    package_dir={"sslops": "sslops", **FOLDERS},
    package_data={"sslops": ["py.typed", "*.pyi"]},
    **extension(),
)
