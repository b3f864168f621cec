"""The memories of a `KoffModel`: known by name, loaded when a call needs them, under a limit of bytes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.check import require_sound_bundle
from ..artefact.names import MEMORY_FILE
from ..errors import IntegrityError, UsageError, did_you_mean
from ..model.flat_file import Identity
from ..model.resident import Resident

Stamp = frozenset[Identity]
"""Of the files of a bundle."""


class MemoryStore:
    """Memories by domain; several threads may use one.

    Args:
        load: reads a bundle whose files were checked.
        evicted: told of a memory that was let go of.
        budget: most bytes that the memories that no call is using may bring those loaded to; None: no limit.
        unused: told of a memory that was let go of to make room, and that no call uses: its room is free.
    """

    def __init__(
        self,
        load: Callable[[Bundle], Resident],
        evicted: Callable[[Resident], None],
        budget: int | None = None,
        unused: Callable[[Resident], None] = lambda memory: None,
    ) -> None:
        self._load, self._evicted, self.budget, self._unused = load, evicted, budget, unused
        self._bundles: dict[str, tuple[Bundle, Stamp]] = {}
        self._loaded: OrderedDict[str, Resident] = OrderedDict()
        self._users: Counter[Resident] = Counter()
        self._loading: set[str] = set()
        self._expected: Sequence[str] = ()
        self._changed = Condition()
        self._ahead: ThreadPoolExecutor | None = None

    @property
    def domains(self) -> list[str]:
        """Names of the memories, in the order they came."""
        return list(self._bundles)

    @property
    def bundles(self) -> list[Bundle]:
        """The memories, in the order they came."""
        with self._changed:
            return [bundle for bundle, _ in self._bundles.values()]

    @property
    def loaded(self) -> list[str]:
        """Names of those whose tensors are loaded, the least recently used first."""
        with self._changed:
            return list(self._loaded)

    @property
    def num_bytes(self) -> int:
        """What the loaded ones take."""
        with self._changed:
            return sum(memory.num_bytes for memory in self._loaded.values())

    def known(self, domain: str) -> str:
        """`domain`, if there is a memory of that name.

        Raises:
            UsageError: there is none.
        """
        if domain not in self._bundles:
            raise UsageError(
                f"memory {domain!r}: not loaded; there is {', '.join(self.domains) or 'none'}."
                f"{did_you_mean(domain, self.domains)}"
            )
        return domain

    def add(self, bundle: Bundle, *, replace: bool = False) -> None:
        """Take a memory whose files were checked just now. Without a budget it is loaded at once.

        Args:
            bundle: the memory.
            replace: take the place of the memory of that domain; calls that use it keep what they have.

        Raises:
            UsageError: there is one of that domain.
            IntegrityError: it does not fit the backbone.
        """
        domain, stamp = bundle.domain, _stamp(bundle)
        if domain in self._bundles and not replace:
            raise UsageError(f"{bundle.path}: a memory {domain!r} is loaded already.")
        memory = self._load(bundle) if self.budget is None else None
        with self._changed:
            self._let_go(domain)
            self._bundles[domain] = bundle, stamp
            if memory is not None:
                self._loaded[domain] = memory

    def remove(self, domain: str) -> None:
        """Forget a memory; calls that use it keep what they have.

        Raises:
            UsageError: there is none of that name.
        """
        with self._changed:
            del self._bundles[self.known(domain)]
            self._let_go(domain)

    def reload(self) -> None:
        """Let go of everything that is loaded; each is loaded again when a call needs it."""
        with self._changed:
            for domain in list(self._loaded):
                self._let_go(domain)

    @contextmanager
    def use(self, rows: Sequence[str | None]) -> Iterator[list[Resident | None]]:
        """The memory of each row, loaded, and kept until the block ends: then its tensors may become those of
        another one."""
        names = list(dict.fromkeys(name for name in rows if name is not None))
        taken: dict[str, Resident] = {}
        try:
            self.prefetch(*names[:0:-1])  # from the last one on; this thread begins with the first one
            for name in names:
                taken[name] = self._take(name, names)
            yield [None if name is None else taken[name] for name in rows]
        finally:
            self._release(taken.values())

    def prefetch(self, *domains: str) -> None:
        """Begin to load memories in the background, as far as they fit beside those that calls use; whoever
        needs them next waits less. Their faults show there.

        Without a budget nothing happens. Of two calls the later one counts: what the earlier one has not
        begun yet is left.

        Args:
            domains: what is needed next, the first one first.

        Raises:
            UsageError: there is none of that name.
        """
        names = [self.known(domain) for domain in dict.fromkeys(domains)]
        with self._changed:
            if self.budget is None or self._loaded.keys() >= set(names):
                return
            self._expected = names
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, thread_name_prefix="koffkit-prefetch")
        self._ahead.submit(self._fetch, names)

    def _fetch(self, names: Sequence[str]) -> None:
        """Load what is expected, until another call expects something else or there is no room."""
        for place, domain in enumerate(names):
            with self._changed:
                if domain in self._loaded or domain in self._loading or domain not in self._bundles:
                    continue
                if names is not self._expected or not self._has_room_for(domain, names[:place]):
                    return
            self._release([self._take(domain, names)])

    def _has_room_for(self, domain: str, beside: Collection[str]) -> bool:
        """Whether a memory fits in the budget beside those in use, those that are being read and these.

        What is not loaded counts as much as the largest that is loaded, or else as the files of this one.
        """
        sizes = {name: memory.num_bytes for name, memory in self._loaded.items()}
        kept = [size for name, size in sizes.items() if name in beside or self._users[self._loaded[name]]]
        files = self._bundles[domain][0].info.files.values()
        likely = max(sizes.values(), default=sum(file.size for file in files))
        return self.budget is None or sum(kept) + (1 + len(self._loading)) * likely <= self.budget

    def _release(self, memories: Iterable[Resident]) -> None:
        """A call uses these no longer."""
        with self._changed:
            self._users.subtract(memories)
            self._users += Counter()  # drops those at 0
            self._make_room(0, keep=())

    def _take(self, domain: str, keep: Collection[str]) -> Resident:
        """A memory, counted as in use."""
        with self._changed:
            while domain in self._loading:
                self._changed.wait()
            if domain in self._loaded:
                self._loaded.move_to_end(domain)
                self._users[self._loaded[domain]] += 1
                return self._loaded[domain]
            bundle, stamp = self._bundles[self.known(domain)]
            self._loading.add(domain)
        try:
            _require_unchanged(bundle, stamp)
            memory = self._load(bundle)
        except BaseException:
            with self._changed:
                self._loading.discard(domain)
                self._changed.notify_all()
            raise
        with self._changed:
            self._loading.discard(domain)
            self._make_room(memory.num_bytes, keep)
            self._users[memory] += 1
            if self._bundles.get(domain, (None,))[0] is bundle:  # not replaced meanwhile
                self._loaded[domain] = memory
            self._changed.notify_all()
            return memory

    def _make_room(self, num_bytes: int, keep: Collection[str]) -> None:
        """Let go of the least recently used ones until `num_bytes` more fit in the budget."""
        if self.budget is None:
            return
        total = num_bytes + sum(memory.num_bytes for memory in self._loaded.values())
        for name, memory in list(self._loaded.items()):
            if total <= self.budget:
                return
            if name not in keep and not self._users[memory]:
                total -= memory.num_bytes
                self._let_go(name)

    def _let_go(self, domain: str) -> None:
        memory = self._loaded.pop(domain, None)
        if memory is None:
            return
        self._evicted(memory)
        if self.budget is not None and not self._users[memory]:
            self._unused(memory)


def _stamp(bundle: Bundle) -> Stamp:
    places = [bundle.path / name for name in (*bundle.info.files, MEMORY_FILE)]
    return frozenset(Identity.of(place, place.stat()) for place in places if place.is_file())


def _require_unchanged(bundle: Bundle, stamp: Stamp) -> None:
    """Check the files again if any of them was touched since.

    Raises:
        IntegrityError: one has changed.
    """
    if _stamp(bundle) == stamp:
        return
    require_sound_bundle(bundle)
    if open_bundle(bundle.path).info != bundle.info:
        raise IntegrityError(
            f"{bundle.path / MEMORY_FILE}: another memory than the one that was loaded; load it with "
            "`load_memory(..., replace=True)`."
        )
