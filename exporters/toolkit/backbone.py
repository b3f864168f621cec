"""The backbone as a checkpoint folder of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...checkpoint.files import tokenizer_files
from ...checkpoint.fingerprint import FullDigest
from ...checkpoint.license import license_files
from ...masks.sliced_reader import SlicedReader
from ...masks.slicing import backbone_slices, zero_rows
from ...storage.files import write_json
from .publishing import Draft
from .stream import Sliced, can_hash, slice_checkpoint


def write_backbone(
    draft: Draft, reader: SlicedReader | None = None, *, max_shard_size: str | None = None
) -> Sliced:
    """Write weights, config, tokenizer, license and, where no stock class holds the result, the code of its
    class. The base is read once, for its digest, too, where that is still to be compared.

    Args:
        draft: the export.
        reader: the weights to write; None: the base's, sliced as the masks of the run say.
        max_shard_size: most bytes of a file of weights, such as `5GB`; None: the files of the base.

    Raises:
        IntegrityError: the base is damaged, or no longer what the run was made from.
    """
    run, folder = draft.run, draft.backbone
    folder.mkdir()
    config = run.sliced_config
    skip = {f"{run.spec.arch.head}.weight"} if config["tie_word_embeddings"] else set()
    with draft.timed("prepare"):
        if reader is None:
            slices, rows = backbone_slices(run.spec, run.masks), zero_rows(run.spec, run.masks)
            reader = SlicedReader(run.spec.folder, slices, rows, run.repair)
    check = run.base_check
    passing = not check.is_settled and check.reads_all and can_hash(reader, skip, max_shard_size)
    digest = FullDigest(check.folder) if passing else None
    if digest is None:
        check.settle(progress=draft.progress)
    with draft.timed("slice"):
        sliced = slice_checkpoint(reader, skip, folder, draft.progress, max_shard_size, digest)
    if digest is not None:
        check.settle(digest.end())
    write_json(folder / "config.json", config)
    if "auto_map" in config:
        from ...sliced import CODE

        shutil.copyfile(CODE, folder / CODE.name)
    copy_tokenizer(run.spec.folder, folder)
    copy_license(draft)
    return sliced


def copy_license(draft: Draft) -> None:
    """Copy the base's license beside the backbone."""
    for path in license_files(draft.run.spec.folder):
        shutil.copyfile(path, draft.backbone / path.name)


def copy_tokenizer(base: Path, backbone: Path) -> None:
    """Copy the files of the tokenizer and of generation."""
    for path in tokenizer_files(base):
        shutil.copyfile(path, backbone / path.name)
