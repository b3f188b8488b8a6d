"""The grid: op x size x dtype x provider, checked, timed, weighed, written a row at a time."""

import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import memory
from bench.cases import OPS, Case, make_case, parse_size
from bench.check import Truth, judge, truth
from bench.harness import environment
from bench.providers import PROVIDERS, Job, Skip
from bench.timing import MODES, make_run, measure

MIB = 1 << 20
# Plain code keeps about this many copies of its logits at the backward pass's peak.
COPIES = 6
STORES_LOGITS = ("eager", "compile", "lightly", "pytorch-metric-learning", "info-nce-pytorch",
                 "open_clip")  # fmt: skip
FIELDS = (
    "op", "size", "dtype", "provider", "version", "mode", "status", "reason",
    "p20_ms", "p50_ms", "p80_ms", "min_ms", "rounds", "peak_mib",
    "loss_error", "grad_error", "truth", "no_gradient", "flop", "tflops", "bytes", "gb_per_s",
    "device", "threads", "matmul_precision", "flush", "torch", "triton", "cuda", "sslops",
    "commit", "date", "command", "beside",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is measured, and for how long.

    Attributes:
        sizes: of every op that has that many dims; the op's own if empty.
        dtypes: float32 and bfloat16, and the op's mixed pairs, if empty.
        seconds: for the rounds of one mode of one case.
        budget: after which no further case is begun.
        beside: what else runs on the machine meanwhile; for the rows.
    """

    ops: tuple[str, ...] = tuple(OPS)
    sizes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    providers: tuple[str, ...] = tuple(PROVIDERS)
    modes: tuple[str, ...] = ("both", "forward", "backward")
    device: str = "cpu"
    rounds: int = 50
    seconds: float = 3.0
    budget: float = float("inf")
    memory: bool = True
    flush: bool = True
    quick: bool = False
    command: str = ""
    beside: str = ""

    def check(self) -> None:
        """Raise ValueError for a name that does not exist."""
        for kind, names, known in (
            ("op", self.ops, OPS),
            ("provider", self.providers, PROVIDERS),
            ("mode", self.modes, MODES),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"bench: {kind} must be of {', '.join(known)}, got {name!r}")
        for size in self.sizes:
            if not any(len(OPS[op].dims) == len(size.split("x")) for op in self.ops):
                kinds = ", ".join(f"{op} {'x'.join(OPS[op].dims)}" for op in self.ops)
                raise ValueError(f"bench: sizes are {kinds}, got {size!r}")


def find_device(name: str) -> torch.device:
    """The device of that name; ValueError if this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"bench: device must exist on this machine, got {name!r}") from error


def plan(options: Options) -> Iterator[tuple[str, str, str]]:
    """(op, size, dtype) of every case: the first size of every op, then the second, ..."""
    options.check()
    sizes: dict[str, list[str]] = {}
    for op in options.ops:
        known = OPS[op].cuda if options.device.startswith("cuda") else OPS[op].cpu
        fitting = [s for s in options.sizes if len(s.split("x")) == len(OPS[op].dims)]
        sizes[op] = fitting if options.sizes else list(known)
        if options.quick and not options.sizes:
            sizes[op] = [OPS[op].tiny]
        for size in sizes[op]:
            parse_size(op, size)
    for n in range(max(map(len, sizes.values()))):
        for op in options.ops:
            for dtype in options.dtypes or ("float32", "bfloat16", *OPS[op].mixed):
                if n < len(sizes[op]) and ("/" not in dtype or dtype in OPS[op].mixed):
                    yield op, sizes[op][n], dtype


def run(options: Options, out: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measure everything and write grid.jsonl and grid.csv in the folder `out`.

    Rows are appended one by one, so that a run that is stopped keeps what it has.
    """
    cases = list(plan(options))
    unfit = [op for op in options.ops if op not in {op for op, _, _ in cases}]
    for op in unfit if options.sizes else ():
        say(f"without {op}: its sizes are {'x'.join(OPS[op].dims)}")
    device = find_device(options.device)
    out.mkdir(parents=True, exist_ok=True)
    common = environment(device, options.command) | {"flush": options.flush}
    common |= {"beside": options.beside or None}
    reasons = {name: PROVIDERS[name].available(device) for name in options.providers}
    for name, why in reasons.items():
        if why and any(op in PROVIDERS[name].ops for op in options.ops):
            say(f"without {name}: {why}")
    rows, begin = [], time.monotonic()
    with (out / "grid.jsonl").open("a") as file:
        for op, size, dtype in cases:
            late = time.monotonic() - begin > options.budget
            made = _late(op, size, dtype) if late else _case(options, op, size, dtype, reasons)
            for row in made:
                full = dict.fromkeys(FIELDS) | common | row
                rows.append(full)
                file.write(json.dumps(full) + "\n")
                file.flush()
                if full["reason"] not in reasons.values() or full["status"] == "ok":
                    say(line(full))
    to_csv(out / "grid.jsonl")
    return rows


def line(row: dict[str, Any]) -> str:
    """One row for a terminal."""
    name = f"{row['op']:<13}{row['size']:<16}{row['dtype']:<18}{row['provider'] or '':<24}"
    if row["status"] != "ok":
        return f"{name}{row['status']}: {row['reason']}"
    text = f"{name}{row['mode']:<9}{row['p50_ms']:>10.4g} ms"
    text += f"  [{row['p20_ms']:.4g}, {row['p80_ms']:.4g}]"
    if row["peak_mib"] is not None:
        text += f"  +{row['peak_mib']:.4g} MiB"
    rate = row["tflops"] or row["gb_per_s"]
    return text + (f"  {rate:.3g} {'TFLOP/s' if row['tflops'] else 'GB/s'}" if rate else "")


def to_csv(path: Path) -> Path:
    """Write the rows of a .jsonl file beside it as .csv."""
    target = path.with_suffix(".csv")
    with path.open() as file, target.open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(json.loads(text) for text in file)
    return target


def _late(op: str, size: str, dtype: str) -> Iterator[dict[str, Any]]:
    row = {"op": op, "size": size, "dtype": dtype, "provider": None}
    yield row | {"status": "skipped", "reason": "the time budget was used up"}


def _case(
    options: Options, op: str, size: str, dtype: str, reasons: dict[str, str | None]
) -> Iterator[dict[str, Any]]:
    names = [name for name in options.providers if op in PROVIDERS[name].ops]
    key = {"op": op, "size": size, "dtype": dtype}
    try:
        case = make_case(op, size, dtype, options.device)
        expected = truth(case)
    except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
        yield key | {"status": "failed", "reason": f"the truth: {_short(error)}"}
        return
    jobs: dict[str, Job] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        row = key | {"provider": name, "version": None, "truth": expected.how}
        status, reason, values = _admit(case, name, reasons[name], expected)
        if isinstance(values, Job):
            jobs[name] = values
            results[name] = row | reason
            results[name]["version"] = PROVIDERS[name].version()
        else:
            yield row | {"status": status} | reason
    yield from _times(options, case, jobs, results)


def _admit(
    case: Case, name: str, unavailable: str | None, expected: Truth
) -> tuple[str, dict[str, Any], Job | None]:
    """(status, what is known, the job if its results are right)."""
    if unavailable:
        return "skipped", {"reason": unavailable}, None
    try:
        _check_room(case, name)
        job = PROVIDERS[name].ops[case.op](case)
        verdict = judge(case, job, expected)
    except Skip as reason:
        return "skipped", {"reason": str(reason)}, None
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "failed", {"reason": "out of memory"}, None
    except Exception as error:  # whatever another package raises
        return "failed", {"reason": _short(error)}, None
    known = {
        "loss_error": verdict.loss_error,
        "grad_error": verdict.grad_error,
        "no_gradient": " ".join(verdict.missing),
    }
    if verdict.wrong:
        return "wrong", known | {"reason": verdict.wrong}, None
    return "ok", known, job


def _check_room(case: Case, name: str) -> None:
    """Refuse what would drive a machine into its swap."""
    if name not in STORES_LOGITS or case.device.type != "cpu":
        return
    needs = COPIES * 4 * OPS[case.op].logits(case.size)
    for text in Path("/proc/meminfo").read_text().splitlines() if memory.LINUX else []:
        if text.startswith("MemAvailable") and needs > int(text.split()[1]) * 1024:
            raise Skip(f"would need about {needs >> 30} GiB")


def _times(
    options: Options, case: Case, jobs: dict[str, Job], results: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    op = OPS[case.op]
    peaks = {name: _peak(case, job, name) for name, job in jobs.items() if options.memory}
    for mode in options.modes:
        if mode in ("forward", "backward") and not op.trained:
            continue
        runs, rows = {}, {name: row | {"mode": mode} for name, row in results.items()}
        for name, job in jobs.items():
            try:
                runs[name] = make_run(case, job, mode)
            except Exception as error:  # a graph cannot be captured where a job synchronises
                yield rows.pop(name) | {"status": "failed", "reason": _short(error)}
        if not runs:
            continue
        times = measure(
            runs,
            device=case.device,
            rounds=options.rounds,
            seconds=options.seconds,
            flush=options.flush,
        )
        for name, row in rows.items():
            peak = peaks.get(name) if mode in ("both", "graph") else None
            work = _work(case, mode, times[name]["p50_ms"])
            yield row | times[name] | work | {"status": "ok", "peak_mib": peak}


def _peak(case: Case, job: Job, name: str) -> float | None:
    if case.device.type == "cuda":
        return round(memory.on_cuda(case, job) / MIB, 3)
    peak = memory.on_cpu(case, name)
    return None if peak is None else round(peak / MIB, 3)


def _work(case: Case, mode: str, milliseconds: float) -> dict[str, Any]:
    op = OPS[case.op]
    total, forward = op.flop(case.size), op.flop_forward(case.size)
    flop = {"forward": forward, "backward": total - forward}.get(mode, total)
    size = op.bytes(case)
    return {
        "flop": flop or None,
        "tflops": flop / milliseconds * 1e-9 if flop else None,
        "bytes": size or None,
        "gb_per_s": size / milliseconds * 1e-6 if size else None,
    }


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
