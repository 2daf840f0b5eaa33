"""Model files of a run: the last state, and the one with the best score so far."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import NotFoundError, StorageError
from ...models.flat_params import FlatLayout
from ...runs.model_states import load_metadata, save_state
from .methods import FLOATS, INTEGERS
from .tree import NamedArrays

#: The score by which the best state is chosen.
SCORE = "acc"


class ModelCheckpoints:
    """``best.safetensors`` and ``last.safetensors`` in a folder, with the tensor names of the module's state dict.

    Parameters
    ----------
    folder : Path
    layout : FlatLayout
    """

    def __init__(self, folder: Path, layout: FlatLayout) -> None:
        self._folder, self._layout = folder, layout
        self._best: tuple[int, float, NamedArrays] | None = None
        self._best_score = -float("inf")
        # The best file of an interrupted run stays unless a later state scores higher.
        with suppress(NotFoundError, StorageError, KeyError, ValueError):
            self._best_score = float(load_metadata(folder / "best.safetensors")[SCORE])

    def update_best(self, round_index: int, entry: Mapping[str, Any], state: NamedArrays) -> None:
        """Remember the state of round ``round_index`` if its score is the best; states are never changed in place."""
        score = entry.get(SCORE)
        if isinstance(score, float) and score > self._best_score:
            self._best_score, self._best = score, (round_index, score, state)

    def write(self, round_index: int, entry: Mapping[str, Any], state: NamedArrays) -> None:
        """Write both files; ``state`` and ``entry`` are of the newest round, ``round_index``.

        Raises
        ------
        StorageError
            A file could not be written; the old files are unchanged.
        """
        if self._best is not None:
            self._save("best", *self._best)
            self._best = None
        self._save("last", round_index, entry.get(SCORE), state)

    def _save(self, which: str, round_index: int, score: float | None, state: NamedArrays) -> None:
        about = {"round": str(round_index), **({} if score is None else {SCORE: repr(score)})}
        save_state(self._folder / f"{which}.safetensors", named_tensors(self._layout, state), about)


def named_tensors(layout: FlatLayout, state: NamedArrays) -> dict[str, NDArray[np.generic]]:
    """Return a flat state as views with the module's tensor names and shapes."""
    pairs = ((layout.floats, state[FLOATS]), (layout.integers, state[INTEGERS]))
    named = {v.name: flat[v.start : v.start + v.count].reshape(v.shape) for views, flat in pairs for v in views}
    return named | {alias: named[name] for alias, name in layout.aliases}
