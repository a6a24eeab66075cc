"""Writing shards, reading selections of them, and noticing damage."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from depthscope.storage import digested_file, gather, shard_files
from depthscope.storage.arrays import ArrayPlan, create_array
from depthscope.storage.errors import Damage, RequestError, WorkFailed
from depthscope.storage.shard_reader import ArrayReader, check_shard, widen
from depthscope.storage.shard_writer import ShardWriter, check_aligned, write_shard
from numpy.typing import NDArray

from .shard_cases import random_values, same_bits, select, shard_values, store

ROWS = ArrayPlan(
    "g/rows", (3, 53, 6), "bfloat16", ("point", "row", "hidden"), (1, 4, 6), (1, 16, 6)
)
CODECS = pytest.mark.parametrize("codec", ["none", "zstd"])


def with_codec(plan: ArrayPlan, codec: str) -> ArrayPlan:
    return ArrayPlan(**{**{n: getattr(plan, n) for n in plan.__dataclass_fields__}, "codec": codec})


def written(plan: ArrayPlan, folder: Path, order: list[tuple[int, ...]], values: Any) -> Path:
    with ShardWriter(plan, (1, 0, 0), folder) as writer:
        for chunk in order:
            start = chunk[1] * plan.chunk[1]
            writer.append(chunk, values[1:2, start : start + plan.chunk[1]])
        shard = writer.close()
    assert shard.bytes == folder.stat().st_size
    assert shard.digest == blake3(folder.read_bytes()).hexdigest()
    assert shard.path == "g/rows/c/1/0/0"
    return folder


@CODECS
def test_the_file_does_not_depend_on_the_order_of_chunks(tmp_path: Path, codec: str) -> None:
    plan = with_codec(ROWS, codec)
    values = random_values(plan)
    chunks = list(itertools.product(*map(range, plan.shard_chunks((1, 0, 0)))))
    first = written(plan, tmp_path / "first", chunks, values).read_bytes()
    for number, order in enumerate(itertools.permutations(chunks)):
        other = written(plan, tmp_path / f"{number}", list(order), values)
        assert other.read_bytes() == first


@CODECS
def test_digest_and_layout_hold_beyond_one_write_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr("depthscope.storage.digested_file.WRITEBACK_BYTES", 100)
    monkeypatch.setattr("depthscope.storage.digested_file.CATCH_UP_BYTES", 33)
    plan = with_codec(ROWS, codec)
    values = random_values(plan)
    chunks = list(itertools.product(*map(range, plan.shard_chunks((1, 0, 0)))))
    written(plan, tmp_path / "reversed", chunks[::-1], values)


def test_large_chunks_are_digested_beside_and_after_a_fork(tmp_path: Path) -> None:
    plan = ArrayPlan("g/large", (9, 30000), "float64", ("row", "hidden"), (1, 30000), (9, 30000))
    assert plan.chunk_nbytes > digested_file.BESIDE_BYTES
    values = random_values(plan)
    first = write_shard(plan, (0, 0), values, tmp_path / "first")
    assert first.digest == blake3((tmp_path / "first").read_bytes()).hexdigest()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = write_shard(plan, (0, 0), values, tmp_path / "second").digest == first.digest
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_shard_of_nothing_but_fill_values_is_written_in_full(tmp_path: Path) -> None:
    values = np.full(ROWS.shape, np.nan, ROWS.numpy_dtype)
    store(tmp_path, ROWS, values)
    for shard in ROWS.shards:
        assert (tmp_path / ROWS.shard_file(shard)).stat().st_size == ROWS.shard_nbytes(shard)
        check_shard(tmp_path, ROWS, shard)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_bits_of_bfloat16_may_come_as_integers(tmp_path: Path, dtype: Any) -> None:
    values = random_values(ROWS)
    ours = write_shard(ROWS, (0, 1, 0), shard_values(ROWS, (0, 1, 0), values), tmp_path / "a")
    bits = shard_values(ROWS, (0, 1, 0), values.view(dtype))
    assert write_shard(ROWS, (0, 1, 0), bits, tmp_path / "b").digest == ours.digest


def test_values_that_are_not_contiguous_are_written_rightly(tmp_path: Path) -> None:
    values = random_values(ROWS)
    turned = np.ascontiguousarray(values.transpose(2, 1, 0)).transpose(2, 1, 0)
    store(tmp_path, ROWS, turned)
    assert same_bits(ArrayReader(tmp_path, ROWS.path).read(), values)


@pytest.mark.parametrize(
    ("chunk", "data", "said"),
    [
        ((0, 4, 0), np.zeros((1, 4, 6), np.uint16), "no chunk"),
        ((0, 0), np.zeros((1, 4, 6), np.uint16), "no chunk"),
        ((0, 0, 0), np.zeros((1, 3, 6), np.uint16), "shape"),
        ((0, 0, 0), np.zeros((1, 4, 6), np.float32), "float32"),
        ((0, 1, 0), np.zeros((1, 4, 6), np.uint16), "already"),
    ],
)
def test_a_wrong_chunk_is_refused(
    tmp_path: Path, chunk: tuple[int, ...], data: NDArray[Any], said: str
) -> None:
    with ShardWriter(ROWS, (0, 0, 0), tmp_path / "x") as writer:
        writer.append((0, 1, 0), np.zeros((1, 4, 6), np.uint16))
        with pytest.raises(RequestError, match=said):
            writer.append(chunk, data)


def test_a_shard_with_a_chunk_left_out_is_refused_and_removed(tmp_path: Path) -> None:
    writer = ShardWriter(ROWS, (0, 0, 0), tmp_path / "deep/er/x")
    writer.append((0, 1, 0), np.zeros((1, 4, 6), np.uint16))
    with pytest.raises(WorkFailed, match=r"g/rows/c/0/0/0: 3 of 4 chunks"):
        writer.close()
    assert not (tmp_path / "deep/er/x").exists()
    with pytest.raises(RequestError, match="closed"):
        writer.append((0, 0, 0), np.zeros((1, 4, 6), np.uint16))


def test_an_error_inside_the_block_removes_the_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(ROWS, (0, 0, 0), tmp_path / "x"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_shards_that_do_not_exist_and_files_that_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no shard"):
        ShardWriter(ROWS, (0, 4, 0), tmp_path / "x")
    with pytest.raises(RequestError, match="has shape"):
        write_shard(ROWS, (0, 0, 0), np.zeros((1, 8, 6), np.uint16), tmp_path / "x")
    (tmp_path / "taken").write_text("by another")
    with pytest.raises(WorkFailed, match=r"g/rows/c/0/0/0.*exists"):
        ShardWriter(ROWS, (0, 0, 0), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "by another"


def test_a_full_disk_is_reported_with_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = os.pwritev, [70]

    def limited(file: int, parts: list[memoryview], offset: int) -> int:
        """Short writes, as a disk does them shortly before it is full."""
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        piece = memoryview(b"".join(parts))[: min(room[0], 7)]
        room[0] -= len(piece)
        return real(file, [piece], offset)

    monkeypatch.setattr(os, "pwritev", limited)
    with pytest.raises(WorkFailed, match=r"chunk \(0, 1, 0\) of g/rows/c/0/0/0.*No space"):
        write_shard(ROWS, (0, 0, 0), random_values(ROWS)[:1, :16], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_short_writes_and_short_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read, chance = os.pwritev, os.preadv, random.Random(0)

    def short_write(file: int, parts: list[memoryview], offset: int) -> int:
        return write(file, [memoryview(b"".join(parts))[: chance.randint(1, 30)]], offset)

    def short_read(file: int, parts: list[memoryview], offset: int, flags: int = 0) -> int:
        wanted = chance.randint(1, 30)
        some: list[memoryview] = []
        for part in parts:
            some.append(part[:wanted])
            wanted -= len(some[-1])
        return read(file, some, offset, flags)

    values = random_values(ROWS)
    monkeypatch.setattr(os, "pwritev", short_write)
    store(tmp_path, ROWS, values)
    monkeypatch.setattr(os, "preadv", short_read)
    reader = ArrayReader(tmp_path, ROWS.path)
    assert same_bits(reader.read(), values)
    assert same_bits(reader.read(1, [3, 21, 52]), values[1, [3, 21, 52]])


@pytest.mark.parametrize(("first", "last"), [(0, 16), (16, 53), (48, 53), (0, 53)])
def test_whole_shards_are_aligned(first: int, last: int) -> None:
    check_aligned(ROWS, first, last)


@pytest.mark.parametrize(("first", "last"), [(0, 15), (4, 16), (16, 52), (48, 64), (16, 16)])
def test_parts_of_shards_are_refused_by_name(first: int, last: int) -> None:
    with pytest.raises(RequestError, match=rf"g/rows: rows {first} to {last - 1} .*16"):
        check_aligned(ROWS, first, last)


# -- reading ---------------------------------------------------------------------------------------

STATISTICS = ArrayPlan(
    "s/norm", (5, 7, 90), "float32", ("quantity", "layer", "row"), (1, 7, 8), (5, 7, 40)
)
WIDE = ArrayPlan("g/wide", (2, 40, 3000), "bfloat16", ROWS.dimensions, (1, 8, 3000), (1, 24, 3000))
FLAT = ArrayPlan("g/flat", (77,), "int64", ("row",), (5,), (25,))
FOUR = ArrayPlan(
    "g/four", (3, 4, 5, 6), "float16", ("a", "b", "c", "row"), (2, 1, 5, 4), (2, 3, 5, 4)
)

SELECTIONS: list[tuple[ArrayPlan, tuple[Any, ...]]] = [
    (ROWS, ()),
    (ROWS, (1,)),
    (ROWS, (-1, slice(3, 40))),
    (ROWS, (slice(None), [52, 0, 17, 17, -1])),
    (ROWS, ([2, 0], slice(10, 30), slice(1, 4))),
    (ROWS, (slice(None, None, -2), slice(50, None, 7), [5, 0])),
    (ROWS, (0, 52, 5)),
    (ROWS, (slice(2, 2), slice(None), [])),
    (ROWS, (slice(None), np.arange(53) % 5 == 0)),
    (STATISTICS, (slice(None), 3, slice(5, 77))),
    (STATISTICS, (1, slice(None), [0, 8, 9, 89])),
    (STATISTICS, (2, [6, 1], 88)),
    (STATISTICS, ()),
    (WIDE, (slice(None), [0, 5, 9, 39])),
    (WIDE, (1, [0, 2, 9], slice(100, 2900))),
    (WIDE, (1, slice(2, 7))),
    (FLAT, (np.array([76, 3, 4]),)),
    (FLAT, (slice(2, 71),)),
    (FOUR, (slice(None), [3, 1], 2, slice(1, 6))),
    (FOUR, (slice(1, 3),)),
]


@CODECS
@pytest.mark.parametrize("number", range(len(SELECTIONS)))
def test_selections(tmp_path: Path, codec: str, number: int) -> None:
    plan, selection = with_codec(SELECTIONS[number][0], codec), SELECTIONS[number][1]
    values = random_values(plan)
    store(tmp_path, plan, values)
    plain = [
        np.flatnonzero(one) if isinstance(one, np.ndarray) and one.dtype == bool else one
        for one in selection
    ]
    assert same_bits(ArrayReader(tmp_path, plan.path).read(*selection), select(values, plain))


def test_scattered_rows_read_only_the_bytes_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "GAP_BYTES", 0)
    values = random_values(WIDE)
    store(tmp_path, WIDE, values)
    reader = ArrayReader(tmp_path, WIDE.path)
    reader.read(0, slice(None, None, 8))  # opens the files, so that only values are read below
    count, real = [0], os.preadv

    def counted(file: int, parts: list[memoryview], offset: int, flags: int = 0) -> int:
        got = real(file, parts, offset, flags)
        count[0] += got
        return got

    monkeypatch.setattr(os, "preadv", counted)
    assert same_bits(reader.read(0, [0, 9, 39]), values[0, [0, 9, 39]])
    assert count[0] == 3 * 3000 * 2


def test_reads_that_must_wait_for_the_disk_are_fetched_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = random_values(WIDE)
    store(tmp_path, WIDE, values)
    real = os.preadv

    def never_cached(file: int, parts: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        return real(file, parts, offset)

    monkeypatch.setattr(os, "preadv", never_cached)
    monkeypatch.setattr(gather, "WAITING_READS", 2)
    rows = [0, 9, 17, 25, 39]
    assert same_bits(ArrayReader(tmp_path, WIDE.path).read(slice(None), rows), values[:, rows])


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ((3,), "point 3 is outside 0 to 2"),
        ((0, [1, -54]), "row -54"),
        ((0, 0, 0, 0), "axes"),
        ((0, [0.5]), "float64"),
        ((0, np.ones(52, bool)), "53 positions"),
        ((0, [[1]]), "flat"),
    ],
)
def test_selections_outside_the_array_are_refused(
    tmp_path: Path, selection: tuple[Any, ...], said: str
) -> None:
    create_array(tmp_path, ROWS)
    with pytest.raises(RequestError, match=said):
        ArrayReader(tmp_path, ROWS.path).read(*selection)


def test_widening_is_exact(tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        plan = ArrayPlan(dtype, (65536,), dtype, ("row",), (65536,), (65536,))
        values = np.arange(65536, dtype=np.uint32)
        bits = values.astype(np.uint16).view(plan.numpy_dtype) if dtype != "float32" else None
        store(tmp_path, plan, values.view(np.float32) if bits is None else bits)
        got = ArrayReader(tmp_path, dtype).read(as_float32=True)
        assert got.dtype == np.float32
        narrow = ArrayReader(tmp_path, dtype).read()
        if dtype == "bfloat16":
            np.testing.assert_array_equal(got.view(np.uint32), values << 16)
        np.testing.assert_array_equal(got, narrow.astype(np.float32))
        np.testing.assert_array_equal(widen(narrow), got)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_share_a_reader_and_a_small_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "SHARDS", shard_files.ShardCache(limit=2))
    values = random_values(ROWS)
    store(tmp_path, ROWS, values)
    reader = copy.deepcopy(ArrayReader(tmp_path, ROWS.path))
    wrong: list[Any] = []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(60):
            rows = chance.integers(0, 53, 9)
            if not same_bits(reader.read(slice(None), rows), values[:, rows]):
                wrong.append(rows)

    opened = open_files()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_files() <= opened + 2


# -- damage ----------------------------------------------------------------------------------------


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


HARMS: dict[str, Callable[[Path], None]] = {
    "a value": lambda file: flip(file, 60),
    "a checksum": lambda file: flip(file, 2 * 48 + 4 + 2),
    "the index": lambda file: flip(file, -20),
    "the index's checksum": lambda file: flip(file, -1),
    "cut in the middle": lambda file: cut(file, 130),
    "cut by a byte": lambda file: cut(file, file.stat().st_size - 1),
    "empty": lambda file: cut(file, 0),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_found_and_named(tmp_path: Path, harm: str) -> None:
    store(tmp_path, ROWS, random_values(ROWS))
    reader = ArrayReader(tmp_path, ROWS.path)
    reader.read()
    HARMS[harm](tmp_path / ROWS.shard_file((1, 2, 0)))
    expected = rf"g/rows/c/1/2/0: .*depthscope verify {tmp_path} --repair"
    if harm in ("a value", "a checksum"):
        expected = rf"g/rows/c/1/2/0: chunk \(0, 1, 0\) fails.*verify {tmp_path} --repair"
    for attempt in (lambda: reader.read(1), lambda: check_shard(tmp_path, ROWS, (1, 2, 0))):
        with pytest.raises(Damage, match=expected):
            attempt()
    assert reader.read(1, slice(0, 32)).shape == (32, 6)


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_no_flipped_byte_of_a_compressed_shard_goes_unnoticed(tmp_path: Path, place: int) -> None:
    plan = with_codec(ROWS, "zstd")
    store(tmp_path, plan, random_values(plan))
    file = tmp_path / plan.shard_file((0, 1, 0))
    flip(file, place * file.stat().st_size // 120)
    with pytest.raises(Damage):
        ArrayReader(tmp_path, plan.path).read(0)


def test_a_repaired_file_is_read_anew(tmp_path: Path) -> None:
    values = random_values(ROWS)
    store(tmp_path, ROWS, values)
    reader = ArrayReader(tmp_path, ROWS.path)
    file = tmp_path / ROWS.shard_file((1, 2, 0))
    sound = file.read_bytes()
    flip(file, 30)
    with pytest.raises(Damage):
        reader.read(1)
    file.unlink()
    file.write_bytes(sound)
    assert same_bits(reader.read(1), values[1])


def test_missing_shards_are_damage_unless_fill_is_asked_for(tmp_path: Path) -> None:
    values = random_values(ROWS)
    store(tmp_path, ROWS, values, leave_out=[(1, 2, 0)])
    with pytest.raises(Damage, match="missing"):
        ArrayReader(tmp_path, ROWS.path).read(1, [40])
    got = ArrayReader(tmp_path, ROWS.path, missing="fill").read(slice(None), slice(30, 50))
    assert np.isnan(got[1, 2:18].astype(np.float32)).all()
    values[1, 32:48] = np.nan
    assert same_bits(got, values[:, 30:50])
    with pytest.raises(RequestError, match="fill"):
        ArrayReader(tmp_path, ROWS.path, missing="zero")


def test_a_shard_whose_chunks_are_not_all_there_fails_its_check(tmp_path: Path) -> None:
    longer = ArrayPlan(ROWS.path, (3, 64, 6), "bfloat16", ROWS.dimensions, ROWS.chunk, ROWS.shard)
    store(tmp_path, ROWS, random_values(ROWS))
    check_shard(tmp_path, ROWS, (0, 3, 0))
    with pytest.raises(Damage, match="2 chunks instead of 4"):
        check_shard(tmp_path, longer, (0, 3, 0))
