"""Locating models: embedded, in a local folder, in a GGUF file, or on the hub; and uploading to it. No other
module talks to the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .checkpoint.files import CHECKPOINT_PATTERNS, CONFIG
from .checkpoint.gguf import gguf_checkpoint, is_gguf, named_gguf
from .embedded import PREFIX
from .embedded import path as embedded_path
from .errors import DataError, KoffkitError, UsageError
from .progress import Progress

CONFIG_ONLY = [CONFIG]
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[-.](?![-.]))*"
_OURS = re.compile(r"(backbone|memories|router)/|[^/]*\.safetensors(\.index\.json)?$")
"""Paths of an export in a repository."""
_HUB_ID = re.compile(f"(?=.{{1,96}}$){_WORD}(?<![-.])/{_WORD}(?<![-.])")


def locate(
    name: str,
    root: Path,
    *,
    revision: str | None = None,
    config_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Find a base: embedded, in a local folder, in a GGUF file, or on the hub.

    Args:
        name: hub id, local folder, GGUF file, or `embedded:NAME`.
        root: where relative folders are looked for first, before the working folder.
        revision: branch, tag or commit of a hub model.
        config_only: fetch nothing but `config.json` of a hub model; enough for a plan.
        progress: is told when a GGUF file is dequantised, which happens once.

    Returns:
        The model's local folder.

    Raises:
        DataError: there is no such model.
        KoffkitError: a GGUF file cannot be read; see `gguf_checkpoint`.
    """
    if name.startswith(PREFIX):
        try:
            return embedded_path(name.removeprefix(PREFIX))
        except FileNotFoundError as error:
            raise DataError(f"base.model: {error}") from None
    local = _local(name, root)
    if local is not None:
        return _dequantised(local, progress) if local.is_file() else local
    if not _could_be_on_hub(name):
        kind = "file" if named_gguf(name) else "folder"
        raise DataError(
            f"base.model: no {kind} {name!r} in {root} or {Path.cwd()}, and it is not a hub id (owner/name)."
        )
    patterns = CONFIG_ONLY if config_only else CHECKPOINT_PATTERNS
    return download(name, patterns, revision=revision, where="base.model")


def _local(name: str, root: Path) -> Path | None:
    """The folder or GGUF file of this name; None: there is none.

    Raises:
        DataError: there is a file of another kind, or the name cannot be that of a file.
    """
    for path in (root / Path(name).expanduser(), Path(name).expanduser()):
        try:
            if path.is_dir() or is_gguf(path):
                return path.resolve()
            exists = path.exists()
        except (OSError, ValueError) as error:
            raise DataError(f"base.model: {name[:200]!r} cannot be looked for ({error}).") from None
        if exists:
            raise DataError(
                f"base.model: {path} is a file and no GGUF file; name the folder that holds config.json and "
                "*.safetensors."
            )
    return None


def _could_be_on_hub(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not name.endswith(".git") and not named_gguf(name)


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
        base = _checkpoint_at(given)
        if base is None:
            raise DataError(
                f"--base {given}: no folder with a {CONFIG} and no GGUF file; name that of the unpruned "
                "model."
            )
        return base
    around = [] if Path(name).is_absolute() else list(run.resolve().parents)[:4]
    for path in (recorded, *(parent / name for parent in around)):
        base = _checkpoint_at(path)
        if base is not None:
            return base
    try:
        return locate(name, root, revision=revision)
    except DataError as error:
        raise DataError(f"{error} Say where the base is now with --base PATH.") from None


def _dequantised(path: Path, progress: Progress | None) -> Path:
    try:
        return gguf_checkpoint(path, progress)
    except KoffkitError as error:
        raise type(error)(f"base.model: {error}") from None


def _checkpoint_at(path: Path) -> Path | None:
    if is_gguf(path):
        return gguf_checkpoint(path)
    return path.resolve() if (path / CONFIG).is_file() else None


def is_hub_id(name: str, root: Path) -> bool:
    """Whether a name can only be a model on the hub: it has the form of an id, and is no local file or
    folder."""
    try:
        local = any(path.exists() for path in (root / Path(name).expanduser(), Path(name).expanduser()))
    except (OSError, ValueError):
        return False
    return not local and _could_be_on_hub(name)


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


def upload(repo: str, files: Mapping[str, Path | bytes], *, public: bool, message: str) -> str:
    """Put files into a repository on the hub in one commit, and make the repository if there is none. What
    an earlier upload of an export has left there and this one has not is removed in the same commit.

    Args:
        repo: its id.
        files: content by path in the repository.
        public: a repository that is made now can be seen by everybody.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        UsageError: nobody is logged in; or there is such a repository, everybody sees it, and `public` is not
            set.
        DataError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise UsageError(f"{repo}: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN.")
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            raise UsageError(f"{repo}: everybody can see it; pass --public, or give another name.")
        left = set(api.list_repo_files(repo)) - files.keys()
        operations += [CommitOperationDelete(name) for name in sorted(left) if _OURS.match(name)]
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{repo}: the hub did not take it ({reason[0] if reason else type(error).__name__}); nothing of "
            "this repository was changed. Try again; what is there already is not sent again."
        ) from None
