"""20,000 damaged inputs in every run of the suite; `make fuzz` tries more."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koffkit.data.chat import check_conversation
from koffkit.data.sources import documents, file_source
from koffkit.errors import KoffkitError
from koffkit.recipe.load import load_recipe

from .run import fuzz
from .targets import TARGETS

QUICK = settings(
    max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
INPUTS = 20_000
PARTS = 3
"""Test cases for each target, so that several workers share it."""
EACH = math.ceil(INPUTS / PARTS / len(TARGETS))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_ends_in_a_result_or_an_error_of_ours(name: str, part: int, tmp_path: Path) -> None:
    report = fuzz([name], EACH, 1, tmp_path, first=part * EACH)
    assert report.foreign == []
    assert report.inputs == EACH
    assert report.refused > 0
    assert report.slowest[0] < 2
    assert report.largest[0] < 256e6


@QUICK
@given(field=st.sampled_from(["mask", "memory", "stages", "domains", "name", "train", "export"]), value=VALUE)
def test_any_value_in_a_recipe(field: str, value: Any) -> None:
    with suppress(KoffkitError):
        load_recipe("quickstart", [f"{field}={json.dumps(value)}"])


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes_as_text_and_records(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.jsonl.zst"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        with suppress(KoffkitError):
            list(documents(file_source(str(path)), path.parent, "domains.x"))


@QUICK
@given(
    messages=st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), VALUE)), tools=VALUE
)
def test_any_conversation(messages: list[Any], tools: Any) -> None:
    with suppress(KoffkitError):
        assert check_conversation(messages, tools, "here").messages
