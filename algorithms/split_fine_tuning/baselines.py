"""What the same training would have put on the wire by other means: the denominators of every compression figure."""

from __future__ import annotations

from typing import Any

from ...core.message import Message

_SIDE = ("lengths", "labels")
#: What each length and each label costs a baseline: one 32-bit integer, however they are held in memory.
_SIDE_BYTES = 4


class Volume:
    """Counts, message by message, what vanilla split learning would have sent for the same tokens.

    Vanilla split learning sends ``hidden_width`` float32 numbers per token up and their gradients down, with the same
    padding, and the same lengths and labels (spec §8). Shipping the weights sends the whole model down to each edge and
    back once per epoch, as uncompressed FedAvg with one local epoch does.

    Parameters
    ----------
    hidden_width : int
        Width d of the model.
    """

    def __init__(self, hidden_width: int) -> None:
        self.hidden_width = hidden_width
        self.front_parameters = 0
        self.vanilla = 0
        self.vanilla_training = 0
        self.tokens = 0
        self.code_bytes = 0

    def count_step(self, tokens: int, code_bytes: int, message: Message, *, gradients: bool = True) -> None:
        """Count a micro-batch that went up and, with ``gradients``, came back.

        ``code_bytes`` is what the codes alone took. Where nothing comes down here, vanilla split learning of the same
        frozen front would send nothing down either.
        """
        self.tokens += tokens
        sent = (1 + gradients) * tokens * self.hidden_width * 4 + self._side(message)
        self.vanilla += sent
        self.vanilla_training += sent
        self.code_bytes += code_bytes

    def count_evaluation(self, tokens: int, message: Message) -> None:
        """Count a batch that only went up."""
        self.vanilla += tokens * self.hidden_width * 4 + self._side(message)

    @staticmethod
    def _side(message: Message) -> int:
        return sum(message.tensors[name].array.size * _SIDE_BYTES for name in _SIDE if name in message.tensors)

    def baselines(self, parameters: int, epochs: int, edges: int) -> dict[str, int]:
        """Payload bytes of each baseline, by the name that reports use."""
        return {
            "vanilla split learning": self.vanilla,
            "shipping the weights": 2 * 4 * parameters * epochs * edges,
        }

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        names = ("vanilla", "vanilla_training", "tokens", "code_bytes")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back what :meth:`as_dict` gave."""
        for name in self.as_dict():
            setattr(self, name, int(saved[name]))
