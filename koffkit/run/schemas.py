"""JSON schemas of the files that other programs read, generated from the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..artefact.bundle_info import BundleInfo
from ..artefact.manifest import Manifest
from ..storage.record import Record
from .state import RunState

FOLDER = Path(__file__).parent.parent / "artefact" / "schema"
RECORDS: dict[str, type[Record]] = {"manifest": Manifest, "memory": BundleInfo, "run": RunState}
"""Records by the name of the schema's file."""


def schema_of(record: type[Record]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the files that this version writes, with the field names of the
    file."""
    schema = record.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["koffkit"] = {"const": record.newest, "description": "Version of the format."}
    return schema


def write_schemas(folder: Path = FOLDER) -> None:
    """Write every schema into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in RECORDS.items():
        text = json.dumps(schema_of(record), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas()
