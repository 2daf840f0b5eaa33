"""Encodes and decodes a round's states and updates, the same on every engine.

Encodings apply to float32 vectors with the layout of the model's parameters; integers and everything else are sent raw.
The state is sent as it is, encoded once for the whole cohort. Updates are sent as the *difference* to the received
state if an encoding is set, so that the error shrinks with the step; control variates are differences already. With
error feedback, a client adds the encoding error of earlier updates to the next one (Seide 2014; Karimireddy 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...core.errors import WireError
from ...core.message import Array, Encoding, Message, Tensor
from ...models.flat_params import FlatLayout, FlatModel
from ...wire.encodings import EncodeError, Prepared, prepare
from .client_state import ClientState
from .config import Downlink, Uplink
from .messages import Expected, UpdateError, arrays, check_tensors, model_message, read_update, update_message
from .methods import FLOATS, FederatedMethod, Update
from .tensor_partition import Cut, TensorSlice, cut_for
from .tree import NamedArrays


class UpdateCodec:
    """Encodes and decodes the messages of rounds; server and clients use equal ones.

    Parameters
    ----------
    uplink : Uplink, optional
        Encoding of updates.
    downlink : Downlink, optional
        Encoding of states.
    layout : FlatLayout, optional
        Of the model; required unless everything is raw.
    """

    def __init__(
        self, uplink: Uplink | None = None, downlink: Downlink | None = None, layout: FlatLayout | None = None
    ) -> None:
        self._up = cut_for(uplink) if uplink else None
        self._down = cut_for(Uplink(encoding=downlink.encoding)) if downlink else None
        self._feedback = uplink is not None and uplink.uses_error_feedback
        self._layout = layout
        if layout is None and (self._up or self._down):
            raise ValueError("encodings need the model's layout")

    def encode_state(self, round_index: int, state: NamedArrays) -> Message:
        """Encode the state for the cohort of round ``round_index``, once for all clients."""
        slices = [(p, array) for name, array in state.items() for p in self._slices(self._down, name, array)]
        return model_message(round_index, {p.name: _tensor(p, array) for p, array in slices})

    def received_state(self, message: Message, state: NamedArrays) -> NamedArrays:
        """Return ``state`` as clients decode it from a message of :meth:`encode_state`; the same arrays if raw."""
        if self._down is None:
            return state
        got = {name: _decoded(tensor) for name, tensor in message.tensors.items()}
        return self._assemble(self._down, got, state)

    def decode_state(self, message: Message, like: NamedArrays) -> NamedArrays:
        """Decode a received state; ``like`` has arrays of the expected names, shapes and dtypes.

        Raises
        ------
        WireError
            The state does not match ``like``.
        """
        got = arrays(message)
        try:
            check_tensors(got, self._expected(self._down, like))
        except UpdateError as error:
            raise WireError(f"the server's state does not match this method and model: {error}") from None
        return self._assemble(self._down, got, like)

    def client_state_sizes(self, method: FederatedMethod, flat: FlatModel) -> dict[str, int]:
        """Return names and lengths of the float32 tensors a client keeps: the method's and the encoding errors."""
        kept = method.client_state_sizes(flat)
        if self._feedback:
            reply = method.reply(method.sent(method.start(flat)))
            kept |= {_lost(name): array.size for name, array in reply.items() if self._encoded(self._up, array)}
        return kept

    def encode_update(
        self, round_index: int, update: Update, received: NamedArrays, client_state: ClientState
    ) -> Message:
        """Encode a client's update; the encoding error is stored in ``client_state``.

        An array that its encoding cannot represent, because training diverged, is sent raw; the server rejects it if
        it is not finite.
        """
        tensors: dict[str, Tensor] = {}
        for name, array in update.tensors.items():
            if self._encoded(self._up, array):
                slices = self._slices(self._up, name, array)
                array = array - received[name] if name == FLOATS else array
                lost = client_state.setdefault(_lost(name), torch.zeros(array.size)) if self._feedback else None
                array = array if lost is None else array + lost.numpy()
                sent = {p.name: _tensor(p, array) for p in slices}
                if lost is not None:
                    _store_error(lost, array, slices, sent)
                tensors |= sent
            else:
                tensors[name] = Tensor(array)
        return update_message(round_index, update, tensors)

    def decode_update(self, message: Message, round_index: int, received: NamedArrays, expected: NamedArrays) -> Update:
        """Decode a client's update and check it against ``expected``, arrays of the method's names, shapes and dtypes.

        Values are not checked: they may be non-finite.

        Raises
        ------
        UpdateError
            The update is invalid.
        """
        update = read_update(message, round_index, self._expected(self._up, expected))
        update.tensors = self._assemble(self._up, update.tensors, expected)
        if FLOATS in expected and self._encoded(self._up, expected[FLOATS]):
            with np.errstate(over="ignore", invalid="ignore"):
                update.tensors[FLOATS] = received[FLOATS] + update.tensors[FLOATS]
        return update

    def _encoded(self, cut: Cut | None, array: Array) -> bool:
        if cut is None or self._layout is None or array.dtype != np.float32 or array.ndim != 1:
            return False
        return array.size in (self._layout.trainable, self._layout.total)

    def _slices(self, cut: Cut | None, name: str, array: Array) -> tuple[TensorSlice, ...]:
        if cut is None or self._layout is None or not self._encoded(cut, array):
            return (TensorSlice(name, (), array.shape),)
        return cut(name, array.size, self._layout)

    def _expected(self, cut: Cut | None, like: NamedArrays) -> Expected:
        if cut is None:
            return {name: (array.shape, array.dtype) for name, array in like.items()}
        return {p.name: (p.shape, array.dtype) for n, array in like.items() for p in self._slices(cut, n, array)}

    def _assemble(self, cut: Cut | None, got: Mapping[str, Array], like: NamedArrays) -> NamedArrays:
        """Return the arrays whose slices are ``got``; their names, shapes and dtypes were checked."""
        if cut is None:
            return dict(got)
        return {name: _join(self._slices(cut, name, array), got, array) for name, array in like.items()}


def _tensor(tensor_slice: TensorSlice, array: Array) -> Tensor:
    taken = tensor_slice.take(array)
    if tensor_slice.encoding is None:
        return Tensor(taken)
    try:
        return prepare(taken, tensor_slice.encoding)
    except EncodeError:
        return Tensor(taken)


def _decoded(tensor: Tensor) -> Array:
    encoding: Encoding | None = tensor.encoding
    return encoding.decode(tensor.array) if isinstance(encoding, Prepared) else tensor.array


def _join(slices: tuple[TensorSlice, ...], got: Mapping[str, Array], like: Array) -> Array:
    if len(slices) == 1 and not slices[0].channels_last:
        return got[slices[0].name]
    out = np.empty(like.shape, like.dtype)
    for tensor_slice in slices:
        tensor_slice.put(out, got[tensor_slice.name])
    return out


def _store_error(lost: torch.Tensor, array: Array, slices: tuple[TensorSlice, ...], sent: Mapping[str, Tensor]) -> None:
    """Store the encoding error; a non-finite one is discarded, since it would spoil all later updates."""
    received = _join(slices, {name: _decoded(tensor) for name, tensor in sent.items()}, array)
    with np.errstate(invalid="ignore"):
        error: Array = np.subtract(array, received)
    if np.isfinite(error).all():
        lost.copy_(torch.from_numpy(error))


def _lost(name: str) -> str:
    return f"{name}.lost"
