"""Errors for users, each with its exit code and a remedy in its text."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence that suggests the most similar name; empty if none is similar."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.7)
    return f" Did you mean {near[0]}?" if near else ""


def near_name(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar one, then all."""
    listed = list(names)
    near = did_you_mean(name, listed).strip()
    there = f"here is {', '.join(listed) or 'none'}."
    return f"d{near[1:]} T{there}" if near else f"t{there}"


class KoffkitError(Exception):
    """Base of every error koffkit raises on purpose. The command line prints the text and exits with
    `exit_code`."""

    exit_code = 1


class UsageError(KoffkitError):
    """A command or recipe that cannot be carried out as written."""

    exit_code = 2


class DataError(KoffkitError):
    """A source of text that is missing, empty or unreadable."""

    exit_code = 3


class IntegrityError(KoffkitError):
    """A file, digest, shape or parity check that does not hold."""

    exit_code = 4


class ResourceError(KoffkitError):
    """Memory, disk or a device does not suffice for the command."""

    exit_code = 5


class PeerLost(ResourceError):
    """Another process of the same run has ended."""


class Interrupted(KoffkitError):
    """The user interrupted a run that can be resumed."""

    exit_code = 130
