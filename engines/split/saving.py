"""``save_pretrained`` of a split model: the whole model's weights, and a warning if they are not its whole function."""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from ...models.wrappers import first_tensor
from .remote import RemoteBlock, RemoteSegment

_log = logging.getLogger(__name__)


def add_saving(model: nn.Module, segment: RemoteSegment) -> None:
    """Make ``model.save_pretrained`` write a plain model.

    Without a codec it computes what was trained. A codec is left out, as plain models have none; the difference of the
    outputs on the last batch is computed and logged as a warning.
    """
    original = getattr(model, "save_pretrained", None)
    if original is None:
        return
    last = _LastBatch()
    if segment.codec is not None:
        model.register_forward_pre_hook(last, with_kwargs=True)

    @functools.wraps(original)
    def save_pretrained(*arguments: Any, **named: Any) -> Any:
        if named.get("state_dict") is None:
            named["state_dict"] = plain_state(model)
        if segment.codec is not None:
            _log.warning("%s", _difference(model, named["state_dict"], last))
        return original(*arguments, **named)

    model.save_pretrained = save_pretrained  # type: ignore[assignment]


class _LastBatch:
    """Keeps the arguments of the model's last forward pass."""

    def __init__(self) -> None:
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.arguments = arguments, named


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a split model without its codec: that of the plain model."""
    inside = {
        f"{path}.farshore."
        for path, module in model.named_modules()
        if isinstance(module, RemoteBlock) and module.farshore is not None
    }
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(tuple(inside))}


@torch.no_grad()
def _difference(model: nn.Module, state: dict[str, Tensor], last: _LastBatch) -> str:
    """Say by how much the outputs of the plain model differ from those of the split one."""
    start = "the codec at the cut is not part of the saved model"
    if last.arguments is None:
        return f"{start}: its outputs differ from those of the split model"
    kind: Any = type(model)
    plain = kind(copy.deepcopy(model.config))
    plain.load_state_dict(state)
    arguments, named = last.arguments
    training = model.training
    model.eval()
    try:
        expected, found = (first_output(each(*arguments, **named)) for each in (model, plain.eval()))
    finally:
        model.train(training)
    share = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    return f"{start}: on the last batch its outputs differ from the split model's by {100 * share:.1f} % (RMS)"


def first_output(output: Any) -> Tensor:
    """Return logits, or hidden states of a model without a head."""
    if hasattr(output, "last_hidden_state"):
        hidden: Tensor = output.last_hidden_state
        return hidden
    return first_tensor(output)
