"""A constant that stands in two places says the same in both: pages, C++, CUDA and Python."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
TUNING = "docs/tuning.md"

# Where a constant is defined: file, and what surrounds its value there. A group is an expression
# of numbers and of the names of this table.
CODE = {
    "kPanel": ("csrc/cpu/tiles/tiles.h", r"kPanel = (.+?);"),
    "kTile": ("csrc/cpu/tiles/tiles.h", r"kTile = (.+?);"),
    "diagonal": ("csrc/cpu/tiles/schedule.h", r"kSmall = (.+?);"),
    "blocks": ("csrc/cpu/tiles/schedule.h", r"parts = threads == 1 \? 1 : (\d+) \* threads"),
    "largest block": ("csrc/cpu/tiles/schedule.h", r"2 \* kPanel, (4 \* kTile)\)"),
    "kSerial": ("csrc/cpu/tiles/threads.h", r"kSerial = (.+?);"),
    "row grain": ("csrc/cpu/tiles/threads.h", r"\((1 << \d+)\) / D"),
    "wake": ("csrc/cpu/tiles/threads.h", r"takes (\d+) us to wake"),
    "spin": ("csrc/cpu/tiles/threads.h", r"spins (\d+) us"),
    "kDepth": ("csrc/cpu/tiles/tiles_f32.h", r"kDepth = (.+?);"),
    "kFlat": ("csrc/cpu/tiles/schedule.h", r"kFlat = (.+?);"),
    "kRoom": ("csrc/cpu/ops/info_nce_grad_in_forward.cpp", r"kRoom = (.+?);"),
    "kFew": ("csrc/cpu/ops/info_nce_grad_in_forward.cpp", r"kFew = (\d+) \*"),
    "degree": ("csrc/cpu/tiles/vec.h", r"template <int Degree = (\d)>\n.*exp2_product"),
    "kDegree": ("csrc/cpu/tiles/tiles_bf16.h", r"kDegree = (\d);"),
    "kLargestLogit": ("csrc/cpu/tiles/cross_problem.h", r"kLargestLogit = (.+?);"),
    "AVX-512": ("csrc/cpu/isa/avx512.cpp", r"TilesF32<(\d+), (\d+), (\d+)>"),
    "AVX2": ("csrc/cpu/isa/avx2.cpp", r"TilesF32<(\d+), (\d+), (\d+)>"),
    "portable": ("csrc/cpu/isa/portable.cpp", r"TilesF32<(\d+), (\d+), (\d+)>"),
    "kGrain": ("csrc/cpu/ops/ema.cpp", r"kGrain = (.+?);"),
    "STRIPS": ("kernels/_tile.py", r"^STRIPS = tl.constexpr\((.+?)\)"),
    "HEADROOM": ("kernels/_tile.py", r"^HEADROOM = tl.constexpr\((.+?)\)"),
    "LOG2E": ("kernels/_tile.py", r"^LOG2E = tl.constexpr\((.+?)\)"),
    "EPS": ("kernels/_tile.py", r"^EPS = tl.constexpr\((.+?)\)"),
    "TIE": ("kernels/_loss.py", r"^TIE = tl.constexpr\((.+?)\)"),
    "FIXED_LIMIT": ("kernels/_config.py", r"^FIXED_LIMIT = (\S+)"),
    "MAX_ROWS": ("kernels/_config.py", r"^MAX_ROWS = (1 << \d+)"),
    "BLOCK": ("kernels/ema.py", r'^OPTIONS = {"BLOCK": (\d+)'),
    "warps": ("kernels/ema.py", r'^OPTIONS = {.*"num_warps": (\d+)'),
    "ROOM": ("sslops/ops/_info_nce_op.py", r"^ROOM = (\S+)"),
    "CHUNK_BYTES": ("training/augment/views.py", r"^CHUNK_BYTES = (.+)"),
    "header": ("sslops/parallel/agree.py", r"^LENGTH = (\d+)"),
    "cpu logits": ("bench/check.py", r'FLOAT64_LOGITS = {"cpu": (1 << \d+)'),
    "cuda logits": ("bench/check.py", r'FLOAT64_LOGITS = .*"cuda": (1 << \d+)'),
    "tolerances": ("bench/check.py", r"float32: (\S+), .*float16: (\S+), .*bfloat16: (\S+)}"),
}

# What a page or a file says: where, the words around the numbers, and the constants they are, each
# an expression of names above.
STATED = [
    (TUNING, r"`kTile` \| (\d+) rows and columns", "kTile"),
    (TUNING, r"with its rows; (\d+) on the diagonal.*: (\d+) there cost", "diagonal, kTile"),
    (TUNING, r"register block, AVX-512 \| (\d+) \S (\d+)", "AVX512[1], AVX512[0] * AVX512[2]"),
    (TUNING, r"dot products, (\d+) \S (\d+) blocks", "AVX512[1], AVX512[0] * AVX512[2]"),
    (TUNING, r"AVX2 and portable \| (\d+) \S (\d+), ", "AVX2[1], AVX2[0] * AVX2[2]"),
    (TUNING, r"portable \| .*, (\d+) \S (\d+) \|", "portable[1], portable[0] * portable[2]"),
    (TUNING, r"blocks a thread \| (\d+) .*at most (\d+) rows", "blocks, largest_block"),
    (TUNING, r"`kSerial` \| (\S+) multiply-adds", "kSerial"),
    (TUNING, r"threads \| from (\S+) products, or (\S+) numbers", "kSerial, row_grain"),
    (TUNING, r"sleeping thread takes (\d+) µs.* spinning one (\d+)", "wake, spin"),
    (TUNING, r"depth of a panel copy \| (\d+) rows", "kDepth"),
    (TUNING, r"degree (\d) \(float32\), (\d) \(bfloat16\)", "degree, kDegree"),
    (TUNING, r"without a running maximum \| (\d+)", "kLargestLogit"),
    (TUNING, r"`STRIPS` \| (\d+) .*4·(\d+) bytes", "STRIPS, STRIPS"),
    (TUNING, r"`HEADROOM` \| (\d+), base 2", "HEADROOM"),
    (TUNING, r"(\S+) terms are finite", "MAX_ROWS"),
    (TUNING, r"`FIXED_LIMIT` \| (\d+) of", "FIXED_LIMIT"),
    (TUNING, r"τ ≥ (\S+) shares one offset", "round(LOG2E / FIXED_LIMIT, 4)"),
    (TUNING, r"`ROOM` \| (\d+)", "ROOM"),
    (TUNING, r"`kGrain` \| (\S+) elements", "kGrain"),
    (TUNING, r"Triton `BLOCK` of the average \| (\d+), (\d+) warps", "BLOCK, warps"),
    (TUNING, r"`CHUNK_BYTES` \| (\S+)", "CHUNK_BYTES"),
    ("docs/math/nt_xent.md", r"log M ≤ (\d+)`", "kLargestLogit"),
    ("docs/math/nt_xent.md", r"ε = (\S+),", "EPS"),
    ("docs/math/info_nce.md", r"ε = (\S+),", "EPS"),
    ("docs/math/queue.md", r"ε = (\S+),", "EPS"),
    ("docs/math/info_nce.md", r"logits may pass (\d+)", "kLargestLogit"),
    ("docs/math/info_nce.md", r"of (\d+) or (\d+) rows stay in the cache", "kFlat, kTile"),
    ("docs/math/info_nce.md", r"and (\d+) MiB always", "4 * kRoom >> 20"),
    ("docs/math/info_nce.md", r"within (\d+) roundings", "kFew"),
    ("docs/math/info_nce.md", r"`MN ≤ (\d+) \(M \+ N\) D`.*`N ≤ (\d+)D`", "ROOM, 2 * ROOM"),
    ("docs/scale.md", r"\((\d+) numbers\) carries the rows", "header"),
    ("docs/scale.md", r"the header's (\d+) for each", "8 * header"),
    ("docs/benchmarks.md", r"Above (\S+) logits on a GPU \((\S+) on", "cuda_logits, cpu_logits"),
    (
        "docs/benchmarks.md",
        r"more than (\S+) \(float32.*, (\S+) \(float16\) or (\S+) ",
        "tolerances",
    ),
    ("csrc/cpu/tiles/rows.h", r"kNormEps = (.+?);", "EPS"),
    ("csrc/cpu/ops/queue_rows.h", r"norm < (\S+)f \?", "EPS"),
    ("csrc/cuda/numbers.h", r"kNormEps = (\S+)f;", "EPS"),
    ("sslops/reference/_rows.py", r"^EPS = (\S+)", "EPS"),
    ("csrc/cuda/finish.h", r"kTie = 1.0f / \((.+?)\);", "1 / TIE"),
    ("kernels/_tile.py", r"^MAX_STRIPS = (\d+)", "STRIPS"),
    ("csrc/cpu/tiles/cross_bf16.h", r"kDegree = (\d);", "kDegree"),
    ("kernels/_config.py", r"a temperature of (\S+):", "round(LOG2E / FIXED_LIMIT, 4)"),
]
WORDS = ("7feb352d", "846ca68b", "9e3779b9")  # of the noise, which all implementations share
NOISE = (
    "docs/math/ema.md",
    "sslops/reference/ema.py",
    "kernels/ema.py",
    "csrc/cpu/ops/ema.cpp csrc/cpu/ops/ema.h",
    "csrc/cpu/ops/ema.cpp csrc/cpu/ops/ema_span.h",
    "csrc/cuda/ema.h",
)


def find(file, pattern):
    """The groups of the only place that matches."""
    found = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert len(found) == 1, f"{file} has {len(found)} places like {pattern}"
    return found[0] if isinstance(found[0], tuple) else (found[0],)


def defined():
    """Every constant of CODE by a name that an expression may use."""
    values = {"round": round}
    for name, (file, pattern) in CODE.items():
        groups = tuple(eval(text, values) for text in find(file, pattern))
        key = name.replace(" ", "_").replace("-", "")
        values[key] = groups[0] if len(groups) == 1 else groups
    return values


def number(text):
    """Of "256", "2²²", "10⁻¹²", "1,024", "5e-3" or "1 << 18"."""
    text = text.replace(",", "")
    if match := re.fullmatch(r"(\d+)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text):
        return float(match[1]) ** int(match[2].translate(SUPERSCRIPTS))
    return eval(text)


@pytest.mark.parametrize(("file", "pattern", "meant"), STATED, ids=lambda each: each[:40])
def test_a_constant_is_what_it_is_said_to_be(file, pattern, meant):
    values = eval(meant, defined())
    said = [number(text) for text in find(file, pattern)]
    assert said == pytest.approx(values if isinstance(values, tuple) else [values], rel=1e-9), file


@pytest.mark.parametrize("files", NOISE)
def test_noise_is_made_of_the_same_words(files):
    text = "".join((ROOT / file).read_text().lower() for file in files.split())
    for word in WORDS:
        assert word in text, f"{files} lacks {word}"


def test_every_number_in_the_table_of_constants_is_compared():
    """A new row of docs/tuning.md needs its line above; a choice of words has none."""
    not_there = {  # numbers of the hardware, or of a thing that is nowhere written as a number
        "vectors of a float32 average": "256 bits",
    }
    text = (ROOT / TUNING).read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]
    compared = [pattern for file, pattern, _ in STATED if file == TUNING]
    for name, value in ((name.strip(), value.strip()) for name, value in rows):
        if not re.search(r"\d", value) or not_there.get(name) == value:
            continue
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} | {value} |"))
        assert any(re.search(pattern, line) for pattern in compared), f"nothing compares: {line}"
