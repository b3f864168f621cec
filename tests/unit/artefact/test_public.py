from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.artefact.card import front_matter, license_sentence, readable_bytes
from koffkit.artefact.manifest import BaseModelEntry
from koffkit.artefact.public import Around, hub_revision, public_name, public_place, public_recipe

CACHE = Path("/home/me/.cache/huggingface/hub/models--owner--name/snapshots/abc123")


def base_entry(model: str, **more: object) -> BaseModelEntry:
    known = {"digest": "0" * 64, "architecture": "llama", "parameters": 10, "bytes": 40}
    return BaseModelEntry.model_validate({"model": model, **known, **more})


def test_a_commit_is_known_from_the_hubs_own_cache() -> None:
    assert hub_revision("owner/name", CACHE) == "abc123"
    assert hub_revision("owner/other", CACHE) is None
    assert hub_revision("owner/name", Path("/data/owner/name")) is None
    assert hub_revision("name", CACHE) is None


@pytest.mark.parametrize(
    ("model", "on_hub", "name"),
    [
        ("owner/name", True, "owner/name"),
        ("owner/name", False, "name"),
        ("/home/me/models/base", False, "base"),
        ("embedded:base", False, "embedded:base"),
    ],
)
def test_a_base_by_its_public_name(model: str, on_hub: bool, name: str) -> None:
    assert public_name(model, on_hub) == name


def test_a_recipe_without_places() -> None:
    recipe = {
        "base": {"model": "/home/me/base", "dtype": "float32"},
        "domains": {
            "a": {"text": ["/home/me/a/*.txt", "data/b.txt", "../c.txt"]},
            "b": {"jsonl": "~/d/", "field": "x"},
            "c": {"hub": "owner/data"},
        },
    }
    assert public_recipe(recipe, False) == {
        "base": {"model": "base", "dtype": "float32"},
        "domains": {
            "a": {"text": ["*.txt", "data/b.txt", "c.txt"]},
            "b": {"jsonl": "d", "field": "x"},
            "c": {"hub": "owner/data"},
        },
    }
    assert recipe["base"] == {"model": "/home/me/base", "dtype": "float32"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/home/me/project/data/*.txt", "../data/*.txt"),
        ("/home/me/project/out/base", "./base"),
        ("/home/me/shared/base/", "../../shared/base"),
        ("/home/you/base", "base"),
        ("/data/base", "base"),
        ("../models/base", "../../models/base"),
        ("./base.gguf", "../base.gguf"),
        ("file:///home/me/x.txt", "x.txt"),
        ("C:\\texts\\x.txt", "x.txt"),
        ("data/a.txt", "data/a.txt"),
        ("owner/name", "owner/name"),
    ],
)
def test_a_place_as_an_export_names_it(place: str, said: str) -> None:
    around = Around(Path("/home/me/project/out/trial"), Path("/home/me/project"))
    assert public_place(place, around) == said


def test_nothing_is_relative_to_the_root_of_a_disk() -> None:
    assert Around(Path("/out"), Path("/"))("/data/base") == "base"


def test_a_local_base_in_a_recipe_is_never_taken_for_one_on_the_hub() -> None:
    recipe = {"base": {"model": "models/base"}}
    around = Around(Path("/p/out"), Path("/p"))
    assert public_recipe(recipe, False, around) == {"base": {"model": "./models/base"}}
    assert public_recipe(recipe, True, around) == recipe


def test_a_header_names_the_base_only_if_it_is_on_the_hub() -> None:
    on_hub = base_entry("owner/name", revision="abc", license={"license": "other", "license_link": "LICENSE"})
    header = front_matter(on_hub, "transformers", ["koffkit"], derived=True)
    assert "base_model: owner/name\n" in header
    assert "license_link: https://huggingface.co/owner/name/blob/abc/LICENSE\n" in header
    local = front_matter(base_entry("owner/name"), "transformers", ["koffkit"], derived=True)
    assert "base_model" not in local
    assert "license" not in local


def test_the_license_in_a_sentence() -> None:
    assert license_sentence(base_entry("b")).endswith("its files do not name it.")
    assert license_sentence(base_entry("b", license={"license": "mit"})).endswith("applies: mit.")


def test_sizes_for_people() -> None:
    sizes = [readable_bytes(count) for count in (12, 3072, 6_744_832, 9e12)]
    assert sizes == ["12 bytes", "3.1 kB", "6.7 MB", "9,000.0 GB"]
