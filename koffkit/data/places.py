"""Resolving the patterns of a recipe to files: names, folders, globs, `~`, and addresses for fsspec."""

from __future__ import annotations

import difflib
import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ..embedded import PREFIX
from ..embedded import path as embedded_path
from ..errors import DataError
from ..recipe.schema import Source

Place = Path | str  # a local file, or an address
REMOTE = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hdfs", "hf", "memory")
PACKED = (".gz", ".xz", ".bz2", ".zst")
TEXT = (".txt", ".md", ".text")
RECORDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")


def source_files(source: Source, root: Path, where: str) -> list[Place]:
    """The files of a text or jsonl source, sorted within each pattern; relative to the recipe, else to the
    working folder.

    Args:
        source: a source of the recipe.
        root: the folder that relative paths start from, before the working folder.
        where: the recipe field of the source, for errors.

    Raises:
        DataError: a pattern matches nothing, or something that is not a file.
    """
    patterns = source.text or source.jsonl or []
    kinds = TEXT if source.text else RECORDS
    places: list[Place] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = _matches(pattern, root, where, kinds)
        places.extend(place for place in matches if place not in places)
    return places


def kind_of(place: Place) -> str:
    """The suffix that says how a file is read, without that of its compression: `.csv` of a.csv.gz."""
    name = str(place)
    suffixes = Path(name.partition("?")[0] if is_remote(name) else name).suffixes
    return next((suffix.lower() for suffix in reversed(suffixes) if suffix.lower() not in PACKED), "")


def file_source(pattern: str, field: str = "text") -> Source:
    """The source for a path or glob on the command line; `field` holds the text of records."""
    return Source(jsonl=pattern, field=field) if kind_of(pattern) in RECORDS else Source(text=pattern)


def is_remote(pattern: str) -> bool:
    """Whether this is an address. For text, koffkit uses the network only if a recipe or an option names
    one."""
    return "://" in pattern


def is_http(address: str) -> bool:
    """Whether a web server answers, which may neither list files nor read parts of them."""
    return address.lower().startswith(("http://", "https://"))


def _matches(pattern: str, root: Path, where: str, kinds: Sequence[str]) -> Sequence[Place]:
    if pattern.startswith(PREFIX):
        try:
            return [embedded_path(pattern.removeprefix(PREFIX))]
        except FileNotFoundError as error:
            raise DataError(f"{where}: {error}") from None
    if is_remote(pattern):
        return _remote(pattern, where)
    try:
        for folder in (root, Path.cwd()):
            files = _local(folder / Path(pattern).expanduser(), where, kinds)
            if files:
                return files
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{where}: {pattern[:200]!r} cannot be looked for ({reason}).") from None
    raise DataError(
        f"{where}: no file matches {pattern!r}, looked for in {root} and {Path.cwd()}; "
        f"correct the path (relative paths start at the recipe's folder).{_near(pattern, root)}"
    )


def _local(path: Path, where: str, kinds: Sequence[str]) -> list[Path]:
    """The files for a path: the file itself, the files of a folder, else what it matches as a pattern. Only a
    path that does not exist as written is a pattern, so brackets in a folder's name do no harm."""
    if os.path.lexists(path):
        return _existing(path, where, kinds)
    parts, start = list(path.parts[1:]), Path(path.anchor)
    while parts and os.path.lexists(start / parts[0]):
        start /= parts.pop(0)
    if not start.is_dir() or not parts:
        return []
    matches = glob.glob(str(Path(*parts)), root_dir=start, recursive=True)
    files = sorted(start / match for match in matches)
    return [file for file in files if file.is_file()]


def _existing(path: Path, where: str, kinds: Sequence[str]) -> list[Path]:
    mode = path.stat().st_mode  # fails with a clear error for a dangling link
    if stat.S_ISREG(mode):
        return [path]
    if not stat.S_ISDIR(mode):
        raise DataError(f"{where}: {path} is no file (a pipe, socket or device); name a file.")
    files = sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file) in kinds)
    if not files:
        raise DataError(f"{where}: the folder {path} holds no file named *{', *'.join(kinds)}; name files.")
    return files


def _near(pattern: str, root: Path) -> str:
    """A hint at similar names in the same folder."""
    folder = (root / pattern).parent
    try:
        names = [entry.name for entry in sorted(folder.iterdir())[:1000]] if folder.is_dir() else []
    except OSError:
        return ""
    near = difflib.get_close_matches(Path(pattern).name, names, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _remote(pattern: str, where: str) -> list[str]:
    require_file_system(pattern, where)
    if is_http(pattern) or not glob.has_magic(pattern):
        return [pattern]
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(pattern)
        matches = [str(system.unstrip_protocol(match)) for match in sorted(system.glob(path))]
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{where}: {pattern!r} cannot be listed ({reason_of(error)}).") from None
    if not matches:
        raise DataError(f"{where}: nothing matches {pattern!r}; correct the address.")
    return matches


def require_file_system(address: str, where: str) -> None:
    """Refuse an address that no installed package reads. Nothing is asked of the network.

    Args:
        address: an address.
        where: the recipe field of the source, for errors.

    Raises:
        DataError: its scheme is not one of ours, or a package is missing.
    """
    scheme = address.partition("://")[0].lower()
    if scheme not in REMOTE:
        raise DataError(f"{where}: {address!r}: addresses begin with one of {', '.join(REMOTE)}.")
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        remedy = "pip install 'koffkit[data]'" if is_http(address) else "pip install it"
        raise DataError(f"{where}: {address!r} needs a package ({reason_of(error)}): {remedy}.") from None


def reason_of(error: BaseException) -> str:
    """The first line of what a file system says; the cause, where it hides one behind a missing file."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
