"""Entry point of the group `lmms_eval.models`: puts our tasks on lmms-eval's search path and registers `videosafety_r1`.

lmms-eval (0.7) has no entry point for tasks. It does load model entry points before it builds a TaskManager, and TaskManager takes
`include_path`; so we add our folder to that documented argument. This file is imported by every lmms-eval run, ours or not:
it imports nothing heavy and never raises. An lmms-eval it does not understand gets a warning that names the flag to use instead.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

TASKS = str(Path(__file__).parent)
MODEL_ID = "videosafety_r1"
MODEL_CLASS = "videosafety.lmms_eval_tasks.model.VideoSafetyR1"


def register() -> list[Any]:
    """What lmms-eval calls: hooks the task folder in and returns the model manifests (empty where lmms-eval has no manifests)."""
    _guarded(_add_tasks)
    manifests: list[Any] = []
    _guarded(lambda: manifests.append(_manifest()))
    return manifests


def _guarded(step: Callable[[], None]) -> None:
    # The one place of the project that catches everything: an exception here would take every other plugin's models away and end
    # runs that have nothing to do with us.
    try:
        step()
    except Exception as error:
        warnings.warn(
            f"videosafety could not hook into this lmms-eval ({error!r}); pass --include_path {TASKS} to use its tasks, "
            "and see `videosafety doctor`",
            stacklevel=2,
        )


def _manifest() -> Any:
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, chat_class_path=MODEL_CLASS)


def _add_tasks() -> None:
    module = sys.modules.get("lmms_eval.tasks")
    if module is not None and hasattr(module, "TaskManager"):
        add_include_path(module)
    else:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs `add_include_path` right after lmms_eval.tasks is executed, once. Importing it here would cost every command seconds."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != "lmms_eval.tasks":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _guarded(lambda: add_include_path(module))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def add_include_path(tasks_module: Any) -> None:
    """Wrap `TaskManager.__init__` so that `include_path` always has our folder too, after whatever the user gave.

    Raises:
        RuntimeError: when TaskManager does not take `include_path` any more.
    """
    manager = tasks_module.TaskManager
    init = manager.__init__
    if getattr(init, "adds_videosafety", False):
        return
    signature = inspect.signature(init)
    if "include_path" not in signature.parameters:
        raise RuntimeError("TaskManager takes no include_path")

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given = bound.arguments.get("include_path")
        paths = [given] if isinstance(given, (str, os.PathLike)) else list(given or [])
        paths = [str(path) for path in paths]
        bound.arguments["include_path"] = paths if TASKS in paths else [*paths, TASKS]
        init(*bound.args, **bound.kwargs)

    __init__.adds_videosafety = True  # type: ignore[attr-defined]
    manager.__init__ = __init__
