"""Checks of a recipe's text before anything is learned: files, fields, and a sample of each."""

from __future__ import annotations

import os
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..recipe.load import LoadedRecipe
from ..recipe.schema import AutoDomains, Source
from .chat import check_conversation
from .places import Place, is_remote, kind_of, require_file_system, source_files
from .reading import lines_of
from .records import checked, file_records, text_field

FILES, RECORDS = 16, 4  # files checked per source, records checked per file


def data_problems(loaded: LoadedRecipe) -> list[str]:
    """One line for every source with a problem, as far as a sample shows. Addresses and hub data sets are not
    opened.
    """
    recipe = loaded.recipe
    if isinstance(recipe.domains, AutoDomains):
        sources: dict[str, Source] = {"domains.auto": recipe.domains.auto}
    else:
        sources = {f"domains.{name}": source for name, source in recipe.domains.items()}
    if recipe.retention is not None:
        sources["retention"] = recipe.retention
    problems = []
    for where, source in sources.items():
        try:
            _check(source, loaded.root, where)
        except DataError as error:
            problems.append(str(error))
    return problems


def _check(source: Source, root: Path, where: str) -> None:
    if source.hub:
        _require("datasets", f"{where}: hub data sets need")
        return
    given = source.text or source.jsonl or []
    patterns = [given] if isinstance(given, str) else given
    for address in filter(is_remote, patterns):
        require_file_system(address, where)
    local = [name for name in patterns if not is_remote(name)]
    if not local:
        return
    kept = {"text": local} if source.text else {"jsonl": local}
    places = source_files(source.model_copy(update=kept), root, where)
    for place in places:
        if not os.access(place, os.R_OK):
            raise DataError(f"{place} ({where}): cannot be read (permission denied).")
        if str(place).endswith(".zst"):
            _require("zstandard", f"{place} ({where}): reading .zst needs")
        if source.jsonl and kind_of(place) == ".parquet":
            _require("pyarrow", f"{place} ({where}): reading parquet needs")
    if len(local) == len(patterns) and not any(Path(place).stat().st_size for place in places):
        raise DataError(f"{where}: the source holds no documents: its files are empty.")
    for place in places[:: max(1, len(places) // FILES)][:FILES]:
        _look_into(source, place, where)


def _look_into(source: Source, place: Place, where: str) -> None:
    if source.text:
        for _ in islice(lines_of(place, where), RECORDS):
            pass
        return
    for spot, record in islice(file_records(place, source.record_field, where), RECORDS):
        if source.messages is not None:
            check_conversation(record[source.messages], record.get(source.tools), spot)
            continue
        for field in (source.field, source.prompt_field, source.answer_field):
            if field is not None:
                text_field(checked(record, field, spot), field, spot)


def _require(package: str, sentence: str) -> None:
    if find_spec(package) is None:
        raise DataError(f"{sentence} the extra: pip install 'koffkit[data]'.")
