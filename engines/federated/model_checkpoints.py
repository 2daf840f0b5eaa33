"""The states that a run leaves behind: the last one, and the one with the best score so far."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import NotFoundError, StorageError
from ...models.flat_params import FlatLayout
from ...runs.model_states import about_state, save_state
from .methods import FLOATS, INTEGERS
from .tree import Part

#: What the best state is best at.
SCORE = "acc"


class ModelCheckpoints:
    """``best.safetensors`` and ``last.safetensors`` of a folder, tensors by the names of the module's state.

    Parameters
    ----------
    folder : Path
    layout : Layout
    """

    def __init__(self, folder: Path, layout: FlatLayout) -> None:
        self._folder, self._layout = folder, layout
        self._best: tuple[int, float, Part] | None = None
        self._highest = -float("inf")
        # What an earlier attempt found counts: its file is better than whatever scores less.
        with suppress(NotFoundError, StorageError, KeyError, ValueError):
            self._highest = float(about_state(folder / "best.safetensors")[SCORE])

    def saw(self, round_index: int, entry: Mapping[str, Any], state: Part) -> None:
        """Keep the state of round ``round_index`` if its score is the best; states are never changed in place."""
        score = entry.get(SCORE)
        if isinstance(score, float) and score > self._highest:
            self._highest, self._best = score, (round_index, score, state)

    def write(self, round_index: int, entry: Mapping[str, Any], state: Part) -> None:
        """Bring both files up to date; ``state`` and ``entry`` are of round ``round_index``, the last so far.

        Raises
        ------
        StorageError
            The disk refuses; the old files are still there.
        """
        if self._best is not None:
            self._save("best", *self._best)
            self._best = None
        self._save("last", round_index, entry.get(SCORE), state)

    def _save(self, which: str, round_index: int, score: float | None, state: Part) -> None:
        about = {"round": str(round_index), **({} if score is None else {SCORE: repr(score)})}
        save_state(self._folder / f"{which}.safetensors", named(self._layout, state), about)


def named(layout: FlatLayout, state: Part) -> dict[str, NDArray[np.generic]]:
    """A flat state as tensors with a module's names and shapes; views of it."""
    pairs = ((layout.floats, state[FLOATS]), (layout.integers, state[INTEGERS]))
    return {v.name: flat[v.start : v.start + v.count].reshape(v.shape) for views, flat in pairs for v in views}
