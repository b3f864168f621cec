"""Records of parquet files, with pyarrow alone.

`datasets` reads them too, but tells a server on the internet about it, may abort a process that ends before
the file does, and holds a whole row group in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import IO, Any

from ..errors import DataError
from .places import PACKED, Place, is_http, is_remote
from .reading import BOMB_BYTES, BOMB_FACTOR, DAMAGE, open_bytes

AT_ONCE = 4
"""Rows of a batch: few, because a few bytes of the file may stand for the same long text in all of them."""


def parquet_records(place: Place, where: str, longest: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a parquet file, each with its place.

    Args:
        place: a file or address.
        where: the recipe's field, for errors.
        longest: characters that a text may have.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged, packed, or holds what is no text.
    """
    if str(place).partition("?")[0].lower().endswith(PACKED):
        raise DataError(f"{place} ({where}): parquet is packed inside and read at random; unpack the file.")
    for number, row in enumerate(_rows(place, where), 1):
        spot = f"{place} record {number}"
        long = next((name for name, value in row.items() if _characters(value) > longest), None)
        if long is not None:
            raise DataError(f"{spot}: field {long!r} has more than {longest:,} characters; break it up.")
        yield spot, row


def _rows(place: Place, where: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{place} ({where}): reading parquet needs the extra: pip install 'koffkit[data]'."
        ) from None
    try:
        with open_bytes(place) as raw, _at_random(raw, place) as file:
            table = ParquetFile(file, pre_buffer=False, buffer_size=1 << 16)
            _require_text_sizes(table.metadata)
            for batch in table.iter_batches(batch_size=AT_ONCE, use_threads=False):
                yield from batch.to_pylist()
    except DataError:
        raise
    except Exception as error:
        if not isinstance(error, (*DAMAGE, pyarrow.ArrowException)) and not is_remote(str(place)):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{place} ({where}): cannot be read: {reason}; is the file whole?") from None


def _at_random(file: IO[bytes], place: Place) -> IO[bytes]:
    """The file, or a copy on the disk of one that a server gives from beginning to end only."""
    if not is_http(str(place)):
        return file
    copy = TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        copyfileobj(file, copy, 1 << 20)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def _characters(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _require_text_sizes(metadata: Any) -> None:
    """Refuse columns that were packed better than text can be.

    Raises:
        ValueError: there is one.
    """
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            size, packed = column.total_uncompressed_size, column.total_compressed_size
            if size > BOMB_BYTES and size > BOMB_FACTOR * packed:
                raise ValueError(f"it unpacks to more than {BOMB_FACTOR} times its size; no text does")
