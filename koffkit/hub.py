"""Where models are found: embedded, in a local folder, or on the hub. The one place that asks the hub."""

from __future__ import annotations

from pathlib import Path

from .checkpoint.files import CHECKPOINT_PATTERNS
from .embedded import PREFIX
from .embedded import path as embedded_path
from .errors import DataError
from .recipe.schema import Base


def locate(base: Base, root: Path, *, config_only: bool = False) -> Path:
    """The local folder of a base: embedded, local (relative to the recipe, else the working folder), or
    downloaded.

    Args:
        config_only: for plans; fetch nothing but `config.json` of a hub model.

    Raises:
        DataError: it is nowhere to be found.
    """
    name = base.model
    if name.startswith(PREFIX):
        try:
            return embedded_path(name.removeprefix(PREFIX))
        except FileNotFoundError as error:
            raise DataError(f"base.model: {error}") from None
    for folder in (root / name, Path(name)):
        if folder.is_dir():
            return folder.resolve()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(
            f"base.model: no folder {name!r} in {root} or {Path.cwd()}, and it is not a hub id (owner/name)."
        )
    return _download(base, config_only)


def _download(base: Base, config_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["config.json"] if config_only else CHECKPOINT_PATTERNS
    try:
        return Path(snapshot_download(base.model, revision=base.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"base.model: {base.model!r} is no local folder and the hub did not give it: {reason}"
        ) from None
