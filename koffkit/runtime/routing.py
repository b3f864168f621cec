"""The router of a `KoffModel`, with the columns of memories that were added later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..artefact.bundle import Bundle
from ..errors import UsageError
from ..router import Features, Router
from ..router.column import with_column


class MemoryRouter:
    """Chooses memories by text; without a router it says so.

    Args:
        path: of the backbone, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trained: tuple[Router, Path] | None = None
        self._extended: Router | None = None
        self._added: dict[str, Bundle] = {}

    @property
    def is_there(self) -> bool:
        """Whether there is a router."""
        return self._trained is not None

    def take(
        self,
        router: Router,
        folder: Path,
        num_layers: int,
        hidden: int,
        features: Callable[[int, int], Features],
    ) -> None:
        """Use a router.

        Args:
            router: the router of an export.
            folder: where it lies.
            num_layers: of the backbone.
            hidden: the backbone's hidden size.
            features: from a layer and a number of tokens to what a probe reads.

        Raises:
            IntegrityError: it reads hidden states of another backbone.
        """
        router.require_backbone(num_layers, hidden)
        router.read_backbone(features)
        self._trained = router, folder
        self._extend()

    def add(self, bundle: Bundle) -> None:
        """A memory has come, or takes the place of another one of its domain."""
        self._added[bundle.domain] = bundle
        self._extend()

    def remove(self, domain: str) -> None:
        """A memory has gone."""
        self._added.pop(domain, None)
        self._extend()

    def _extend(self) -> None:
        if self._trained is not None:
            router, folder = self._trained
            for bundle in self._added.values():
                router = with_column(router, bundle, folder)
            self._extended = router

    def route(self, prompts: Sequence[str], domains: Sequence[str]) -> list[tuple[str | None, float]]:
        """See `KoffModel.route`."""
        if self._extended is None:
            raise UsageError(
                f"{self._path}: there is no router (stage route was not in the recipe); name the memory: one "
                f"of {', '.join(domains) or 'none'}, or None."
            )
        return self._extended.route(prompts, allowed=list(domains))
