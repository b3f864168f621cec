"""Where models are found: embedded, in a local folder, or on the hub. The one place that asks the hub."""

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
    """The local folder of a base: embedded, local (relative to the recipe, else the working folder), or
    downloaded.

    Args:
        name: hub id, local folder, or `embedded:NAME`.
        root: where relative folders are looked for first.
        revision: of a hub model.
        config_only: for plans; fetch nothing but `config.json` of a hub model.

    Raises:
        DataError: it is nowhere to be found.
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
    return _download(name, revision, CONFIG_ONLY if config_only else CHECKPOINT_PATTERNS)


def locate_again(
    recorded: Path, name: str, root: Path, run: Path, *, revision: str | None, given: Path | None = None
) -> Path:
    """The base of a run, which may have been moved since, alone or together with its project.

    Args:
        recorded: its folder when the run was made.
        name, root, revision: as the recipe has them.
        run: the run's folder; a relative name is looked for in the folders around it too.
        given: where the user says that it is now.

    Raises:
        DataError: it is nowhere to be found.
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
    """Whether only the hub can tell what this is: no local file or folder, and in the form of an id."""
    try:
        local = any(path.exists() for path in (root / Path(name).expanduser(), Path(name).expanduser()))
    except (OSError, ValueError):
        return False
    return not local and _HUB_ID.fullmatch(name) is not None and not name.endswith(".git")


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"base.model: {name!r} is no local folder and the hub did not give it: {reason}"
        ) from None
