"""Options that installed things bring into the recipe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from koffkit import plugins
from koffkit.errors import UsageError
from koffkit.recipe.plugin_options import options_of, with_options_of


class Shared(BaseModel):
    size: int = Field(3, ge=1)


class More(Shared):
    depth: int = 2


class Other(BaseModel):
    size: int = 4


class Kind(BaseModel):
    kind: str = "x"


def install(monkeypatch: pytest.MonkeyPatch, **options: type[BaseModel] | None) -> None:
    kinds = {name: SimpleNamespace(options=model) for name, model in options.items()}
    monkeypatch.setattr(plugins, "names", lambda group: list(kinds))
    monkeypatch.setattr(plugins, "load", lambda group, name, field: kinds[name])


class Base(BaseModel):
    """A stage."""

    model_config = ConfigDict(extra="forbid")
    kind: str = "a"


def test_a_model_gets_every_option_once(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, a=Shared, b=More, c=None)
    assert {name: list(fields) for name, fields in options_of("g", "stage.kind").items()} == {
        "a": ["size"],
        "b": ["size", "depth"],
        "c": [],
    }
    made: Any = with_options_of("g", "stage.kind")(Base)
    assert list(made.model_fields) == ["kind", "size", "depth"]
    assert made().size == 3
    assert (made.__name__, made.__doc__) == ("Base", "A stage.")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        made(size=0)  # limits come along
    with pytest.raises(ValidationError, match="Extra inputs"):
        made(surprise=1)


@pytest.mark.parametrize(("second", "option"), [(Other, "size"), (Kind, "kind")])
def test_an_option_has_one_meaning(
    monkeypatch: pytest.MonkeyPatch, second: type[BaseModel], option: str
) -> None:
    install(monkeypatch, a=Shared, b=second)
    with pytest.raises(UsageError, match=rf"stage\.kind: b has an option {option}, which already means"):
        with_options_of("g", "stage.kind")(Base)
