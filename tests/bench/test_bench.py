"""The benchmarks run, say why something did not, and refuse to time what is wrong."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sslops
from bench import (
    bench_ema,
    bench_losses,
    bench_nt_xent,
    bench_queue,
    grid,
    harness,
    memory,
    plots,
    table,
)
from bench.__main__ import main
from bench.cases import OPS, make_case
from bench.check import judge, truth
from bench.providers import PROVIDERS, Job, Provider, stand_ins
from bench.providers.chunked import LOSSES as CHUNKED_LOSSES
from bench.providers.eager import LOSSES as EAGER_LOSSES
from bench.timing import measure, summary
from sslops.training.cli import command_line as cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NEW = {"moco": "enqueue_", "enqueue_": "enqueue_", "ema_update_": "ema_update_"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_in_a_benchmark():
    torch.use_deterministic_algorithms(False)


def rows_of(folder: Path):
    return [json.loads(line) for line in (folder / "grid.jsonl").read_text().splitlines()]


def test_a_grid_writes_every_field(tmp_path, capsys):
    flags = "--op nt_xent --size 32x16,64x16 --dtype float32 --rounds 4 --seconds 0.1 --no-memory"
    argv = [*flags.split(), "--device", "cpu", "--out", str(tmp_path)]
    assert main([*argv, "--providers", "sslops,eager"]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * 2 * 3
    assert all(tuple(row) == grid.FIELDS for row in rows)
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < row["min_ms"] <= row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert 3 <= row["rounds"] <= 4
        assert row["grad_error"] < 1e-5
        assert row["truth"] == "float64"
        assert row["command"].startswith("sslops bench --op nt_xent")
        for field in ("device", "torch", "sslops", "commit", "date", "version", "threads"):
            assert row[field], field
    flop = {row["mode"]: row["flop"] for row in rows if row["size"] == "64x16"}
    assert flop == {"both": 6 * 64 * 64 * 16, "forward": 2 * 64 * 64 * 16,
                    "backward": 4 * 64 * 64 * 16}  # fmt: skip
    with (tmp_path / "grid.csv").open() as file:
        again = list(csv.DictReader(file))
    assert [row["p50_ms"] for row in again] == [str(row["p50_ms"]) for row in rows]
    assert "12 rows" in capsys.readouterr().out


@pytest.mark.parametrize("op", OPS)
def test_every_adapter_agrees_with_float64(op):
    """Whoever can run here, in every dtype the op is measured in."""
    for dtype in ("float32", "bfloat16", *OPS[op].mixed):
        case = make_case(op, OPS[op].tiny, dtype, CPU)
        expected = truth(case)
        for name in ("sslops", "sslops-reference", "eager", "chunked", "linear_cross_entropy",
                     "foreach_lerp"):  # fmt: skip
            provider = PROVIDERS[name]
            if op not in provider.ops or provider.available(CPU):
                continue
            if name.startswith("sslops") and op in NEW and not hasattr(sslops, NEW[op]):
                continue
            verdict = judge(case, provider.ops[op](case), expected)
            assert not verdict.wrong, (name, dtype, verdict)
            assert not verdict.missing


def test_plain_code_is_written_twice_and_agrees():
    """The truth is the chunked code; the eager code shares nothing with it."""
    for op, loss in EAGER_LOSSES.items():
        case = make_case(op, OPS[op].tiny, "float32", CPU).to(torch.float64)
        torch.testing.assert_close(loss(**case.inputs), CHUNKED_LOSSES[op](**case.inputs))


def test_chunks_do_not_change_the_truth(monkeypatch):
    case = make_case("sup_con", "33x24", "float32", CPU)
    whole = truth(case)
    monkeypatch.setitem(sys.modules["bench.providers.chunked"].CHUNK, "cpu", 70)
    pieces = truth(case)
    torch.testing.assert_close(pieces.grads, whole.grads)
    torch.testing.assert_close(pieces.loss, whole.loss)


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    """Half the loss is right up to a factor, no gradient at all is as wrong."""
    halved = Provider(
        {"nt_xent": lambda c: Job(lambda: 0.5 * CHUNKED_LOSSES["nt_xent"](**c.inputs))}
    )
    frozen = Provider({"nt_xent": lambda c: Job(lambda: c.inputs["z"].sum() * 0 + truth(c).loss)})
    broken = Provider({"nt_xent": lambda c: Job(lambda: torch.ones(2) @ torch.ones(3))})
    monkeypatch.setitem(PROVIDERS, "halved", halved)
    monkeypatch.setitem(PROVIDERS, "frozen", frozen)
    monkeypatch.setitem(PROVIDERS, "broken", broken)
    options = grid.Options(
        ("nt_xent",), ("32x16",), ("float32",), ("halved", "frozen", "broken"), memory=False
    )
    halved_row, frozen_row, broken_row = grid.run(options, tmp_path, say=lambda _: None)
    assert halved_row["status"] == "wrong"
    assert "off by 0.5" in halved_row["reason"]
    assert frozen_row["status"] == "wrong"
    assert broken_row["status"] == "failed"
    assert "RuntimeError" in broken_row["reason"]
    assert {halved_row["p50_ms"], frozen_row["p50_ms"], broken_row["p50_ms"]} == {None}


def test_a_wrong_queue_is_noticed():
    case = make_case("enqueue_", "8x32x24", "float32", CPU)
    job = PROVIDERS["eager"].ops["enqueue_"](case)
    lazy = replace(job, after=lambda: None)
    assert "queue is off" in judge(case, lazy, truth(case)).wrong


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_average_that_does_not_move_is_noticed(dtype):
    case = make_case("ema_update_", "2", dtype, CPU)
    lazy = replace(PROVIDERS["eager"].ops["ema_update_"](case), after=lambda: None)
    assert "is off" in judge(case, lazy, truth(case)).wrong


@pytest.mark.parametrize("pair", [("float32", "float32"), ("float32", "bfloat16"),
                                  ("bfloat16", "bfloat16")])  # fmt: skip
def test_the_micro_benchmark_of_averages_checks_every_form(pair):
    def nothing(targets, sources):
        """Of what is asked."""

    dtypes = [getattr(torch, name) for name in pair]
    for form in (bench_ema.ours, bench_ema.moco, bench_ema.lightly, bench_ema.in_place):
        bench_ema.check(form, *dtypes)
    with pytest.raises(AssertionError, match="nothing"):
        bench_ema.against([nothing], *([torch.zeros(1, dtype=dtype)] for dtype in dtypes))


def test_the_micro_benchmark_of_queues_checks_every_form(monkeypatch):
    case = make_case("enqueue_", "8x64x24", "float32/float16", CPU)
    assert list(bench_queue.admit(case)) == ["sslops", "moco", "lightly"]
    monkeypatch.setitem(bench_queue.FORMS, "moco", lambda case: replace(
        PROVIDERS["eager"].ops["enqueue_"](case), after=lambda: None))  # fmt: skip
    with pytest.raises(AssertionError, match="moco: queue is off"):
        bench_queue.admit(case)


def test_the_micro_benchmark_of_nt_xent_checks_every_form():
    for z in (torch.randn(64, 16), torch.randn(64, 16).bfloat16()):
        bench_nt_xent.check(z, bench_nt_xent.fused, bench_nt_xent.eager)
        with pytest.raises(AssertionError):
            bench_nt_xent.check(z, bench_nt_xent.fused, lambda z: 0.9 * bench_nt_xent.eager(z))


def test_skipped_providers_name_their_reason(tmp_path):
    options = grid.Options(
        ("clip_loss",), ("33x24",), ("float32",), ("memeff", "eager"), ("both",),
        rounds=3, seconds=0.1, memory=False,
    )  # fmt: skip
    said: list[str] = []
    skipped, ok = grid.run(options, tmp_path, said.append)
    assert (skipped["status"], skipped["reason"]) == ("skipped", "needs a CUDA device")
    assert ok["status"] == "ok"
    assert said[0] == "without memeff: needs a CUDA device"
    missing = Provider({}, needs=("no_such_package",))
    assert "no_such_package does not import" in missing.available(CPU)


def test_a_peer_is_imported_without_what_its_losses_do_not_use(tmp_path, monkeypatch):
    (tmp_path / "peer_one.py").write_text(
        "from absent_models import Backbone\nclass Loss(Backbone): pass\n"
    )
    (tmp_path / "peer_two.py").write_text("import absent_numbers\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(stand_ins.UNUSED, "peer_one", ("absent_models",))
    stand_ins.import_peer("peer_one").Loss()
    assert "absent_models" not in sys.modules
    with pytest.raises(ImportError, match="absent_numbers"):
        stand_ins.import_peer("peer_two")
    assert "absent_numbers" in Provider({}, needs=("peer_two",)).available(CPU)


def test_a_used_up_budget_is_said(tmp_path):
    options = grid.Options(("nt_xent",), ("32x16",), ("float32",), ("eager",), budget=-1)
    (row,) = grid.run(options, tmp_path, say=lambda _: None)
    assert (row["status"], row["reason"]) == ("skipped", "the time budget was used up")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--op nt_xnet", "op must be of nt_xent, info_nce"),
        ("--providers me", "provider must be of sslops"),
        ("--modes sideways", "mode must be of both"),
        ("--op nt_xent --size 8", "sizes are nt_xent MxD, got '8'"),
        ("--op nt_xent --size 8xa", "the size of nt_xent is MxD, got '8xa'"),
        ("--op nt_xent --size 8x8 --dtype int8", "dtype must be of float32"),
    ],
)
def test_unknown_names_are_refused(tmp_path, capsys, flags, message):
    assert main([*flags.split(), "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_times_are_taken_in_turns():
    order: list[str] = []
    case = make_case("enqueue_", "8x32x24", "float32", CPU)
    from bench.timing import make_run

    runs = {
        name: make_run(case, Job(after=lambda name=name: order.append(name)), "both")
        for name in "abc"
    }
    times = measure(runs, device=CPU, rounds=3, seconds=9, flush=False)
    assert "".join(order) == "abc" * 2 + "abc" + "bca" + "cab"
    assert times["a"]["rounds"] == 3
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {
        "p20_ms": 2.0, "p50_ms": 3.5, "p80_ms": 5.0, "min_ms": 1.0, "rounds": 6
    }  # fmt: skip


def pedantic(target, setup, rounds, iterations):
    """What pytest-benchmark does."""
    for _ in range(rounds):
        setup()
        target()


@pytest.mark.parametrize("first", [None, pedantic])
def test_micro_benchmarks_take_turns_too(first):
    order: list[str] = []
    jobs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = harness.interleave(jobs, rounds=4, first=first)
    assert "".join(order) == "abc" * 2 + "abc" + "bca" + "cab" + "abc"
    for found in times.values():
        assert list(found) == ["min_ms", "p20_ms", "median_ms", "p80_ms", "max_ms"]
        assert list(found.values()) == sorted(found.values())
    assert harness.quantiles([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == {
        "min_ms": 1.0, "p20_ms": 2.0, "median_ms": 3.5, "p80_ms": 5.0, "max_ms": 6.0
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_of_plain_code_grows_with_the_logits():
    case = make_case("nt_xent", "1024x16", "float32", CPU)
    peak = memory.on_cpu(case, "eager")
    assert 2 * 4 * 1024**2 < peak < 10 * 4 * 1024**2


def test_micro_benchmarks_run(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    others = ("eager", "lightly")
    bench_losses.report(benchmark, "headline", "info_nce", "32x16", "bfloat16", others, rounds=3)
    (row,) = map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines())
    assert {"sslops", "eager", "eager float32"} == set(row["times"])
    assert "lightly" in row["left_out"] or "lightly" in row["grad_errors"]
    for op, size, *_ in [*bench_losses.HEADLINES, *bench_losses.SWEEP, *bench_losses.MEMORY]:
        assert len(size.split("x")) == len(OPS[op].dims)


def test_results_become_figures_and_tables(tmp_path):
    row = dict.fromkeys(grid.FIELDS) | {"op": "nt_xent", "dtype": "float32", "mode": "both",
        "status": "ok", "device": "a CPU", "rounds": 9}  # fmt: skip
    rows = [
        row
        | {
            "size": f"{M}x128",
            "provider": name,
            "peak_mib": M / 64,
            "p20_ms": M * f,
            "p50_ms": M * f * 1.1,
            "p80_ms": M * f * 1.3,
        }
        for M in (256, 1024)
        for name, f in (("sslops", 0.01), ("eager", 0.04))
    ]
    rows += [row | {"size": "256x128", "provider": "lightly", "status": "skipped", "reason": "why"}]
    file = tmp_path / "grid.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in rows))
    assert plots.main([str(file), "--out", str(tmp_path / "figures")]) == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"time-nt_xent-float32.svg", "memory-nt_xent-float32.svg", "faster.svg"}
    first = (tmp_path / "figures" / "faster.svg").read_bytes()
    plots.main([str(file), "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "faster.svg").read_bytes() == first
    text = table.tables([file])
    assert "| 1024x128 | float32 | 11.3 ms, 16 MiB | 45.1 ms, 16 MiB |" in text
    assert "(skipped: why)" in text
    assert plots.main([str(file), "--out", str(tmp_path), "--device", "another"]) == 2


def test_the_command_runs_the_grid_and_keeps_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--op enqueue_ --quick --dtype float32 --providers eager --rounds 3 --seconds 0.1"
    argv = ["bench", *flags.split(), "--no-memory", "--device", "cpu", "--out", "here"]
    assert cli.main(argv) == 0
    assert rows_of(tmp_path / "here")[0]["status"] == "ok"
