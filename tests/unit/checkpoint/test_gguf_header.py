"""A damaged GGUF header is one clear error, whatever its bytes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from koffkit.checkpoint.gguf_header import read_gguf_header
from koffkit.errors import DataError, IntegrityError, KoffkitError, UsageError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(version: int = 3) -> bytes:
    """Three keys and one tensor, of 2 rows of 3 numbers."""
    start = b"GGUF" + struct.pack("<IQQ", version, 1, 3)
    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    keys += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    keys += text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 0.25)
    tensor = text("w") + struct.pack("<I2QIQ", 2, 3, 2, 0, 0)
    return start + keys + tensor


def test_keys_and_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header())
    read = read_gguf_header(path)
    assert read.metadata == {"general.architecture": "llama"}
    assert (read.tensors["w"].shape, read.num_params) == ((2, 3), 6)
    assert read.data_start % 32 == 0
    with pytest.raises(IntegrityError, match=r"x\.gguf: truncated: w ends at byte"):
        read.require_whole(path, {0: (1, 4)})
    path.write_bytes(header().ljust(read.data_start + 24, b"\0"))
    read_gguf_header(path).require_whole(path, {0: (1, 4)})


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\3\4 a zip"])
def test_another_kind_of_file_is_no_gguf_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.gguf: no GGUF file .*; download it again"):
        read_gguf_header(tmp_path / "x.gguf")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    (tmp_path / "x.gguf").write_bytes(header(version))
    with pytest.raises(UsageError, match=rf"x\.gguf: GGUF version {version}; versions 2 and 3"):
        read_gguf_header(tmp_path / "x.gguf")


def test_a_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for size in range(4, len(header())):
        path.write_bytes(header()[:size])
        with pytest.raises(IntegrityError, match=r"x\.gguf: the header is truncated or damaged \(.*again"):
            read_gguf_header(path)


def test_a_length_beyond_the_file_is_named(tmp_path: Path) -> None:
    content = header().replace(text("llama"), struct.pack("<Q", 10**12) + b"llama")
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a length of 1,000,000,000,000 bytes at byte 64 leads out"):
        read_gguf_header(tmp_path / "x.gguf")


def test_flipped_bytes_are_read_or_refused(tmp_path: Path) -> None:
    path, draw = tmp_path / "x.gguf", random.Random(0)
    refused = 0
    for _ in range(200):
        content = bytearray(header())
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(4, len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read_gguf_header(path)
        except KoffkitError:
            refused += 1
    assert refused > 50
