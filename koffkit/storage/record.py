"""JSON files with a format version: reading, writing and changing them through a pydantic model."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from typing_extensions import Self

from ..errors import IntegrityError, KoffkitError, UsageError
from ..strict import StrictModel
from .files import write_atomically
from .read_json import parse_json_object, read_limited
from .seal import KEY, is_unbroken, sealed

VERSION_KEY = "koffkit"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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
    seal: Sha256 | None = Field(
        None,
        description="sha256 of the file with zeros in this place; absent in files of earlier versions.",
    )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            UsageError: it has a later format.
            IntegrityError: (or the record's own class of error) it is damaged; the text names the field.
        """
        return cls.parse(read_limited(path, error=cls.damaged, remedy=cls.remedy), path)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Self:
        """Check the bytes that were read from `path`; raises as `read` does."""
        tree = parse_json_object(data, str(path), error=cls.damaged, remedy=cls.remedy)
        version = tree.get(VERSION_KEY)
        if isinstance(version, int) and not isinstance(version, bool) and version > cls.newest:
            raise UsageError(
                f"{path}: {VERSION_KEY}: {cls.title} {version}; this koffkit reads {cls.title} {cls.newest}, "
                "update koffkit."
            )
        try:
            record = cls.model_validate(tree, strict=True)
        except ValidationError as error:
            raise cls.damaged(f"{path}: {first_problem(error)}; {cls.remedy}.") from None
        if record.seal is not None and not is_unbroken(data, record.seal):
            raise cls.damaged(f"{path}: changed since it was written (its seal is broken); {cls.remedy}.")
        return record

    def to_json(self) -> dict[str, Any]:
        """The JSON object without its seal."""
        tree = super().to_json()
        tree.pop(KEY, None)
        return tree

    def content(self) -> str:
        """What the file holds, sealed. A figure that is not finite becomes null: JSON has no word for it."""
        return sealed(self.to_json())

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_atomically(path, self.content())

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
"""One name that can be a folder's."""
Count = Annotated[int, Field(ge=0)]
