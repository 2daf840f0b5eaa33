"""The state of a rank's training as named arrays: for checkpoints, and for ranks that lack one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist

from ...core.errors import RunFailedError
from ...core.message import Array
from ...models.state_arrays import from_arrays, to_arrays
from .training import Training, collective_device

_SCALER, _SCORE, _TASK = "scaler", "score", "task."
#: Longest description of a state that another rank sends, in bytes.
_LONGEST_LAYOUT = 16 << 20
#: Largest state that another rank sends, besides a few copies of the model, in bytes.
_LARGEST_EXTRA = 1 << 30
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool")


def training_arrays(training: Training) -> dict[str, Array]:
    """Return a rank's state for a checkpoint."""
    arrays = shared_arrays(training)
    if training.preconditioner is not None:
        arrays.update(training.preconditioner.arrays())
    return arrays


def shared_arrays(training: Training) -> dict[str, Array]:
    """Return the part of the state that is the same on all ranks, but for buffers such as running statistics."""
    arrays = to_arrays(training.model, training.optimizer)
    if training.average is not None:
        arrays.update(training.average.arrays())
    if training.scaler.is_enabled():
        state = training.scaler.state_dict()
        arrays[_SCALER] = np.array([state["scale"], state["_growth_tracker"]], np.float64)
    if training.tracker is not None:
        arrays[_SCORE] = training.tracker.array()
    arrays.update({_TASK + name: np.asarray(array) for name, array in training.task.state().items()})
    return arrays


def load_training(training: Training, arrays: Mapping[str, Array], step: int) -> None:
    """Restore a checkpoint; without arrays only the preconditioner's step is set. A collective."""
    if arrays:
        load_shared(training, arrays)
    if training.preconditioner is not None:
        training.preconditioner.load(arrays, step)


def load_shared(training: Training, arrays: Mapping[str, Array]) -> None:
    """Restore what :func:`shared_arrays` returned; other keys are ignored."""
    from_arrays(arrays, training.model, training.optimizer)
    if training.average is not None:
        training.average.load(arrays)
    if training.scaler.is_enabled() and _SCALER in arrays:
        scale, growth = arrays[_SCALER].tolist()
        state = training.scaler.state_dict()
        training.scaler.load_state_dict({**state, "scale": scale, "_growth_tracker": int(growth)})
    if training.tracker is not None and _SCORE in arrays:
        training.tracker.load(arrays[_SCORE])
    own = {name.removeprefix(_TASK): array for name, array in arrays.items() if name.startswith(_TASK)}
    if own:
        training.task.load_state(own)


def broadcast_state(training: Training, source: int) -> None:
    """Give all ranks the shared state of rank ``source``, whatever it consists of; a collective.

    Raises
    ------
    RunFailedError
        The state that arrives does not fit this rank's model.
    """
    is_source = training.rank == source
    arrays = shared_arrays(training) if is_source else {}
    layout = _broadcast_layout(arrays, source, training) if is_source else _receive_layout(source, training)
    received = {}
    for name, dtype, shape in layout:
        array = np.require(arrays[name], requirements=["C", "W"]) if is_source else np.empty(shape, dtype)
        # As bytes: not every backend has every dtype. A scalar has no axis to view.
        flat = torch.from_numpy(array.reshape(-1).view(np.uint8)).to(collective_device())
        dist.broadcast(flat, source)
        received[name] = flat.cpu().numpy().view(dtype).reshape(shape)
    if not is_source:
        load_shared(training, received)


_Layout = list[tuple[str, str, list[int]]]


def _broadcast_layout(arrays: Mapping[str, Array], source: int, training: Training) -> _Layout:
    layout: _Layout = [(name, array.dtype.name, list(array.shape)) for name, array in arrays.items()]
    text = json.dumps(layout).encode()
    device = collective_device()
    dist.broadcast(torch.tensor([len(text)], device=device), source)
    dist.broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device), source)
    return layout


def _receive_layout(source: int, training: Training) -> _Layout:
    device = collective_device()
    length = torch.zeros(1, dtype=torch.int64, device=device)
    dist.broadcast(length, source)
    if not 0 < int(length) <= _LONGEST_LAYOUT:
        raise RunFailedError(
            f"rank {source} describes its state in {int(length)} bytes; the limit is {_LONGEST_LAYOUT}"
        )
    text = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(text, source)
    try:
        layout = [
            (str(name), str(dtype), [int(side) for side in shape])
            for name, dtype, shape in json.loads(text.cpu().numpy().tobytes())
        ]
    except (ValueError, TypeError) as error:
        raise RunFailedError(f"rank {source} describes its state in a form that is not valid") from error
    _check_layout(layout, source, training)
    return layout


def _check_layout(layout: _Layout, source: int, training: Training) -> None:
    """Check names, types and sizes before memory is allocated for the state."""
    total = 0
    for name, dtype, shape in layout:
        if dtype not in _DTYPES or any(side < 0 for side in shape):
            raise RunFailedError(f"rank {source} has a state '{name[:80]}' of type {dtype[:20]} and shape {shape[:8]}")
        total += math.prod(shape) * np.dtype(dtype).itemsize
    model = sum(tensor.nbytes for tensor in training.model.state_dict().values())
    # The model, its average and at most a few tensors of the optimizer per parameter.
    if total > 8 * model + _LARGEST_EXTRA:
        raise RunFailedError(f"rank {source} has a state of {total} bytes, for a model of {model} bytes")
