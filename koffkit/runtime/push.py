"""What of an export goes to the hub, and where to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
FENCE = "---\n"
_NAMES = {'"backbone"': "{repo}", '"memories/<domain>"': f"{{repo}}-{ADAPTERS}-<domain>"}
"""What the backbone's card calls folders, and what they are on the hub."""


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


def plan_push(path: Path, repo: str, *, split: bool = False, license_name: str | None = None) -> list[Upload]:
    """What `push` would upload.

    Args:
        path: an export.
        repo: `owner/name` on the hub.
        split: the backbone goes to `repo`, each memory to a repository of its own, `repo-memory-DOMAIN`,
            where PEFT finds its adapter; otherwise the export goes to `repo` as it is.
        license_name: for the cards; None: that of the base, as far as its files name one.

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
        found = {name: path / name for name in dict.fromkeys(names) if (path / name).is_file()}
        return [Upload(repo, _licensed(found, license_name))]
    backbone = {file.name: file for file in sorted(export.backbone.iterdir()) if file.is_file()}
    apart = [_apart(bundle, repo, license_name) for bundle in bundles]
    return [Upload(repo, _licensed(_with_card(backbone, _NAMES, repo), license_name)), *apart]


def refusals(path: Path, *, public: bool, license_name: str | None) -> list[str]:
    """Why an export must not be uploaded, each with the remedy.

    Args:
        path: an export.
        public: everybody could see it.
        license_name: for the cards.
    """
    known = open_export(path, any_format=True).manifest.base.license
    if not public or known is not None or license_name is not None:
        return []
    return [
        f"{path}: the base's files name no license, which what is public needs; say which with --license."
    ]


def _of_bundles(root: Path, bundles: list[Bundle]) -> Iterator[str]:
    for bundle in bundles:
        for name in (MEMORY_FILE, *bundle.info.files):
            yield str((bundle.path / name).relative_to(root))


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _apart(bundle: Bundle, repo: str, license_name: str | None) -> Upload:
    """A memory in a repository of its own, whose adapter and card name the backbone's."""
    name = f"{repo}-{ADAPTERS}-{bundle.domain}"
    files: dict[str, Content] = {file: bundle.path / file for file in bundle.info.files}
    if (bundle.path / CARD).is_file():
        files[CARD] = bundle.path / CARD
        files = _with_card(files, {f'"memories/{bundle.domain}"': name}, repo)
        files = _headed(files, {"base_model": repo, "base_model_relation": "adapter"})
    entries = dict(bundle.info.files)
    if ADAPTER_CONFIG in files:
        config = read_json(bundle.path / ADAPTER_CONFIG, remedy="copy the bundle again")
        content = json.dumps(config | {"base_model_name_or_path": repo}, indent=2).encode()
        digest = hashlib.sha256(content).hexdigest()
        files[ADAPTER_CONFIG], entries[ADAPTER_CONFIG] = content, FileEntry(sha256=digest, size=len(content))
    files[MEMORY_FILE] = bundle.info.evolve(files=entries).content().encode()
    return Upload(name, _licensed(files, license_name))


def _with_card(files: Mapping[str, Content], names: Mapping[str, str], repo: str) -> dict[str, Content]:
    """The files, with a card whose examples say names on the hub in the place of folders."""
    if CARD not in files:
        return dict(files)
    text = _text(files[CARD])
    for folder, name in names.items():
        text = text.replace(folder, f'"{name.format(repo=repo)}"')
    return {**files, CARD: text.encode()}


def _licensed(files: Mapping[str, Content], name: str | None) -> dict[str, Content]:
    """The files, with a license in the header of every card; None: as they are."""
    return dict(files) if name is None else _headed(files, {"license": name})


def _headed(files: Mapping[str, Content], fields: Mapping[str, str]) -> dict[str, Content]:
    """The files, with more fields in the header of every card."""
    cards = {place: _text(content) for place, content in files.items() if Path(place).name == CARD}
    return {**files, **{place: _card(text, fields).encode() for place, text in cards.items()}}


def _card(text: str, fields: Mapping[str, str]) -> str:
    header: dict[str, Any] = {}
    if text.startswith(FENCE) and text.count(FENCE) > 1:
        _, block, text = text.split(FENCE, 2)
        header = yaml.safe_load(block) or {}
    return f"{FENCE}{yaml.safe_dump({**header, **fields}, sort_keys=False, allow_unicode=True)}{FENCE}{text}"


def _text(content: Content) -> str:
    return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def push(
    path: Path,
    repo: str,
    *,
    split: bool = False,
    public: bool = False,
    license_name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Upload an export to the hub, after every byte of it was checked; each repository gets one commit.

    Args:
        path: an export.
        repo: `owner/name`.
        split, license_name: see `plan_push`.
        public: a repository that is made now can be seen by everybody; otherwise it is private.
        progress: told what is going on.

    Returns:
        The address of each repository's commit.

    Raises:
        UsageError: see `plan_push` and `refusals`; nobody is logged in; or a repository is public already,
            and `public` is not set.
        IntegrityError: a file has changed or is missing.
        DataError: the hub refuses, or cannot be reached.
    """
    progress = progress or Silent()
    uploads = plan_push(path, repo, split=split, license_name=license_name)
    problems = refusals(path, public=public, license_name=license_name)
    if problems:
        raise UsageError(problems[0])
    require_sound(open_export(path, any_format=True), whole=True, progress=progress)
    done = {}
    for one in uploads:
        progress.message(f"uploading {len(one.files)} files to {one.repo}")
        done[one.repo] = upload(one.repo, one.files, public=public, message=f"{path.name} by koffkit")
    return done
