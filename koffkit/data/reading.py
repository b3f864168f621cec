"""Lines of files that may be compressed, damaged, endless or remote; memory use is bounded by the longest
document allowed."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from .places import Place, is_http, is_remote, reason_of

MAX_CHARACTERS = 16 * 2**20  # of one line or document
PIECE = 1024  # compressed bytes at a time: few enough that their content fits into memory
# Content above this size that was compressed by more than this factor is not text.
BOMB_BYTES, BOMB_FACTOR = 4 * 2**20, 200
DAMAGE = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)
"""What damaged files raise; file systems of addresses have exceptions of their own."""
WINDOW = 128 * 2**20  # memory that decompression may take


def lines_of(place: Place, where: str, limit: int = MAX_CHARACTERS) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line of a file, its end included.

    Args:
        where: the recipe's field, for errors.
        limit: characters that a line may have.

    Raises:
        DataError: the file cannot be read, is damaged or cut short, no UTF-8, or has an endless line.
    """
    for number, line in enumerate(_pieces(place, where, lambda file: file.readline(limit + 1)), 1):
        if len(line) > limit:
            raise DataError(
                f"{place}:{number} ({where}): a line of more than {limit:,} characters; break it up. Is "
                "this text?"
            )
        yield number, line


def chunks_of(place: Place, where: str, size: int = 1 << 20) -> Iterator[str]:
    """The text of a file, `size` characters at a time.

    Args:
        place: a file or address.
        where: the recipe's field, for errors.
        size: characters at a time.

    Raises:
        DataError: as for `lines_of`.
    """
    return _pieces(place, where, lambda file: file.read(size))


def _pieces(place: Place, where: str, read: Callable[[IO[str]], str]) -> Iterator[str]:
    number = 0
    try:
        with open_bytes(place) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as file:
            while text := read(file):
                yield text
                number += text.count("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} ({where}): not UTF-8 text ({error.reason}, after line {number}); convert it to UTF-8."
        ) from None
    except DataError:
        raise
    except Exception as error:
        if not isinstance(error, DAMAGE) and not is_remote(str(place)):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{place} ({where}): cannot be read: {reason}, after line {number}; is the file complete?"
        ) from None


def open_bytes(place: Place) -> IO[bytes]:
    """Open the decompressed bytes of a file or address.

    Raises:
        DataError: a package that it needs is not installed, or the address does not answer.
        OSError: it cannot be opened.
    """
    unpacker = _unpacker(place)
    file = _open_remote(str(place)) if is_remote(str(place)) else open(place, "rb")  # noqa: SIM115
    return file if unpacker is None else io.BufferedReader(_Unpacked(file, unpacker), 1 << 16)


def _open_remote(address: str) -> Any:
    import fsspec

    try:
        if is_http(address):  # from beginning to end, which every server can do
            return io.BufferedReader(fsspec.open(address, "rb", block_size=0).open(), 1 << 20)
        return fsspec.open(address, "rb").open()
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{address}: cannot be opened ({reason_of(error)}).") from None


def _unpacker(place: Place) -> Callable[[], Any] | None:
    """A factory of decompressors, one per frame of a compressed file; None: it is not compressed."""
    suffix = Path(str(place).partition("?")[0]).suffix.lower()
    if suffix == ".gz":
        return lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)
    if suffix == ".bz2":
        return bz2.BZ2Decompressor
    if suffix == ".xz":
        return lambda: lzma.LZMADecompressor(memlimit=WINDOW)
    if suffix != ".zst":
        return None
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{place}: reading .zst needs the extra: pip install 'koffkit[data]'.") from None

    class Frame:
        """Turns the error of zstandard into a ValueError."""

        def __init__(self) -> None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()

        @property
        def eof(self) -> bool:
            return bool(self._frame.eof)

        @property
        def unused_data(self) -> bytes:
            return bytes(self._frame.unused_data)

        def decompress(self, piece: bytes) -> bytes:
            try:
                return bytes(self._frame.decompress(piece))
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from None

    return Frame


class _Unpacked(io.RawIOBase):
    """The bytes of all frames of a compressed file. A truncated frame is an error; the readers of the
    formats' own libraries would take the end of the file for the end of the data."""

    def __init__(self, file: Any, start: Callable[[], Any]) -> None:
        self._file, self._start = file, start
        self._frame = start()
        self._whole = False  # whether the current frame is complete
        self._packed = b""
        self._ready = b""
        self._read = self._made = self._frames = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._whole and not self._next_frame():
                return 0
            piece = self._packed or self._file.read(PIECE)
            self._packed = b""
            if not piece:
                raise EOFError("it ends in the middle of its packed data")
            self._unpack(piece)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _unpack(self, piece: bytes) -> None:
        self._ready = self._frame.decompress(piece)
        self._whole = self._frame.eof
        self._packed = self._frame.unused_data if self._whole else b""
        self._read += len(piece) - len(self._packed)
        self._made += len(self._ready)
        if self._made > BOMB_BYTES and self._made > BOMB_FACTOR * self._read:
            raise ValueError(f"it unpacks to more than {BOMB_FACTOR} times its size; no text does")

    def _next_frame(self) -> bool:
        """Begin the next frame after a complete one; zeros between frames are padding."""
        while not self._packed.strip(b"\0"):
            self._packed = self._file.read(PIECE)
            if not self._packed:
                return False
        self._packed = self._packed.lstrip(b"\0")
        self._frame, self._whole = self._start(), False
        return True
