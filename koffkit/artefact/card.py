"""What the model cards of an export share: the header that hubs read, and sizes for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from .manifest import BaseModelEntry

HUB = "https://huggingface.co"


def front_matter(base: BaseModelEntry, library: str, tags: Sequence[str], *, derived: bool) -> str:
    """The header of a card, with the license of the base.

    Args:
        library: that loads what the card describes.
        derived: name the base too, if it is on the hub; a memory is made for a backbone, not for its base.
    """
    header: dict[str, Any] = {"library_name": library, "tags": list(tags)}
    if library == "transformers":
        header["pipeline_tag"] = "text-generation"
    if derived and base.is_on_hub:
        header["base_model"] = base.model
    header |= _license(base)
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def license_sentence(base: BaseModelEntry) -> str:
    """Under which terms what was made of the base stands."""
    known = _license(base)
    if not known:
        return "The license of the base model applies; its files do not name it."
    name = known.get("license_name", known["license"])
    link = f" ({known['license_link']})" if "license_link" in known else ""
    return f"The license of the base model applies: {name}{link}."


def readable_bytes(count: float) -> str:
    """`6.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def _license(base: BaseModelEntry) -> dict[str, str]:
    known = dict(base.license or {})
    link = known.get("license_link")
    if link is not None and "://" not in link and base.is_on_hub:  # of a file in the repository of the base
        known["license_link"] = f"{HUB}/{base.model}/blob/{base.revision}/{link}"
    return known
