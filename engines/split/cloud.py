"""The server program: answers one user's process, message by message, until it closes.

=============  =======================================  =============================================
kind           what the node asks                       what comes back
=============  =======================================  =============================================
``weights``    take a block's weights                   ``control``
``codec``      start or load this side's codec          ``codec``: the code's other half, or its state
``activation`` go forward                               ``activation``
``gradient``   go backward                              ``gradient``, with the norm of all gradients
``control``    ``step``                                 nothing
``control``    ``state``, ``codec``, ``close``          ``weights``, ``codec``, ``control``
=============  =======================================  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, RunFailedError, WireError
from ...core.message import Message, Scalar
from ...core.message import Tensor as WireTensor
from ...core.session import ServerSession
from .codec import orthonormal, principal
from .config import OptimizerConfig, SplitSegment
from .rows import Rows, activation_tensor, gradient_rows
from .segment import Segment

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class SegmentServer:
    """The half in the cloud.

    Parameters
    ----------
    session : ServerSession
        With one node.
    config : SplitSegment

    Raises
    ------
    ConfigError
        The segment cannot be built here, or the run has more than one node.
    """

    def __init__(self, session: ServerSession, config: SplitSegment) -> None:
        if len(session.channels) != 1:
            raise ConfigError(f"a segment serves one node, not {len(session.channels)}", hint="use --nodes 1")
        self.session = session
        self.config = config
        (self.node, self.channel), *_ = session.channels.items()
        self.device = _device(config.device)
        self.segment = Segment(config).to(self.device)
        if self.segment.codec is not None:
            seed = session.run.seed.child("codec")
            up, down = (orthonormal(config.recipe.hidden, config.width, seed.child(n).value) for n in ("up", "down"))
            self.segment.codec.start_decoder(up.r, up.c)
            self.segment.codec.start_encoder(down)
        self.loaded: set[int] = set()
        self.trained = [p for p in self.segment.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.trained, config.optimizer)
        self.graphs: dict[int, tuple[Rows, Tensor, Tensor]] = {}
        self.steps = self.forwards = self.backwards = 0

    def serve(self) -> dict[str, Any]:
        """Answer until the node closes; returns the run's result."""
        answers = {
            "weights": self._take_weights,
            "codec": self._take_codec,
            "activation": self._forward,
            "gradient": self._backward,
            "control": self._control,
        }
        while True:
            message = self.channel.receive()
            self.session.check_cancelled()
            try:
                reply = answers[message.kind](message)
            except KeyError as error:
                raise WireError(f"node '{self.node}' sent a '{message.kind}' that lacks {error}") from error
            if reply is not None:
                self.channel.send(reply)
            if message.fields.get("what") == "close":
                break
        parameters = sum(p.numel() for p in self.segment.parameters())
        return {
            "steps": self.steps,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "parameters": parameters,
        }

    # ---- weights -------------------------------------------------------------------------------------------------

    def _take_weights(self, message: Message) -> Message:
        number = _integer(message, "block")
        self.segment.load_block(number, _tensors(message))
        self.loaded.add(number)
        return _done()

    def _give_weights(self, message: Message) -> Message:
        number = _integer(message, "block")
        if number not in self.loaded:
            raise WireError(f"node '{self.node}' asks for block {number}, which it never sent")
        state = self.segment.blocks[number].state_dict()
        return Message("weights", step=self.steps, tensors={n: WireTensor(t.cpu().numpy()) for n, t in state.items()})

    def _take_codec(self, message: Message) -> Message:
        codec = self.segment.codec
        if codec is None:
            raise WireError(f"node '{self.node}' sent a codec to a segment without one")
        if message.fields["what"] == "load":
            try:
                codec.load_state_dict(_tensors(message))
            except RuntimeError as error:
                raise ConfigError(f"the codec's weights do not fit: {str(error).splitlines()[-1].strip()}") from error
            return _done()
        return self._start_codec(message)

    @torch.no_grad()
    def _start_codec(self, message: Message) -> Message:
        """Rebuild as the node says, and find the principal directions of what then goes back."""
        codec = self.segment.codec
        assert codec is not None
        rows, codes = self._read(message)
        matrix, offset = _tensors(message, "matrix")["matrix"], _tensors(message, "offset")["offset"]
        if matrix.shape != codec.decode.weight.shape or offset.shape != codec.decode.bias.shape:
            raise WireError(f"a codec's start of shape {tuple(matrix.shape)}, {tuple(offset.shape)} does not fit")
        codec.start_decoder(matrix, offset)
        self.segment.eval()
        hidden = self.segment.hidden(codec.decode(rows.place(codes)), rows.mask.to(self.device))
        basis = principal(Rows(rows.mask, ragged=True).pick(hidden), self.config.width)
        codec.start_encoder(basis)
        tensors = {"matrix": basis.r.float(), "offset": basis.c.float()}
        return Message("codec", tensors={n: WireTensor(t.numpy()) for n, t in tensors.items()})

    # ---- forward and backward ------------------------------------------------------------------------------------

    def _forward(self, message: Message) -> Message:
        if len(self.loaded) < len(self.config.recipe.blocks):
            raise WireError(f"node '{self.node}' wants to go forward before it sent all weights")
        self._free(str(message.fields["free"]))
        rows, codes = self._read(message)
        wanted = bool(message.fields["backward"])
        if wanted and len(self.graphs) >= self.config.graphs:
            raise RunFailedError(
                f"{len(self.graphs)} forwards of node '{self.node}' wait for their backward",
                hint="do not keep losses of earlier batches, or use torch.no_grad()",
            )
        self.segment.train(bool(message.fields["train"]))
        codes.requires_grad_(wanted)
        with torch.set_grad_enabled(wanted), self._dropout(message):
            out = rows.pick(self.segment(rows.place(codes), rows.mask.to(self.device)))
        if wanted:
            self.graphs[_integer(message, "id")] = rows, codes, out
        self.forwards += 1
        tensors = {"codes": activation_tensor(out, self.config.encoding)}
        return Message("activation", step=message.step, micro=message.micro, tensors=tensors)

    def _backward(self, message: Message) -> Message:
        number = _integer(message, "id")
        if number not in self.graphs:
            raise WireError(f"node '{self.node}' goes backward through forward {number}, which is gone")
        rows, codes, out = self.graphs[number]
        self._keep(message)
        gradient = rows.read(message, "codes", self.config.width).to(self.device)
        retain = bool(message.fields["retain"])
        wanted = [codes, *(self.trained if message.fields["accumulate"] else ())]
        inner, *outer = torch.autograd.grad(out, wanted, gradient, retain_graph=retain, allow_unused=True)
        for parameter, more in zip(self.trained, outer, strict=False):
            if more is not None:
                parameter.grad = more if parameter.grad is None else parameter.grad.add_(more)
        if not retain:
            del self.graphs[number]
        self.backwards += 1
        tensors = {}
        if message.fields["want"]:
            seed = self.session.run.seed.child("gradient", "down", message.step, message.micro)
            tensors["codes"] = gradient_rows(inner, self.config.encoding, rows.groups, seed)
        fields: dict[str, Scalar] = {"norm": self._norm()}
        return Message("gradient", step=message.step, micro=message.micro, tensors=tensors, fields=fields)

    def _read(self, message: Message) -> tuple[Rows, Tensor]:
        rows = Rows.of(message, _integer(message, "tokens"), self.config.ragged)
        return rows, rows.read(message, "codes", self.config.width).to(self.device)

    @contextmanager
    def _dropout(self, message: Message) -> Iterator[None]:
        """Masks depend on the step and the micro-batch alone: the library draws from the global generator, which is
        seeded from the tree here and put back afterwards."""
        seed = self.session.run.seed.child("dropout", "segment", "step", message.step, "micro", message.micro)
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed.value)
            yield

    def _free(self, numbers: str) -> None:
        for number in numbers.split(",") if numbers else ():
            self.graphs.pop(int(number), None)

    # ---- gradients and steps -------------------------------------------------------------------------------------

    def _keep(self, message: Message) -> None:
        """Do to the gradients here what the user has done to those over there: drop, zero or scale them."""
        if message.fields["dropped"]:
            for parameter in self.trained:
                parameter.grad = None
            return
        keep = float(message.fields["keep"])
        if keep != 1.0:
            for parameter in self.trained:
                if parameter.grad is not None:
                    parameter.grad.mul_(keep)

    def _norm(self) -> float:
        gradients = [p.grad for p in self.trained if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _step(self, message: Message) -> None:
        self._keep(message)
        rate = float(message.fields["learning_rate"])
        if not math.isfinite(rate) or rate < 0:
            raise WireError(f"node '{self.node}' sent the learning rate {rate}")
        norm = self._norm()
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.steps += 1
        self.session.metrics(self.steps, learning_rate=rate, gradient_norm=norm)
        self.session.progress(self.steps, 0)

    def _control(self, message: Message) -> Message | None:
        match message.fields["what"]:
            case "step":
                self._step(message)
                return None
            case "state":
                return self._give_weights(message)
            case "codec" if self.segment.codec is not None:
                state = self.segment.codec.state_dict()
                return Message("codec", tensors={n: WireTensor(t.cpu().numpy()) for n, t in state.items()})
            case "close":
                return _done()
        raise WireError(f"node '{self.node}' asks for {message.fields['what']!r}, which nobody knows")


def make_optimizer(parameters: list[torch.nn.Parameter], settings: OptimizerConfig) -> torch.optim.Optimizer | None:
    """The optimizer that the user named, or None where nothing is trained."""
    if not parameters:
        return None
    options: dict[str, Any] = settings.options()
    return _OPTIMIZERS[settings.name]([{"params": parameters}], **{"lr": 1e-3, **options})


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("the server has no CUDA device", hint="use device='cpu'")
    return torch.device(wanted)


def _done() -> Message:
    return Message("control", fields={"what": "done"})


def _integer(message: Message, name: str) -> int:
    value = message.fields[name]
    if not isinstance(value, int):
        raise WireError(f"the field '{name}' of a '{message.kind}' is no integer")
    return value


def _tensors(message: Message, *names: str) -> dict[str, Tensor]:
    """The message's tensors (or the named ones) as float32 of their own."""
    found = {name: message.array(name) for name in names or message.tensors}
    wrong = [name for name, array in found.items() if array.dtype != np.float32]
    if wrong:
        raise WireError(f"'{wrong[0]}' of a '{message.kind}' is {found[wrong[0]].dtype}, not float32")
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
