"""YAML as recipes use it: plain mappings, lists, text, numbers and booleans, each with its line.

Recipes may come from strangers. Features of YAML that recipes do not need (tags, dates, numbers in other
bases, aliases that multiply) are refused, and so are files larger or deeper than any recipe.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError

Location = tuple[str | int, ...]
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_WHOLE = 2**63 - 1
_KIND = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_DECIMAL = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9_]*([eE][-+]?[0-9]+)?")
_WORDS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


class _Refused(Exception):
    """Content that recipes may not have, with its line."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class _Composer(yaml.SafeLoader):
    """Composes the nodes of a document, within the limits of depth and number."""

    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Refused(line, f"more than {MAX_NODES:,} values; a recipe has a few hundred")
        if self.depth >= MAX_DEPTH:
            raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


# YAML 1.1 alone does not read `1e-5` as a number.
_Composer.add_implicit_resolver(
    f"{_KIND}float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass
class _Values:
    """Plain values of nodes. An alias is a copy and counts as one, so that aliases cannot multiply."""

    lines: dict[Location, int] = field(default_factory=dict)
    twice: list[tuple[int, Location, int]] = field(default_factory=list)
    count: int = 0

    def of(self, node: yaml.Node, place: Location) -> Any:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MAX_NODES:
            raise _Refused(line, f"its aliases stand for more than {MAX_NODES:,} values")
        if len(place) >= MAX_DEPTH:
            raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels, or an alias inside itself")
        if isinstance(node, yaml.MappingNode):
            _require_tag(node, "map")
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            _require_tag(node, "seq")
            return [self._entry(value, (*place, index)) for index, value in enumerate(node.value)]
        return _scalar(node)

    def _entry(self, node: yaml.Node, place: Location) -> Any:
        self.lines[place] = node.start_mark.line + 1
        return self.of(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Location) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_KIND}merge":
                merged = self._merged(value, place) | merged
                continue
            name = _name(key)
            inner = (*place, name)
            if name in own:
                self.twice.append((line, inner, self.lines[inner]))
                continue
            self.lines[inner] = line
            own[name] = self.of(value, inner)
        return merged | own

    def _merged(self, node: yaml.Node, place: Location) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise _Refused(node.start_mark.line + 1, "`<<` needs a mapping, or a list of them")
            result = self.of(part, place) | result
        return result


def _name(key: yaml.Node) -> str:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        raise _Refused(line, "a list or mapping stands as a key; put quotes around braces: '{{ NAME }}'")
    if key.tag != f"{_KIND}str":
        kind = {"bool": "true or false", "null": "null"}.get(key.tag.removeprefix(_KIND), "no text")
        raise _Refused(
            line, f"{key.value[:40]}: as a key YAML reads this as {kind}; quote it: '{key.value[:40]}'"
        )
    return _text(key)


def _require_tag(node: yaml.Node, kind: str) -> None:
    if node.tag != f"{_KIND}{kind}":
        raise _Refused(node.start_mark.line + 1, f"tag {node.tag[:60]!r}: recipes have no tags; leave it out")


def _scalar(node: yaml.Node) -> Any:
    value, line, kind = str(node.value), node.start_mark.line + 1, node.tag.removeprefix(_KIND)
    shown = value if len(value) <= 40 else f"{value[:37]}..."
    if kind in ("str", "value"):
        return _text(node)
    if kind == "null" and value in ("", "~", "null", "Null", "NULL"):
        return None
    if kind == "bool" and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if kind == "int":
        if not _WHOLE.fullmatch(value):
            raise _Refused(line, f"{shown}: write whole numbers in plain decimals, or quote the text")
        if len(value) > 30 or abs(int(value)) > MAX_WHOLE:
            raise _Refused(line, f"{shown}: more than the largest whole number, {MAX_WHOLE}")
        return int(value)
    if kind == "float":
        if not _DECIMAL.fullmatch(value) or not any(digit.isdigit() for digit in value) or len(value) > 400:
            raise _Refused(line, f"{shown}: not a finite decimal number; write one, or quote the text")
        return float(value.replace("_", ""))
    if kind == "timestamp":
        raise _Refused(line, f"{shown}: YAML reads this as a date; quote it: '{shown}'")
    raise _Refused(line, f"tag {node.tag[:60]!r}: recipes have no tags; leave it out, or quote the text")


def _text(node: yaml.Node) -> str:
    value = str(node.value)
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _Refused(
            node.start_mark.line + 1, "text with a NUL or half a character (a lone surrogate); remove it"
        )
    return value


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    """Read the mapping in a file, and the line of every key and list entry.

    Raises:
        UsageError: it cannot be read, is too large, or holds what a recipe may not; with the line.
    """
    try:
        size = path.stat()
        if not stat.S_ISREG(size.st_mode):
            raise UsageError(f"{path}: not a file; name the recipe's .yaml file.")
        if size.st_size > MAX_BYTES:
            raise UsageError(
                f"{path}: {size.st_size:,} bytes; a recipe has at most {MAX_BYTES:,}. Is it data?"
            )
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None
    values = _Values()
    tree = _parsed(text, values, str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a recipe is a mapping that starts with `koffkit: 1`.")
    if values.twice:
        raise UsageError(
            "\n".join(
                f"{path}:{line}: {'.'.join(map(str, place))}: given twice (first on line {first})"
                for line, place, first in values.twice[:50]
            )
        )
    return tree, values.lines


def read_value(text: str, where: str) -> Any:
    """Read one value, as in `--set a.b=VALUE`.

    Raises:
        UsageError: it is not valid YAML.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where[:60]}: the value is longer than {MAX_BYTES:,} characters.")
    return _parsed(text, _Values(), where, numbered=False)


def _parsed(text: str, values: _Values, where: str, *, numbered: bool = True) -> Any:
    try:
        node = _Composer(text).get_single_node()
        return None if node is None else values.of(node, ())
    except _Refused as error:
        line = f":{error.line}" if numbered else ""
        raise UsageError(f"{where}{line}: {error}.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and numbered else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UsageError(f"{where}{line}: not valid YAML: {problem}.") from None
