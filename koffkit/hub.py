"""Locating models: embedded, in a local folder, or on the hub. No other module talks to the hub."""

from __future__ import annotations

import re
from pathlib import Path

from .checkpoint.files import CHECKPOINT_PATTERNS, CONFIG
from .embedded import PREFIX
from .embedded import path as embedded_path
from .errors import DataError

CONFIG_ONLY = [CONFIG]
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[-.](?![-.]))*"
_HUB_ID = re.compile(f"(?=.{{1,96}}$){_WORD}(?<![-.])/{_WORD}(?<![-.])")


def locate(name: str, root: Path, *, revision: str | None = None, config_only: bool = False) -> Path:
    """Find a base: embedded, in a local folder, or on the hub.

    Args:
        name: hub id, local folder, or `embedded:NAME`.
        root: where relative folders are looked for first, before the working folder.
        revision: branch, tag or commit of a hub model.
        config_only: fetch nothing but `config.json` of a hub model; enough for a plan.

    Returns:
        The model's local folder.

    Raises:
        DataError: there is no such model.
    """
    if name.startswith(PREFIX):
        try:
            return embedded_path(name.removeprefix(PREFIX))
        except FileNotFoundError as error:
            raise DataError(f"base.model: {error}") from None
    for path in (root / Path(name).expanduser(), Path(name).expanduser()):
        try:
            if path.is_dir():
                return path.resolve()
            exists = path.exists()
        except (OSError, ValueError) as error:
            raise DataError(f"base.model: {name[:200]!r} cannot be looked for ({error}).") from None
        if exists:
            raise DataError(
                f"base.model: {path} is a file; name the folder that holds config.json and *.safetensors."
            )
    if not _HUB_ID.fullmatch(name) or name.endswith(".git"):
        raise DataError(
            f"base.model: no folder {name!r} in {root} or {Path.cwd()}, and it is not a hub id (owner/name)."
        )
    patterns = CONFIG_ONLY if config_only else CHECKPOINT_PATTERNS
    return download(name, patterns, revision=revision, where="base.model")


def locate_again(
    recorded: Path, name: str, root: Path, run: Path, *, revision: str | None, given: Path | None = None
) -> Path:
    """Find the base of a run, which may have been moved since, alone or together with its project.

    Args:
        recorded: the base's folder when the run was made.
        name, root, revision: as for `locate`.
        run: the run's folder; a relative name is also looked for in its parent folders.
        given: where the base is now, if the user says so.

    Returns:
        The base's local folder.

    Raises:
        DataError: there is no base in any of these places.
    """
    if given is not None:
        if not (given / CONFIG).is_file():
            raise DataError(
                f"--base {given}: no folder with a {CONFIG}; name the folder of the unpruned model."
            )
        return given.resolve()
    around = [] if Path(name).is_absolute() else list(run.resolve().parents)[:4]
    for folder in (recorded, *(parent / name for parent in around)):
        if (folder / CONFIG).is_file():
            return folder.resolve()
    try:
        return locate(name, root, revision=revision)
    except DataError as error:
        raise DataError(f"{error} Say where the base is now with --base PATH.") from None


def is_hub_id(name: str, root: Path) -> bool:
    """Whether a name can only be a model on the hub: it has the form of an id, and is no local file or
    folder."""
    try:
        local = any(path.exists() for path in (root / Path(name).expanduser(), Path(name).expanduser()))
    except (OSError, ValueError):
        return False
    return not local and _HUB_ID.fullmatch(name) is not None and not name.endswith(".git")


def download(
    name: str, patterns: list[str], *, where: str, revision: str | None = None, remedy: str = ""
) -> Path:
    """Fetch a model from the hub, or take it from the hub's local cache.

    Args:
        name: hub id.
        patterns: globs of the files to fetch.
        where: the recipe field that names the model, for the error.
        revision: branch, tag or commit; None: the default branch.
        remedy: what else the user can do, as a sentence.

    Returns:
        The folder that holds the files.

    Raises:
        DataError: the hub does not have it or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        message = f"{where}: {name!r} is no local folder and cannot be fetched from the hub: {reason}"
        raise DataError(f"{message} {remedy}".rstrip()) from None
