"""How a round's arrays cross the wire: the state on its way down, updates on their way up, the same on every engine.

Encodings act on the float32 vectors that lie like the model's parameters; integers and all else travel raw. What goes
down is the state itself, encoded once for the whole cohort. What comes up where something is lost is the *difference*
to the state that came down, so that the loss shrinks with the step; control variates are differences already. With
error feedback a client adds to each update what earlier ones lost (Seide 2014; Karimireddy 2019).
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
from .tree import Part


class UpdateCodec:
    """Writes and reads the messages of rounds; both ends have the same.

    Parameters
    ----------
    uplink : Uplink, optional
        How updates are encoded.
    downlink : Downlink, optional
        How states are.
    layout : Layout, optional
        Of the model; needed unless all is raw.
    """

    def __init__(
        self, uplink: Uplink | None = None, downlink: Downlink | None = None, layout: FlatLayout | None = None
    ) -> None:
        self._up = cut_for(uplink) if uplink else None
        self._down = cut_for(Uplink(encoding=downlink.encoding)) if downlink else None
        self._feedback = uplink is not None and uplink.feeds_back
        self._layout = layout
        if layout is None and (self._up or self._down):
            raise ValueError("encodings need the model's layout")

    def down(self, round_index: int, state: Part) -> Message:
        """The state for the cohort of round ``round_index``; it is encoded once, however often the message is sent."""
        pieces = [(p, array) for name, array in state.items() for p in self._pieces(self._down, name, array)]
        return model_message(round_index, {p.name: _tensor(p, array) for p, array in pieces})

    def seen(self, message: Message, state: Part) -> Part:
        """What clients get of ``state`` by a message of :meth:`down`; the same arrays where nothing is lost."""
        if self._down is None:
            return state
        got = {name: _decoded(tensor) for name, tensor in message.tensors.items()}
        return self._joined(self._down, got, state)

    def state(self, message: Message, like: Part) -> Part:
        """A state that arrived; ``like`` holds arrays of its names, shapes and types.

        Raises
        ------
        WireError
            It is no such state.
        """
        got = arrays(message)
        try:
            check_tensors(got, self._expected(self._down, like))
        except UpdateError as error:
            raise WireError(f"the server's state is not the one of this method and model: {error}") from None
        return self._joined(self._down, got, like)

    def remembers(self, method: FederatedMethod, flat: FlatModel) -> dict[str, int]:
        """Names and lengths of all float32 tensors that a client keeps: the method's, and what encodings lost."""
        kept = method.remembers(flat)
        if self._feedback:
            reply = method.reply(method.sent(method.start(flat)))
            kept |= {_lost(name): array.size for name, array in reply.items() if self._encoded(self._up, array)}
        return kept

    def up(self, round_index: int, update: Update, seen: Part, memory: ClientState) -> Message:
        """A client's update; ``memory`` is the client's, in which what is lost is kept.

        An array that cannot be written in its encoding, since training diverged, travels raw: if it is not finite,
        the server says so.
        """
        tensors: dict[str, Tensor] = {}
        for name, array in update.tensors.items():
            pieces = self._pieces(self._up, name, array)
            if self._encoded(self._up, array):
                array = array - seen[name] if name == FLOATS else array
                lost = memory.setdefault(_lost(name), torch.zeros(array.size)) if self._feedback else None
                array = array if lost is None else array + lost.numpy()
                sent = {p.name: _tensor(p, array) for p in pieces}
                if lost is not None:
                    _keep(lost, array, pieces, sent)
                tensors |= sent
            else:
                tensors[name] = Tensor(array)
        return update_message(round_index, update, tensors)

    def read(self, message: Message, round_index: int, seen: Part, expected: Part) -> Update:
        """Check a client's update against arrays like those its method sends, and make it whole; it may not be finite.

        Raises
        ------
        UpdateError
            It must not be added, and why.
        """
        update = read_update(message, round_index, self._expected(self._up, expected))
        update.tensors = self._joined(self._up, update.tensors, expected)
        if FLOATS in expected and self._encoded(self._up, expected[FLOATS]):
            with np.errstate(over="ignore", invalid="ignore"):
                update.tensors[FLOATS] = seen[FLOATS] + update.tensors[FLOATS]
        return update

    def _encoded(self, cut: Cut | None, array: Array) -> bool:
        if cut is None or self._layout is None or array.dtype != np.float32 or array.ndim != 1:
            return False
        return array.size in (self._layout.trainable, self._layout.total)

    def _pieces(self, cut: Cut | None, name: str, array: Array) -> tuple[TensorSlice, ...]:
        if cut is None or self._layout is None or not self._encoded(cut, array):
            return (TensorSlice(name, (), array.shape),)
        return cut(name, array.size, self._layout)

    def _expected(self, cut: Cut | None, like: Part) -> Expected:
        return {p.name: (p.shape, array.dtype) for n, array in like.items() for p in self._pieces(cut, n, array)}

    def _joined(self, cut: Cut | None, got: Mapping[str, Array], like: Part) -> Part:
        return {name: _join(self._pieces(cut, name, array), got, array) for name, array in like.items()}


def _tensor(piece: TensorSlice, array: Array) -> Tensor:
    taken = piece.take(array)
    if piece.encoding is None:
        return Tensor(taken)
    try:
        return prepare(taken, piece.encoding)
    except EncodeError:
        return Tensor(taken)


def _decoded(tensor: Tensor) -> Array:
    encoding: Encoding | None = tensor.encoding
    return encoding.decode(tensor.array) if isinstance(encoding, Prepared) else tensor.array


def _join(pieces: tuple[TensorSlice, ...], got: Mapping[str, Array], like: Array) -> Array:
    if len(pieces) == 1 and not pieces[0].channels_last:
        return got[pieces[0].name]
    out = np.empty(like.shape, like.dtype)
    for piece in pieces:
        piece.put(out, got[piece.name])
    return out


def _keep(lost: torch.Tensor, array: Array, pieces: tuple[TensorSlice, ...], sent: Mapping[str, Tensor]) -> None:
    """Remember what did not arrive; what is not finite would spoil every later update, and is forgotten."""
    arrived = _join(pieces, {name: _decoded(tensor) for name, tensor in sent.items()}, array)
    with np.errstate(invalid="ignore"):
        left: Array = np.subtract(array, arrived)
    if np.isfinite(left).all():
        lost.copy_(torch.from_numpy(left))


def _lost(name: str) -> str:
    return f"{name}.lost"
