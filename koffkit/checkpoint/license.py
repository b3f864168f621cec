"""The license of a checkpoint, in the words of model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .files import CARD

LICENSE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
KEYS = ("license", "license_name", "license_link")
MOST = 1 << 20
"""Bytes of a card or license that are looked at."""
# How licenses begin, and what the hub calls them; the first that fits.
_BEGINNINGS = (
    (("apache license", "version 2.0"), "apache-2.0"),
    (("mit license",), "mit"),
    (("permission is hereby granted, free of charge",), "mit"),
    (("llama 3.3 community license",), "llama3.3"),
    (("llama 3.2 community license",), "llama3.2"),
    (("llama 3.1 community license",), "llama3.1"),
    (("meta llama 3 community license",), "llama3"),
    (("llama 2 community license",), "llama2"),
    (("gemma terms of use",), "gemma"),
)


def license_of(folder: Path) -> dict[str, str]:
    """`license` and, where it is none of the usual ones, `license_name` and `license_link`, as the header of
    a model card has them: from the card of the checkpoint, else from its LICENSE file. Empty where neither
    tells."""
    header = card_header(folder / CARD)
    stated = {key: header[key] for key in KEYS if _is_one_line(header.get(key))}
    if "license" in stated:
        return stated
    for path in license_files(folder):
        text = " ".join(_beginning(path).lower().split())[:4000]
        for words, name in _BEGINNINGS:
            if all(word in text for word in words):
                return {"license": name}
    return {}


def _is_one_line(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def license_files(folder: Path) -> list[Path]:
    """Files that state terms, in order of their names."""
    paths = {path for pattern in LICENSE_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in paths if path.stat().st_size <= MOST)


def card_header(path: Path) -> dict[str, Any]:
    """The YAML between the two lines of dashes that a model card begins with; empty where there is none that
    can be read."""
    lines = _beginning(path).splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    text = "\n".join(lines[1:end])
    if "&" in text and "*" in text:  # aliases can stand for more than memory holds; a card needs none
        return {}
    try:
        header = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def _beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return file.read(MOST).decode("utf-8", errors="replace")
