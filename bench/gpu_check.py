"""Everything that only a GPU can show, in eight minutes: `python bench/gpu_check.py --out DIR`.

Builds, runs the tests of the kernels on the GPU, looks for memory errors and races, measures
against the peers that are installed, and runs the other tests. A step that fails does not stop the
next one. Each has its share of the time; what it leaves goes to those after it. `DIR/check.json`
holds the result of every step and is written anew after each; `DIR/log.txt` is everything that was
printed. With `--dry-run` a machine without a GPU goes through the same motions on tiny sizes.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 470.0  # seconds
RESERVE = 5.0  # for writing down
SHARES = {
    "environment": 25, "build": 60, "smoke": 25, "kernels": 85, "grid": 70, "graphs": 15,
    "memcheck": 30, "racecheck": 30, "large": 35, "passes": 15, "tests": 90, "slow": 20,
}  # fmt: skip
SLOW = (
    "compile,cce-exact,inf-cl"  # to compile, to tune, or to run: they could use up the grid's time
)
QUICK = (
    "sslops,sslops-triton,sslops-cuda,eager,chunked,linear_cross_entropy,foreach_lerp,lightly,"
    "info-nce-pytorch,open_clip,memeff,liger,liger-scaled,siglip-kernel"
)
GPU_STATE = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
SANITIZER = "compute-sanitizer"
# Tests that launch kernels; the rest of the suite comes after what only a GPU can show.
ON_GPU = re.compile("triton|test_cuda_(kernels|update)|pitfalls")
WITHOUT_GPU = ("test_triton_compile.py", "test_cuda_compile.py", "test_bench.py")  # of no use here
GRACE = 10.0  # seconds between an interrupt and a kill


class NotHere(Exception):
    """The step cannot be done on this machine; the message says why."""


@dataclass
class Check:
    """One run of the script."""

    out: Path
    dry: bool
    total: float = TOTAL
    steps: tuple[str, ...] = tuple(SHARES)
    begin: float = field(default_factory=time.monotonic)
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Where everything runs."""
        return "cpu" if self.dry else "cuda"

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begin

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
        try:
            if limit < 2:
                raise NotHere("the time was used up by the steps before")
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
                "steps": self.results,
            },
            indent=1,
        )
        draft = self.out / "check.json.part"
        draft.write_text(text)
        draft.replace(self.out / "check.json")

    def run(self, command: list[str], limit: float, **env: str) -> dict[str, Any]:
        """Run a program, its output into log.txt; {status, command, code, output}."""
        log = self.out / "log.txt"
        with log.open("a") as file:
            file.write(f"\n$ {' '.join(command)}\n")
        before = log.stat().st_size
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **env}
        with log.open("a") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=variables,
                start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
                process.send_signal(signal.SIGINT)  # pytest then says what it has found
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

    def python(self, *arguments: str, limit: float, **env: str) -> dict[str, Any]:
        """The same for this interpreter."""
        return self.run([sys.executable, *arguments], limit, **env)


def brief(row: dict[str, Any], lines: int = 15) -> dict[str, Any]:
    """With the end of the output instead of all of it."""
    tail = row["output"].strip().splitlines()[-lines:]
    return {**row, "output": tail}


def gpu_state(check: Check) -> str | None:
    """Clocks and temperature, as the driver reports them."""
    run = ["nvidia-smi", f"--query-gpu={GPU_STATE}", "--format=csv"]
    return str(check.run(run, 15)["output"].strip()) if shutil.which(run[0]) else None


def environment(check: Check, limit: float) -> dict[str, Any]:
    code = "import json; from bench.harness import environment as e;"
    code += f"print(json.dumps(e({check.device!r}, 'bench/gpu_check.py')))"
    row = check.python("-c", code, limit=limit)
    if row["status"] == "failed":
        return brief(row)
    versions = json.loads(row["output"].strip().splitlines()[-1])
    return {"versions": versions, "gpu": gpu_state(check), "python": sys.version.split()[0]}


def nvcc() -> str | None:
    """Where setup.py finds it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def architecture(check: Check) -> dict[str, str]:
    """The one that is here, as setup.py takes it from the environment."""
    if shutil.which("nvidia-smi") is None:
        return {}
    run = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = re.search(r"^(\d+)\.\d+$", check.run(run, 15)["output"], re.MULTILINE)
    names = {"9": "90a", "10": "100"}
    return {"SSLOPS_CUDA_ARCHS": names.get(found.group(1), "80")} if found else {}


def build(check: Check, limit: float) -> dict[str, Any]:
    """With CUDA if there is a compiler for it; what fails is followed by what needs less."""
    kinds = ["cuda", "cpu", "none"] if nvcc() else ["cpu", "none"]
    tried: dict[str, list[str]] = {}
    end = time.monotonic() + limit
    for kind in ["none"] if check.dry else kinds:
        jobs = str(os.cpu_count() or 2)
        row = check.python(
            "setup.py", "build_ext", "--inplace", limit=max(2, end - time.monotonic()),
            SSLOPS_BUILD=kind, MAX_JOBS=jobs, **architecture(check),
        )  # fmt: skip
        if row["status"] == "passed":
            status = "failed" if tried else "passed"
            reason = {"reason": f"only {kind} could be built"} if tried else {}
            return {"status": status, "built": kind, "nvcc": nvcc(), "errors": tried} | reason
        tried[kind] = brief(row, 30)["output"]
    return {"status": "failed", "reason": "nothing could be built", "errors": tried}


def smoke(check: Check, limit: float) -> dict[str, Any]:
    """Every kernel once; what is compiled here the sanitizer finds in Triton's cache."""
    return brief(check.python("-m", "bench.small_run", check.device, limit=limit), 40)


def files(*, on_gpu: bool) -> list[str]:
    """Of the test suite, those that launch kernels, or the others."""
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    return [
        str(path.relative_to(ROOT))
        for path in paths
        if path.name not in WITHOUT_GPU and bool(ON_GPU.search(path.name)) == on_gpu
    ]


def tests(*, on_gpu: bool) -> Callable[[Check, float], dict[str, Any]]:
    """One half of the test suite."""

    def step(check: Check, limit: float) -> dict[str, Any]:
        chosen = ["tests/test_backend.py"] if check.dry else files(on_gpu=on_gpu)
        arguments = ["-m", "pytest", *chosen, "-o", "addopts=", "-v", "-rsfE", "--tb=short"]
        arguments += ["--strict-markers", "-p", "no:cacheprovider", "-k", "not emulated"]
        if importlib.util.find_spec("xdist") and not check.dry:
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


def counts(output: str) -> dict[str, Any]:
    """From pytest's verbose lines, so that a run that was stopped counts too."""
    body, summary = output.split("short test summary info")[0], output.splitlines()
    one = re.compile(r"(?:^|\s)(PASSED|FAILED|ERROR|SKIPPED|XFAIL)(?:\s|$)")
    lines = [(m.group(1), line) for line in body.splitlines() if (m := one.search(line))]
    found = [kind for kind, _ in lines]
    failed = [s for s in summary if s.startswith(("FAILED", "ERROR "))]
    failed = failed or [line for kind, line in lines if kind in ("FAILED", "ERROR")]
    return {
        "counts": {kind: found.count(kind) for kind in sorted(set(found))},
        "failures": [s[:300] for s in failed][:60],
        "skips": [s[:300] for s in summary if s.startswith("SKIPPED")][:60],
    }


def sanitize(tool: str) -> Callable[[Check, float], dict[str, Any]]:
    """Small runs of every kernel under one tool of the compute sanitizer."""

    def step(check: Check, limit: float) -> dict[str, Any]:
        small = [sys.executable, "-m", "bench.small_run", check.device]
        if shutil.which(SANITIZER) is None:
            if check.dry and tool == "memcheck":
                return brief(check.run(small, limit)) | {"reason": "without a sanitizer"}
            raise NotHere(f"{SANITIZER} is not on the path")
        command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", *small]
        # without the caching allocator every tensor has bounds of its own
        return brief(check.run(command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))

    return step


def measured(flags: str) -> Callable[[Check, float], dict[str, Any]]:
    """A part of the grid; all parts append to the same files."""

    def step(check: Check, limit: float) -> dict[str, Any]:
        if check.dry and "graph" in flags:
            raise NotHere("CUDA graphs need a CUDA device")
        arguments = ["-m", "bench", "--device", check.device, "--out", str(check.out)]
        arguments += [*flags.split(), "--budget", f"{0.6 * limit:.0f}"]
        if check.dry:
            arguments += ["--quick", "--size", "", "--op", "nt_xent,ema_update_", "--no-memory"]
            arguments += ["--rounds", "3", "--seconds", "0.1", "--providers", "sslops,eager,memeff"]
        return brief(check.python(*arguments, limit=limit)) | {"gpu": gpu_state(check)}

    return step


STEPS: dict[str, Callable[[Check, float], dict[str, Any]]] = {
    "environment": environment,
    "build": build,
    "smoke": smoke,
    "kernels": tests(on_gpu=True),
    "grid": measured(
        f"--modes both --dtype bfloat16,float32/bfloat16 --providers {QUICK} --seconds 1"
    ),
    "graphs": measured(
        "--modes graph --dtype bfloat16 --op moco,enqueue_,nt_xent,ema_update_ --seconds 0.5"
        " --size 256x65536x128,1024x128,8192x128,64"
        " --providers sslops,sslops-cuda,sslops-triton,eager"
    ),
    "memcheck": sanitize("memcheck"),
    "racecheck": sanitize("racecheck"),
    "large": measured(
        "--modes both --dtype bfloat16 --op nt_xent --size 1048576x128 --providers sslops"
        " --rounds 3 --seconds 5"
    ),
    "passes": measured(
        "--modes forward,backward,both --dtype float32,bfloat16 --op nt_xent,clip_loss,info_nce"
        " --size 8192x128 --providers sslops,eager --seconds 0.5"
    ),
    "tests": tests(on_gpu=False),
    "slow": measured(
        "--modes both --dtype bfloat16 --op nt_xent,info_nce,clip_loss --size 8192x128"
        f" --providers sslops,eager,{SLOW} --seconds 1"
    ),
}


def main() -> int:
    """Run the steps; 1 if any failed."""
    parser = argparse.ArgumentParser("gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", default=",".join(SHARES), help="steps, joined by commas")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for everything")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := [name for name in chosen if name not in STEPS]:
        parser.error(f"steps are {', '.join(STEPS)}, got {', '.join(unknown)}")
    given.out.mkdir(parents=True, exist_ok=True)
    check = Check(given.out.resolve(), given.dry_run, given.seconds, tuple(chosen))
    for name in chosen:
        check.do(name, STEPS[name])
    print(f"{check.out / 'check.json'} after {check.spent:.0f} s")
    return int(any(result["status"] == "failed" for result in check.results))


if __name__ == "__main__":
    sys.exit(main())
