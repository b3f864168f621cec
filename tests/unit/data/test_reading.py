"""Files that are damaged, cut short, endless or no files: one error each, in little memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from koffkit.data.reading import MAX_CHARACTERS, chunks_of, lines_of
from koffkit.data.sources import documents, file_source
from koffkit.errors import DataError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def noise(lines: int, seed: int = 0) -> bytes:
    draw = random.Random(seed)
    return "".join(f"{draw.getrandbits(200):x}\n" for _ in range(lines)).encode()


def text_of(path: Path) -> bytes:
    return "".join(line for _, line in lines_of(path, "x")).encode()


@pytest.mark.parametrize("suffix", PACK)
def test_every_frame_is_read_and_none_that_is_cut(tmp_path: Path, suffix: str) -> None:
    path, parts = tmp_path / f"a.txt{suffix}", [noise(3000, seed) for seed in range(3)]
    packed = [PACK[suffix](part) for part in parts]
    path.write_bytes(b"".join(packed))
    assert text_of(path) == b"".join(parts)
    whole = len(packed[0]) + len(packed[1])
    for end in (0, 5, len(packed[0]) // 2, len(packed[0]) - 1, whole - 1, whole + 9):
        path.write_bytes(b"".join(packed)[:end])
        with pytest.raises(DataError, match=r"a\.txt\.\w+ \(x\): cannot be read.*is the file complete\?"):
            text_of(path)


@pytest.mark.parametrize("suffix", PACK)
def test_damaged_bytes_are_refused_or_change_nothing(tmp_path: Path, suffix: str) -> None:
    draw, content = random.Random(1), noise(300)
    # a frame with a checksum, as the zstd command writes it
    checked = zstandard.ZstdCompressor(write_checksum=True).compress
    packed = (checked if suffix == ".zst" else PACK[suffix])(content)
    path = tmp_path / f"a.txt{suffix}"
    for _ in range(40):
        damaged = bytearray(packed)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            assert text_of(path) == content
        except DataError as error:
            assert str(path) in str(error)


def test_zeros_after_the_last_frame_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\n") + bytes(5000))
    assert text_of(path) == b"one\n"
    path.write_bytes(gzip.compress(b"one\n") + b"garbage")
    with pytest.raises(DataError, match="cannot be read"):
        text_of(path)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("filler", [b"\0", b"\n", b"a"])
def test_bombs_end_early(tmp_path: Path, suffix: str, filler: bytes) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](filler * 20_000_000))
    start = time.process_time()
    with pytest.raises(
        DataError, match=r"unpacks to more than 200 times its size|more than 16,777,216 characters"
    ):
        list(documents(file_source(str(path)), tmp_path, "x"))
    assert time.process_time() - start < 3


def test_an_endless_line_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n" + b"x" * 60_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=rf"a\.txt:2 \(x\): a line of more than {MAX_CHARACTERS:,} characters"
        ):
            list(lines_of(path, "x"))
        assert tracemalloc.get_traced_memory()[1] < 120_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n" + b"x" * 10_000 + b"\n\xff\xfe")
    with pytest.raises(DataError, match=r"a\.txt \(x\): not UTF-8 text .*after line \d"):
        list(lines_of(path, "x"))


def test_a_mark_of_byte_order_and_every_kind_of_line_end_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert [line for _, line in lines_of(path, "x")] == ["one\n", "two\n", "three\n"]
    assert list(chunks_of(path, "x", 4)) == ["one\n", "two\n", "thre", "e\n"]


def test_a_folder_and_a_pipe_are_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "empty").mkdir()
    for name, message in (("pipe.txt", "is no file"), ("empty", "holds no file named")):
        with pytest.raises(DataError, match=message):
            list(documents(file_source(name), tmp_path, "x"))


def test_packing_is_read_as_its_own_library_reads_it(tmp_path: Path) -> None:
    content = noise(2000)
    stream = io.BytesIO()
    with gzip.GzipFile("name", "wb", fileobj=stream, mtime=0) as file:
        file.write(content)
    (tmp_path / "a.gz").write_bytes(stream.getvalue())
    assert text_of(tmp_path / "a.gz") == content == zlib.decompress(stream.getvalue(), 31)
