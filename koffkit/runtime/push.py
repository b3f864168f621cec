"""What of an export goes to the hub, and where to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..artefact.bundle import Bundle
from ..artefact.check import listed_files, require_sound
from ..artefact.export import open_export
from ..artefact.names import ADAPTER_CONFIG, CARD, MANIFEST, MEMORY_FILE
from ..artefact.parts import FileEntry
from ..errors import UsageError
from ..hub import is_hub_id, upload
from ..progress import Progress, Silent
from ..storage.read_json import read_json

Content = Path | bytes
ADAPTERS = "memory"


@dataclass(frozen=True)
class Upload:
    """What goes to one repository, in one commit.

    Args:
        repo: its id.
        files: what becomes of each path in it: a file, or new content.
    """

    repo: str
    files: dict[str, Content]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by path."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def plan_push(path: Path, repo: str, *, split: bool = False) -> list[Upload]:
    """What `push` would upload.

    Args:
        path: an export.
        repo: `owner/name` on the hub.
        split: the backbone goes to `repo`, each memory to a repository of its own, `repo-memory-DOMAIN`,
            where PEFT finds its adapter; otherwise the export goes to `repo` as it is.

    Raises:
        UsageError: this is no export of format hf, or `repo` is no such id.
        IntegrityError: a file of it has changed or is missing.
    """
    if not is_hub_id(repo, Path("/nowhere")):
        raise UsageError(f"{repo}: not the name of a repository; give owner/name, such as acme/lean-llama.")
    export = open_export(path, any_format=not split)
    bundles = export.bundles() if export.is_checkpoint else []
    if not split:
        names = [MANIFEST, *listed_files(export), *_of_bundles(path, bundles)]
        names += [str(card.relative_to(path)) for card in path.rglob(CARD) if _is_visible(card, path)]
        return [Upload(repo, {name: path / name for name in dict.fromkeys(names) if (path / name).is_file()})]
    backbone = {file.name: file for file in sorted(export.backbone.iterdir()) if file.is_file()}
    return [Upload(repo, dict(backbone)), *(_apart(bundle, repo) for bundle in bundles)]


def _of_bundles(root: Path, bundles: list[Bundle]) -> Iterator[str]:
    for bundle in bundles:
        for name in (MEMORY_FILE, *bundle.info.files):
            yield str((bundle.path / name).relative_to(root))


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _apart(bundle: Bundle, repo: str) -> Upload:
    """A memory in a repository of its own, whose adapter names the backbone's."""
    files: dict[str, Content] = {name: bundle.path / name for name in bundle.info.files}
    if (bundle.path / CARD).is_file():
        files[CARD] = bundle.path / CARD
    entries = dict(bundle.info.files)
    if ADAPTER_CONFIG in files:
        config = read_json(bundle.path / ADAPTER_CONFIG, remedy="copy the bundle again")
        content = json.dumps(config | {"base_model_name_or_path": repo}, indent=2).encode()
        digest = hashlib.sha256(content).hexdigest()
        files[ADAPTER_CONFIG], entries[ADAPTER_CONFIG] = content, FileEntry(sha256=digest, size=len(content))
    files[MEMORY_FILE] = bundle.info.evolve(files=entries).content().encode()
    return Upload(f"{repo}-{ADAPTERS}-{bundle.domain}", files)


def push(
    path: Path, repo: str, *, split: bool = False, public: bool = False, progress: Progress | None = None
) -> dict[str, str]:
    """Upload an export to the hub, after every byte of it was checked; each repository gets one commit.

    Args:
        path: an export.
        repo: `owner/name`.
        split: see `plan_push`.
        public: a repository that is made now can be seen by everybody; otherwise it is private.
        progress: told what is going on.

    Returns:
        The address of each repository's commit.

    Raises:
        UsageError: see `plan_push`; or nobody is logged in.
        IntegrityError: a file has changed or is missing.
        DataError: the hub refuses, or cannot be reached.
    """
    progress = progress or Silent()
    uploads = plan_push(path, repo, split=split)
    require_sound(open_export(path, any_format=True), whole=True, progress=progress)
    done = {}
    for one in uploads:
        progress.message(f"uploading {len(one.files)} files to {one.repo}")
        done[one.repo] = upload(one.repo, one.files, public=public, message=f"{path.name} by koffkit")
    return done
