"""csrc/cuda/index.h, compiled for the host: chunks, tiles, parts, ring slots, beyond 2^31."""

import ctypes
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ._cuda import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]
WRAPPERS = {
    "part_begin": ("int64_t", "int64_t items, int64_t parts, int64_t part"),
    "choose_parts": ("int64_t", "int64_t blocks, int64_t tiles, int64_t processors"),
    "find_tensor": ("int", "const int* first_chunk, int count, int chunk"),
    "first_kept": ("int64_t", "int64_t B, int64_t K"),
    "ring_slot": ("int64_t", "int64_t total, int64_t i, int64_t K"),
    "named_row": ("int64_t", "int64_t target, int64_t rows"),
    "tile_offset": ("int", "int row, int piece, int row_bytes"),
    "tile_bytes": ("int64_t", "int64_t features, int width, int element"),
    "choose_width": ("int", "int64_t features, int element, int most, int64_t limit"),
}
LARGE = st.integers(1, 2**45)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    code = '#include "index.h"\nextern "C" {\n'
    for name, (result, arguments) in WRAPPERS.items():
        names = ", ".join(each.split()[-1] for each in arguments.split(", "))
        code += f"{result} {name}({arguments}) {{ return sslops::{name}({names}); }}\n"
    (folder / "index.cpp").write_text(code + "}\n")
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "-shared", "-fPIC"]
    command += [
        f"-I{ROOT / 'csrc/cuda'}",
        str(folder / "index.cpp"),
        "-o",
        str(folder / "index.so"),
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "index.so"))
    kinds = {"int64_t": ctypes.c_int64, "int": ctypes.c_int}
    kinds["const int*"] = ctypes.POINTER(ctypes.c_int)
    for name, (result, arguments) in WRAPPERS.items():
        function = getattr(library, name)
        function.restype = kinds[result]
        function.argtypes = [kinds[each.rsplit(" ", 1)[0]] for each in arguments.split(", ")]
    return library


@given(items=st.integers(0, 2**50), parts=st.integers(1, 1000), part=st.integers(0, 999))
def test_parts_cover_everything_evenly(index, items, parts, part):
    part %= parts
    begin, end = index.part_begin(items, parts, part), index.part_begin(items, parts, part + 1)
    assert items // parts <= end - begin <= -(-items // parts)
    assert index.part_begin(items, parts, 0) == 0
    assert index.part_begin(items, parts, parts) == items


@given(blocks=LARGE, tiles=LARGE, processors=st.integers(1, 200))
def test_parts_fill_the_device_and_none_is_empty(index, blocks, tiles, processors):
    parts = index.choose_parts(blocks, tiles, processors)
    assert 1 <= parts <= tiles
    assert parts == tiles or blocks * parts >= 2 * processors
    assert parts == 1 or blocks * (parts - 1) < 2 * processors


@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=80))
def test_every_chunk_finds_its_tensor(index, chunks):
    first = [0]
    for each in chunks:
        first.append(first[-1] + each)
    table = (ctypes.c_int * len(first))(*first)
    found = [index.find_tensor(table, len(chunks), n) for n in range(first[-1])]
    assert found == [n for n, count in enumerate(chunks) for _ in range(count)]


@given(total=st.integers(0, 2**61), K=st.integers(1, 40), B=st.integers(0, 100))
def test_the_newest_rows_go_to_slots_of_their_own(index, total, K, B):
    first = index.first_kept(B, K)
    slots = [index.ring_slot(total, i, K) for i in range(first, B)]
    assert slots == [(total + i) % K for i in range(first, B)]
    assert len(set(slots)) == len(slots) == min(B, K)


@given(total=st.integers(-(2**63), 2**62), i=LARGE, K=LARGE)
def test_slots_of_a_ring_beyond_32_bits_and_below_zero(index, total, i, K):
    assert index.ring_slot(total, i, K) == (total + i) % K


@given(target=st.integers(-(2**63), 2**63 - 1), rows=LARGE)
def test_a_target_names_a_row_or_none(index, target, rows):
    assert index.named_row(target, rows) == (target if target in range(rows) else -1)
    assert index.named_row(rows, rows) == index.named_row(-1, rows) == -1


@pytest.mark.parametrize("row_bytes", [128, 256, 512])
def test_tiles_use_each_place_once_and_eight_rows_no_bank_twice(index, row_bytes):
    pieces = row_bytes // 16
    where = [[index.tile_offset(r, piece, row_bytes) for piece in range(pieces)] for r in range(64)]
    assert sorted(each for row in where for each in row) == list(range(0, 64 * row_bytes, 16))
    for first in range(0, 64, 8):
        for piece in range(pieces):
            banks = {where[first + r][piece] // 16 % 8 for r in range(8)}
            assert len(banks) == 8


@given(
    features=st.integers(1, 5000),
    element=st.sampled_from([2, 4]),
    limit=st.sampled_from([99 << 10, 163 << 10, 227 << 10]),
)
def test_tiles_fit_in_shared_memory(index, features, element, limit):
    most = 512 // element
    width = index.choose_width(features, element, most, limit)
    assert width in (most, most // 2, most // 4)
    assert index.tile_bytes(features, width, element) <= limit
    assert width >= features or width == most or limit < 163 << 10
    assert width == most // 4 or width // 2 < features  # no wider than needed
