"""Traffic of the same training by other methods: the baselines of compression ratios."""

from __future__ import annotations

from typing import Any

from ...core.message import Message

_SIDE = ("lengths", "labels")
#: Bytes of a length or label in a baseline: a 32-bit integer, whatever its type in memory.
_SIDE_BYTES = 4


class BaselineTraffic:
    """Counts, message by message, the bytes that vanilla split learning would have sent for the same tokens.

    Vanilla split learning sends ``hidden_width`` float32 numbers per token up and their gradients down, with the same
    padding, lengths and labels. Shipping the weights sends the whole model to each edge and back once per epoch, as
    uncompressed FedAvg with one local epoch does. Formulas: ``docs/methods/split_fine_tuning.md``, section 11.

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
        """Count a micro-batch.

        Parameters
        ----------
        tokens : int
            Rows of codes, padding included if it was sent.
        code_bytes : int
            Bytes of the codes and gradients that were sent, without side data.
        message : Message
            The activation message; its lengths and labels are counted.
        gradients : bool
            Whether gradients are sent down. With a frozen front vanilla split learning sends none either.
        """
        self.tokens += tokens
        sent = (1 + gradients) * tokens * self.hidden_width * 4 + self._side(message)
        self.vanilla += sent
        self.vanilla_training += sent
        self.code_bytes += code_bytes

    def count_evaluation(self, tokens: int, message: Message) -> None:
        """Count an evaluation batch, which has no gradients."""
        self.vanilla += tokens * self.hidden_width * 4 + self._side(message)

    @staticmethod
    def _side(message: Message) -> int:
        return sum(message.tensors[name].array.size * _SIDE_BYTES for name in _SIDE if name in message.tensors)

    def baselines(self, parameters: int, epochs: int, edges: int) -> dict[str, int]:
        """Return the payload bytes of each baseline, by its name in reports."""
        return {
            "vanilla split learning": self.vanilla,
            "shipping the weights": 2 * 4 * parameters * epochs * edges,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as JSON-serializable values for a checkpoint."""
        names = ("vanilla", "vanilla_training", "tokens", "code_bytes")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore the counters from :meth:`as_dict`."""
        for name in self.as_dict():
            setattr(self, name, int(saved[name]))
