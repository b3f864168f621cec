"""Tasks of lm-eval (extra `eval`) on an export or a plain model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError, did_you_mean
from ..progress import Progress, Silent

QUIETLY: dict[str, Any] = {"log_samples": False, "bootstrap_iters": 0}


def run_tasks(
    path: Path,
    tasks: Sequence[str],
    memory: str,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run tasks.

    Args:
        path: an export or a checkpoint folder.
        tasks: names of lm-eval's tasks, or of those in `folder`.
        memory: a domain, `none`, or `auto`: the router reads every context and picks.
        folder: YAML files of tasks. Only these are known then, and nothing is fetched.
        limit: the most questions of each task; None: all. few_shot: solved examples before each.
        device, dtype, batch_size: as for `KoffModel`.
        progress: told of prompts; by default nobody is.

    Returns:
        `results` (by task: metric -> value, each with `METRIC_stderr`, and `questions`), and `picked` (how
        often the router picked each memory; empty unless `memory` is `auto`).

    Raises:
        UsageError: lm-eval is not installed, or there is no such task, memory or router.
        DataError: a task's data cannot be read.
    """
    _require_harness(offline=folder is not None)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from .harness import HarnessModel

    known = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    _require_tasks(tasks, known, folder)
    model = HarnessModel(path, memory, device, dtype, batch_size, _telling(progress or Silent()))
    asked: dict[str, Any] = {"num_fewshot": few_shot, "limit": limit, **QUIETLY}
    try:
        found = simple_evaluate(model, tasks=list(tasks), task_manager=known, **asked)
    except (OSError, ValueError) as error:
        raise DataError(f"--task {','.join(tasks)}: {str(error).splitlines()[0]}") from None
    return {"results": {name: _figures(found, name) for name in found["results"]}, "picked": model.picked}


def _require_harness(*, offline: bool) -> None:
    """Refuse to go on without lm-eval, and keep it quiet.

    Raises:
        UsageError: it is not installed.
    """
    if offline:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")
    try:
        import lm_eval  # noqa: F401
        from datasets.utils.logging import disable_progress_bar
    except ImportError:
        raise UsageError("--task: lm-eval is not installed; pip install 'koffkit[eval]'.") from None
    disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _telling(progress: Progress) -> Callable[[int, int], None]:
    """Tell of prompts done; how many there are is known with the first ones, and changes between kinds."""
    known = 0

    def tell(done: int, total: int) -> None:
        nonlocal known
        if total != known:
            progress.start("tasks", total, 0)
            known = total
        progress.advance("tasks", done, {})

    return tell


def _require_tasks(tasks: Sequence[str], known: Any, folder: Path | None) -> None:
    """A typing error must not cost the seconds of loading."""
    for name in tasks:
        if name not in known.all_tasks:
            where = "in lm-eval" if folder is None else f"in {folder}"
            raise UsageError(f"--task {name}: no such task {where}.{did_you_mean(name, known.all_tasks)}")


def _figures(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Metrics without the name of the filter that lm-eval appends (`acc,none`)."""
    own = found["results"][name].items()
    figures = {key.partition(",")[0]: value for key, value in own if isinstance(value, float)}
    counted = found.get("n-samples", {}).get(name, {})
    return figures | ({"questions": counted["effective"]} if "effective" in counted else {})
