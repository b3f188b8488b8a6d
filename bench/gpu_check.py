"""Everything that only a GPU can show, in nine minutes: `python bench/gpu_check.py --out DIR`.

What is worth most comes first: one Triton kernel, the three targets (NT-Xent beside its peers, the
MoCo step as a CUDA graph, the average beside a copy), the kernels' tests. nvcc then works in the
background while memory errors and races are looked for and the grid is measured; what needs its
module comes after it. A step that fails, hangs or is late does not stop the next one: each has its
share of the time, and what it leaves goes to those after it. `DIR/check.json` holds the result of
every step, what was left out and why, and is rewritten whole when a step ends; `DIR/log.txt`
is everything that was printed, `DIR/grid.jsonl` every time. With `--dry-run` a machine without a
GPU goes through the same motions on tiny sizes; `--fault build=hang` makes a step of it hang or
fail.

On a machine that only runs one command, give it 600 s, and what is ignored by git but of use:

    command  python3 bench/gpu_check.py --out "$OUT"
    carry    .whl .triton sslops/_C_cuda.abi3.so

`.whl` holds wheels of what is missing there (pytest, hypothesis and pytest-xdist for the tests,
peers: lightly, pytorch-metric-learning, info-nce-pytorch, open_clip_torch), installed first into a
folder of the run; without pytest or hypothesis every kernel is compared with float64 at one small
size instead. `.triton` is Triton's cache, good for the same Triton, Python and GPU: unpack the
`triton-cache.tar.gz` of an earlier run into it. `_C_cuda.abi3.so` is the CUDA module, which
`SSLOPS_BUILD=cuda` makes without a GPU and any torch since 2.10 loads; with it nothing is built.
All that travels must stay below 64 MiB together with the clone, and 8 files come back: these are
check.json, log.txt, grid.jsonl, grid.csv, build.txt, triton-cache.tar.gz and the built module.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 540.0  # seconds
GRACE = 10.0  # seconds between an interrupt and a kill
RESERVE = GRACE + 5.0  # for the last step's, and for writing down
# In this order. Seconds; what a step leaves goes to those after it.
SHARES = {
    "environment": 17, "triton": 30, "nt_xent": 70, "moco": 25, "ema": 20, "kernels": 95,
    "build": 15, "memcheck": 25, "racecheck": 20, "grid": 50, "graphs": 12, "large": 20,
    "passes": 12, "built": 20, "cuda": 30, "cuda-grid": 15, "cuda-memcheck": 15, "tests": 20,
    "cache": 4, "slow": 10,
}  # fmt: skip
SLOW = (
    "compile,cce-exact,inf-cl"  # to compile, to tune, or to run: they could use up the grid's time
)
PEERS = (
    "chunked,linear_cross_entropy,foreach_lerp,lightly,pytorch-metric-learning,info-nce-pytorch,"
    "open_clip,memeff,liger,liger-scaled,siglip-kernel"
)
GPU_STATE = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
SANITIZER = "compute-sanitizer"
# Tests that launch kernels; the rest of the suite comes after what only a GPU can show.
ON_GPU = re.compile("triton|pitfalls|out_of_range")
OF_CUDA = re.compile("test_cuda_(kernels|update)")
WITHOUT_GPU = (  # of no use here
    "test_triton_compile.py", "test_cuda_compile.py", "test_bench.py", "test_gpu_check.py",
)  # fmt: skip
RUNNER = ("pytest", "hypothesis")
MODULE = "_C_cuda.abi3.so"
MOST_BACK = 15 << 20  # bytes of a file that is to come back


class NotHere(Exception):
    """The step cannot be done on this machine; the message says why."""


@dataclass
class Check:
    """One run of the script."""

    out: Path
    dry: bool
    total: float = TOTAL
    steps: tuple[str, ...] = tuple(SHARES)
    faults: dict[str, str] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)
    results: list[dict[str, Any]] = field(default_factory=list)
    background: "subprocess.Popen[bytes] | None" = None
    site: str = ""  # folder of packages that were brought along
    module: bool = False  # whether sslops._C_cuda was seen to load

    @property
    def device(self) -> str:
        """Where everything runs."""
        return "cpu" if self.dry else "cuda"

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begin

    @property
    def beside(self) -> str:
        """What takes cores from what is measured now."""
        building = self.background is not None and self.background.poll() is None
        return "build" if building else ""

    def limit(self, name: str) -> float:
        """Seconds until the shares of this step and of those before it are used up."""
        until = self.steps.index(name) + 1
        parts = [SHARES[each] for each in self.steps]
        return (self.total - RESERVE) * sum(parts[:until]) / sum(parts) - self.spent

    def do(self, name: str, step: Callable[["Check", float], dict[str, Any]]) -> None:
        """Run a step within its limit and write down what came of it, whatever that is."""
        limit = self.limit(name)
        start = time.monotonic()
        result: dict[str, Any] = {"step": name, "limit_s": round(limit, 1)}
        if self.beside:
            result["beside"] = self.beside
        try:
            if limit < 2:
                raise NotHere("the time was used up by the steps before")
            if name in self.faults:
                step = FAULTS[self.faults[name]]
            result |= {"status": "passed"} | step(self, limit)
        except NotHere as reason:
            result |= {"status": "skipped", "reason": str(reason)}
        except Exception as error:  # the next step may still tell something
            result |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - start, 1)
        self.results.append(result)
        self.write()
        print(
            f"{name:<12}{result['status']:<9}{result['seconds']:>6} s  {result.get('reason', '')}"
        )

    def write(self) -> None:
        """check.json, whole at any time."""
        environment = next((r for r in self.results if r["step"] == "environment"), {})
        text = json.dumps(
            {
                "dry_run": self.dry,
                "seconds": round(self.spent, 1),
                "versions": environment.get("versions"),
                "failed": [r["step"] for r in self.results if r["status"] == "failed"],
                "left_out": self.left_out(),
                "steps": self.results,
            },
            indent=1,
        )
        draft = self.out / "check.json.part"
        draft.write_text(text)
        draft.replace(self.out / "check.json")

    def left_out(self) -> dict[str, str]:
        """Step -> why it told nothing, or not all."""
        out = {name: "the check ended before it" for name in self.steps}
        for result in self.results:
            del out[result["step"]]
            if result["status"] == "skipped" or result.get("code", 0) is None:
                out[result["step"]] = result["reason"]
        return out

    def environ(self, **env: str) -> dict[str, str]:
        """What the programs of a step find in their environment."""
        inherited = os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join(each for each in (str(ROOT), self.site, inherited) if each)
        cache = {} if self.dry else {"TRITON_CACHE_DIR": str(ROOT / ".triton")}
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **cache, **env}

    def run(self, command: list[str], limit: float, **env: str) -> dict[str, Any]:
        """Run a program, its output into log.txt; {status, command, code, output}."""
        log = self.out / "log.txt"
        with log.open("a") as file:
            file.write(f"\n$ {' '.join(command)}\n")
        before = log.stat().st_size
        with log.open("a") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env=self.environ(**env), start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
                process.send_signal(signal.SIGINT)  # pytest then prints its results
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
                with contextlib.suppress(ProcessLookupError):  # its children as well
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        with log.open(errors="replace") as file:
            file.seek(before)
            output = file.read()
        row: dict[str, Any] = {"command": " ".join(command), "code": code, "output": output}
        row["status"] = "passed" if code == 0 else "failed"
        if code is None:
            row["reason"] = f"ran longer than {limit:.0f} s"
        elif code != 0:
            row["reason"] = f"exit code {code}"
        return row

    def end_background(self) -> None:
        """Kill what still runs beside the steps, its children as well."""
        if self.background is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.background.pid, signal.SIGKILL)
            self.background.wait()
            self.background = None

    def has_module(self, limit: float) -> bool:
        """Whether sslops._C_cuda loads; brought along or built, it then stays."""
        self.module = self.module or self.python("-c", LOADS, limit=limit)["code"] == 0
        return self.module

    def python(self, *arguments: str, limit: float, **env: str) -> dict[str, Any]:
        """The same for this interpreter."""
        return self.run([sys.executable, *arguments], limit, **env)


def brief(row: dict[str, Any], lines: int = 15) -> dict[str, Any]:
    """With the end of the output instead of all of it."""
    tail = row["output"].strip().splitlines()[-lines:]
    return {**row, "output": tail}


def gpu_state(check: Check, limit: float) -> str | None:
    """Clocks and temperature, as the driver reports them, within what is left of the step."""
    run = ["nvidia-smi", f"--query-gpu={GPU_STATE}", "--format=csv"]
    if shutil.which(run[0]) is None:
        return None
    if limit < 1:
        return "not asked for: the step's time was used up"
    return str(check.run(run, min(limit, 15))["output"].strip())


def environment(check: Check, limit: float) -> dict[str, Any]:
    """Versions and the GPU; first what was brought along is installed, into a folder of the run."""
    end = time.monotonic() + limit
    wheels = sorted(map(str, (ROOT / ".whl").glob("*.whl")))
    if wheels:
        site = check.out / "site"
        install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        row = check.python(*install, "--target", str(site), *wheels, limit=limit / 2)
        if row["status"] == "failed":
            return brief(row)
        check.site = str(site)
    left = max(2.0, end - time.monotonic())
    row = check.python("-c", VERSIONS.format(check.device), limit=left)
    if row["status"] == "failed":
        return brief(row)
    versions = json.loads(row["output"].strip().splitlines()[-1])
    wheels = [Path(each).name for each in wheels]
    state = gpu_state(check, end - time.monotonic())
    facts = {"gpu": state, "python": sys.version.split()[0], "wheels": wheels}
    return {"versions": versions, "missing": missing(check, *RUNNER, "xdist"), **facts}


VERSIONS = (
    "import json; from bench.harness import environment as env;"
    "print(json.dumps(env({!r}, 'bench/gpu_check.py')))"
)


def missing(check: Check, *modules: str) -> list[str]:
    """Those that the programs of a step could not import."""
    path = [check.site] if check.site else []
    return [
        name
        for name in modules
        if find_spec(name) is None and PathFinder.find_spec(name, path) is None
    ]


def nvcc() -> str | None:
    """Where setup.py finds it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def architecture(check: Check) -> dict[str, str]:
    """The one that is here, as setup.py takes it from the environment."""
    if shutil.which("nvidia-smi") is None:
        return {}
    run = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    match = re.search(r"^(\d+)\.\d+$", check.run(run, 15)["output"], re.MULTILINE)
    names = {"9": "90a", "10": "100"}
    return {"SSLOPS_CUDA_ARCHS": names.get(match.group(1), "80")} if match else {}


def build(check: Check, limit: float) -> dict[str, Any]:
    """Start nvcc, and after it the C++ for the rest of the tests; "built" waits for them."""
    if not check.dry and check.has_module(limit):
        raise NotHere("sslops._C_cuda was brought along and loads")
    folder = check.out / "build"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, str(folder)]
    if check.dry:
        command = [sys.executable, "-c", "print('nothing to build')"]
    elif nvcc() is None:
        raise NotHere("there is no nvcc")
    jobs = max(1, (os.cpu_count() or 2) - 2)  # two cores for what is measured meanwhile
    with (check.out / "build.txt").open("w") as log:
        check.background = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env=check.environ(MAX_JOBS=str(jobs), **architecture(check)),
        )  # fmt: skip
    return {"nvcc": nvcc(), "command": "in the background"}


LOADS = "from sslops import _library as l; raise SystemExit(not l.load_cuda_extension())"
# nvcc writes beside the module, so that one that is there is whole
BUILD = f"""
import os, pathlib, subprocess, sys
import setup
folder = pathlib.Path(sys.argv[1])
sources = sorted(map(str, pathlib.Path("csrc/cuda").glob("*.cu")))
setup.compile_cuda(setup.find_nvcc(), sources, folder / "draft.so")
(folder / "draft.so").rename(folder / "{MODULE}")
run = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder / "lib")]
subprocess.run(run, check=True, env={{**os.environ, "SSLOPS_BUILD": "cpu"}})
"""


def built(check: Check, limit: float) -> dict[str, Any]:
    """Wait for the build, and put what is ready where the package looks for it."""
    process = check.background
    if process is None:
        raise NotHere("nothing was being built")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=limit)
    code = process.poll()
    check.end_background()
    folder = check.out / "build"
    modules = [*folder.glob(MODULE), *(folder / "lib" / "sslops").glob("_C.*.so")]
    for module in modules if code == 0 else folder.glob(MODULE):
        shutil.copy(module, ROOT / "sslops" / module.name)
    for module in folder.glob(MODULE):
        shutil.copy(module, check.out / module.name)  # to be brought along the next time
    tail = (check.out / "build.txt").read_text(errors="replace").splitlines()[-30:]
    row = {"built": [module.name for module in modules], "code": code, "output": tail}
    if code == 0:
        return row
    reason = f"ran longer than {limit:.0f} s" if code is None else f"exit code {code}"
    return row | {"status": "failed", "reason": reason}


def cache(check: Check, limit: float) -> dict[str, Any]:
    """Pack Triton's cache, for the next run to bring along, as much as there is time for."""
    end = time.monotonic() + limit
    folder = Path(check.environ().get("TRITON_CACHE_DIR", ""))
    if check.dry or not folder.is_dir():
        raise NotHere("there is no cache of compiled kernels")
    target = check.out / "triton-cache.tar.gz"
    kernels, packed = sorted(folder.iterdir()), 0
    with tarfile.open(target, "w:gz", compresslevel=1) as tar:
        for each in kernels:
            if time.monotonic() > end:
                break
            tar.add(each, arcname=f"./{each.name}")
            packed += 1
    size = target.stat().st_size
    if size > MOST_BACK:
        target.unlink()
        raise NotHere(f"the cache has {size} bytes, more than {MOST_BACK}")
    row: dict[str, Any] = {"bytes": size}
    if late := len(kernels) - packed:
        why = f"packing took longer than {limit:.0f} s"
        row["reason"] = f"{late} of {len(kernels)} folders are left out: {why}"
    return row


def files(kind: str) -> list[str]:
    """Of the test suite: those that launch Triton's "kernels", those of "cuda", or the "tests"."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: path.name)
    chosen = []
    for path in paths:
        of = "cuda" if OF_CUDA.search(path.name) else "tests"
        of = "kernels" if ON_GPU.search(path.name) else of
        if of == kind and path.name not in WITHOUT_GPU:
            chosen.append(str(path.relative_to(ROOT)))
    return chosen


def tests(kind: str) -> Callable[[Check, float], dict[str, Any]]:
    """A part of the test suite, in every dtype: bfloat16 is skipped in the interpreter alone."""

    def step(check: Check, limit: float) -> dict[str, Any]:
        if check.dry and kind != "kernels":
            raise NotHere("a dry run runs one file of tests")
        if kind == "cuda" and not check.has_module(limit / 2):
            raise NotHere("there is no sslops._C_cuda")
        if absent := missing(check, *RUNNER):
            if kind == "tests":
                raise NotHere(f"{' and '.join(absent)} cannot be imported")
            row = small(check, limit, f"sslops-{'cuda' if kind == 'cuda' else 'triton'}")
            reason = row.get("reason", "every result was right")
            note = f"{' and '.join(absent)} cannot be imported; small sizes instead: {reason}"
            return row | {"reason": note}
        chosen = ["tests/training/test_chart.py"] if check.dry else files(kind)
        arguments = ["-m", "pytest", *chosen, "-o", "addopts=", "-v", "-rsfE", "--tb=short"]
        arguments += ["--strict-markers", "-p", "no:cacheprovider", "-k", "not emulated"]
        if not missing(check, "xdist") and not check.dry:
            # one test at a time: those of a file come in a row, and compile the same kernels
            arguments += ["-n", str(max(2, (os.cpu_count() or 2) - 2)), "--maxschedchunk=1"]
        # an interrupt needs time to be written down
        row = check.python(
            *arguments, limit=max(2, limit - GRACE), OMP_NUM_THREADS="1", GOMP_SPINCOUNT="0"
        )
        return counts(row["output"]) | {
            **brief(row),
            "command": f"pytest of {len(arguments)} arguments",
        }

    return step


def small(check: Check, limit: float, provider: str) -> dict[str, Any]:
    """Every op at a tiny size, compared with float64 before it is timed."""
    arguments = ["-m", "bench", "--device", check.device, "--out", str(check.out), "--quick"]
    arguments += ["--providers", "sslops" if check.dry else provider, "--modes", "both"]
    arguments += ["--rounds", "3", "--seconds", "0.1", "--no-memory"]
    return brief(check.python(*arguments, "--budget", f"{0.8 * limit:.0f}", limit=limit), 60)


def counts(output: str) -> dict[str, Any]:
    """From pytest's verbose lines, so that a run that was stopped counts too."""
    body, summary = output.split("short test summary info")[0], output.splitlines()
    one = re.compile(r"(?:^|\s)(PASSED|FAILED|ERROR|SKIPPED|XFAIL)(?:\s|$)")
    lines = [(m.group(1), line) for line in body.splitlines() if (m := one.search(line))]
    kinds = [kind for kind, _ in lines]
    failed = [s for s in summary if s.startswith(("FAILED", "ERROR "))]
    failed = failed or [line for kind, line in lines if kind in ("FAILED", "ERROR")]
    return {
        "counts": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "failures": [s[:300] for s in failed][:60],
        "skips": [s[:300] for s in summary if s.startswith("SKIPPED")][:60],
    }


def sanitize(tool: str, provider: str) -> Callable[[Check, float], dict[str, Any]]:
    """Small runs of every kernel of one kind under one tool of the compute sanitizer."""

    def step(check: Check, limit: float) -> dict[str, Any]:
        name = "sslops" if check.dry else provider
        small = [sys.executable, "-m", "bench.small_run", check.device, name]
        if shutil.which(SANITIZER) is None:
            if check.dry and (tool, provider) == ("memcheck", "sslops-triton"):
                return brief(check.run(small, limit)) | {"reason": "without a sanitizer"}
            raise NotHere(f"{SANITIZER} is not on the path")
        if provider == "sslops-cuda" and not check.has_module(limit / 2):
            raise NotHere("there is no sslops._C_cuda")
        command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", *small]
        # without the caching allocator every tensor has bounds of its own
        return brief(check.run(command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))

    return step


def measured(name: str, *, again: bool = False) -> Callable[[Check, float], dict[str, Any]]:
    """Parts of GRID, the first before the next may hang; all append to the same files.

    `again`: at tiny sizes it would be what another step has measured.
    """

    def step(check: Check, limit: float) -> dict[str, Any]:
        if check.dry and again:
            raise NotHere("a dry run measures once")
        if "sslops-cuda" in GRID[name][0] and not check.has_module(limit / 2):
            raise NotHere("there is no sslops._C_cuda")
        end = time.monotonic() + limit
        rows: list[dict[str, Any]] = []
        for each in GRID[name]:
            left = end - time.monotonic()
            if rows and left < 2:
                rows.append(
                    {"status": "failed", "reason": "no time was left for all", "output": []}
                )
                break
            rows.append(_measure(check, each, max(2.0, left)))
        worst = next((row for row in rows if row["status"] == "failed"), rows[-1])
        output = [line for row in rows for line in row["output"]]
        return worst | {"output": output, "gpu": gpu_state(check, end - time.monotonic())}

    return step


def _measure(check: Check, flags: str, limit: float) -> dict[str, Any]:
    arguments = ["-m", "bench", "--device", check.device, "--out", str(check.out)]
    arguments += [*flags.split(), "--budget", f"{0.6 * limit:.0f}"]
    arguments += ["--beside", check.beside] if check.beside else []
    if check.dry:
        arguments += ["--quick", "--size", "", "--no-memory", "--modes", "both"]
        arguments += ["--rounds", "3", "--seconds", "0.1", "--providers", "sslops,eager,memeff"]
        if "--op" not in flags:
            arguments += ["--op", "nt_xent"]
    return brief(check.python(*arguments, limit=limit))


def ema(check: Check, limit: float) -> dict[str, Any]:
    """The average of a ResNet-50 beside a copy of as many bytes."""
    size = ["--size", "2", "--seconds", "0.1"] if check.dry else []
    row = brief(check.python("-m", "bench.ema_copy", check.device, *size, limit=limit))
    rates = [json.loads(line) for line in row["output"] if line.startswith("{")]
    return {**row, "output": [] if rates else row["output"], "rates": rates}


def fails(check: Check, limit: float) -> dict[str, Any]:
    """A step that fails, in a dry run."""
    return brief(check.python("-c", "raise SystemExit('made to fail')", limit=limit))


def hangs(check: Check, limit: float) -> dict[str, Any]:
    """A step that does not end, in a dry run; not by an interrupt either."""
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(3600)"
    return brief(check.python("-c", code, limit=limit))


FAULTS = {"fail": fails, "hang": hangs}
# Flags of `python -m bench` for each step that measures.
GRID: dict[str, tuple[str, ...]] = {
    "triton": (
        "--op nt_xent --dtype bfloat16 --size 1024x128 --providers sslops-triton --modes both"
        " --rounds 5 --seconds 0.5",
    ),
    "nt_xent": (
        "--op nt_xent --size 65536x128 --dtype bfloat16 --modes both --providers sslops,eager"
        " --seconds 2",
        "--op nt_xent --size 65536x128 --dtype bfloat16 --modes both,forward"
        f" --providers sslops,eager,{PEERS} --seconds 3",
    ),
    "moco": (
        "--op moco --size 256x65536x128 --dtype bfloat16,float32/bfloat16 --modes graph"
        " --providers sslops,eager --seconds 1",
    ),
    "grid": (
        f"--modes both --dtype bfloat16,float32/bfloat16 --providers sslops,eager,{PEERS}"
        " --seconds 1",
    ),
    "graphs": (
        "--modes graph --dtype bfloat16 --op enqueue_,nt_xent,ema_update_ --seconds 0.5"
        " --size 256x65536x128,1024x128,8192x128,64 --providers sslops,eager",
    ),
    "large": (
        "--modes both --dtype bfloat16 --op nt_xent --size 1048576x128 --providers sslops"
        " --rounds 3 --seconds 5",
    ),
    "passes": (
        "--modes forward,backward,both --dtype float32,bfloat16 --op nt_xent,clip_loss,info_nce"
        " --size 8192x128 --providers sslops,eager --seconds 0.5",
    ),
    "cuda-grid": (
        "--modes both,graph --dtype bfloat16,float32 --op info_nce,moco,nt_xent,ema_update_"
        " --size 256x65536x128,8192x128,64 --providers sslops-triton,sslops-cuda --seconds 0.5",
    ),
    "slow": (
        "--modes both --dtype bfloat16 --op nt_xent,info_nce,clip_loss --size 8192x128"
        f" --providers sslops,eager,{SLOW} --seconds 1",
    ),
}
STEPS: dict[str, Callable[[Check, float], dict[str, Any]]] = {
    "environment": environment,
    "triton": measured("triton"),
    "nt_xent": measured("nt_xent"),
    "moco": measured("moco"),
    "ema": ema,
    "kernels": tests("kernels"),
    "build": build,
    "memcheck": sanitize("memcheck", "sslops-triton"),
    "racecheck": sanitize("racecheck", "sslops-triton"),
    "grid": measured("grid"),
    "graphs": measured("graphs", again=True),
    "large": measured("large", again=True),
    "passes": measured("passes", again=True),
    "built": built,
    "cuda": tests("cuda"),
    "cuda-grid": measured("cuda-grid", again=True),
    "cuda-memcheck": sanitize("memcheck", "sslops-cuda"),
    "tests": tests("tests"),
    "cache": cache,
    "slow": measured("slow", again=True),
}


def main() -> int:
    """Run the steps; 1 if any failed."""
    parser = argparse.ArgumentParser("gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", default=",".join(SHARES), help="steps, joined by commas")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for everything")
    parser.add_argument(
        "--fault", action="append", default=[], help="STEP=hang or STEP=fail, in a dry run"
    )
    args = parser.parse_args()
    chosen = args.only.split(",")
    faults = dict(each.partition("=")[::2] for each in args.fault)
    if unknown := [name for name in [*chosen, *faults] if name not in STEPS]:
        parser.error(f"steps are {', '.join(STEPS)}, got {', '.join(unknown)}")
    if faults and not (args.dry_run and set(faults.values()) <= set(FAULTS)):
        parser.error(f"a fault is hang or fail, in a dry run, got {', '.join(args.fault)}")
    args.out.mkdir(parents=True, exist_ok=True)
    check = Check(args.out.resolve(), args.dry_run, args.seconds, tuple(chosen), faults)
    try:
        for name in chosen:
            check.do(name, STEPS[name])
    finally:
        check.end_background()
        for folder in ("site", "build"):
            shutil.rmtree(check.out / folder, ignore_errors=True)
    for name, why in check.left_out().items():
        print(f"left out: {name}, {why}")
    print(f"{check.out / 'check.json'} after {check.spent:.0f} s")
    return int(any(result["status"] == "failed" for result in check.results))


if __name__ == "__main__":
    sys.exit(main())
