"""JSON files with a format version: reading, writing and changing them through a pydantic model."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from typing_extensions import Self

from ..errors import IntegrityError, KoffkitError, UsageError
from ..strict import StrictModel
from .files import write_json
from .read_json import read_json

VERSION_KEY = "koffkit"


class RecordPart(StrictModel):
    """A part of a record; all its numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The JSON object, with the field names of the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Record(RecordPart):
    """The content of a JSON file. It is written with the fields that it was read with: fields that an older
    version did not write are not added.

    Attributes:
        newest: the newest version of the format that this koffkit reads.
        title: the name of the format in errors: `format`, `run format`.
        remedy: what the user can do about a damaged file, as the end of a sentence.
        damaged: the class of error for a damaged file.
    """

    newest: ClassVar[int] = 1
    title: ClassVar[str] = "format"
    remedy: ClassVar[str] = "export again"
    damaged: ClassVar[type[KoffkitError]] = IntegrityError

    koffkit: int = Field(description="Version of the format.", ge=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            UsageError: it has a later format.
            IntegrityError: (or the record's own class of error) it is damaged; the text names the field.
        """
        return cls.parse(read_json(path, error=cls.damaged, remedy=cls.remedy), path)

    @classmethod
    def parse(cls, tree: dict[str, Any], path: Path) -> Self:
        """Check the JSON object of the file `path`; raises as `read` does."""
        version = tree.get(VERSION_KEY)
        if isinstance(version, int) and not isinstance(version, bool) and version > cls.newest:
            raise UsageError(
                f"{path}: {VERSION_KEY}: {cls.title} {version}; this koffkit reads {cls.title} {cls.newest}, "
                "update koffkit."
            )
        try:
            return cls.model_validate(tree, strict=True)
        except ValidationError as error:
            raise cls.damaged(f"{path}: {first_problem(error)}; {cls.remedy}.") from None

    def write(self, path: Path) -> None:
        """Write the file whole or not at all. A number that is not finite becomes null, as JSON cannot hold
        it."""
        write_json(path, self.to_json())

    def evolve(self, **changes: Any) -> Self:
        """A copy with other values of some fields, given by their Python names; checked like a new one."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(given | changes)


def first_problem(error: ValidationError) -> str:
    """The first error of pydantic, as `field.name: reason`, and the number of further ones."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or "the object"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    reason = first["msg"].removeprefix("Value error, ")
    return f"{field}: {reason[:1].lower()}{reason[1:]}{more}"


def _inside(name: str) -> str:
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} leads out of the folder")
    return name


def _plain_name(name: str) -> str:
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise ValueError(f"{name!r} cannot be the name of a folder")
    return name


InnerPath = Annotated[str, AfterValidator(_inside)]
"""The path of a file below the record's folder, with `/`."""
FolderName = Annotated[str, AfterValidator(_plain_name)]
"""A single name that is valid for a folder."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
