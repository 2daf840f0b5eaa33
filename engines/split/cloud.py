"""Server program of a remote segment: answers the requests of one user process until it closes the run.

=============  ==========================================  ===================================================
kind           request                                     reply
=============  ==========================================  ===================================================
``weights``    load the weights of a block                 ``control``
``codec``      ``start``: initialize the server's codec    ``codec``: reconstruction matrix and offset
``codec``      ``load``: load the server's codec           ``control``
``activation`` forward pass                                ``activation``
``gradient``   backward pass                               ``gradient``, with the norm of the server's gradients
``control``    ``step``: optimizer step                    none
``control``    ``state``, ``codec``, ``close``             ``weights``, ``codec``, ``control``
=============  ==========================================  ===================================================
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
from .codec import orthonormal_basis, principal_basis
from .config import OptimizerConfig, SplitSegment
from .rows import Rows, activation_tensor, gradient_rows
from .segment import Segment

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class SegmentServer:
    """Owns the remote blocks, their optimizer and the autograd graphs that await a backward pass.

    Parameters
    ----------
    session : ServerSession
        Must have exactly one node.
    config : SplitSegment

    Raises
    ------
    ConfigError
        The segment cannot be built on this server, or the run has more than one node.
    """

    def __init__(self, session: ServerSession, config: SplitSegment) -> None:
        if len(session.channels) != 1:
            raise ConfigError(f"a segment serves one node, got {len(session.channels)}", hint="use --nodes 1")
        self.session = session
        self.config = config
        (self.node, self.channel), *_ = session.channels.items()
        self.device = _device(config.device)
        self.segment = Segment(config).to(self.device)
        if self.segment.codec is not None:
            seed = session.run.seed.child("codec")
            up, down = (
                orthonormal_basis(config.recipe.hidden, config.width, seed.child(n).value) for n in ("up", "down")
            )
            self.segment.codec.init_decoder(up.r, up.c)
            self.segment.codec.init_encoder(down)
        self.loaded: set[int] = set()
        self.trainable = [p for p in self.segment.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.trainable, config.optimizer)
        self.graphs: dict[int, tuple[Rows, Tensor, Tensor]] = {}
        self.steps = self.forwards = self.backwards = 0

    def serve(self) -> dict[str, Any]:
        """Answer requests until the node closes the run; return the run's result."""
        handlers = {
            "weights": self._load_weights,
            "codec": self._handle_codec,
            "activation": self._forward,
            "gradient": self._backward,
            "control": self._control,
        }
        while True:
            message = self.channel.receive()
            self.session.check_cancelled()
            try:
                reply = handlers[message.kind](message)
            except KeyError as error:
                raise WireError(f"node '{self.node}' sent a '{message.kind}' message without {error}") from error
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

    def _load_weights(self, message: Message) -> Message:
        index = _integer(message, "block")
        self.segment.load_block(index, _tensors(message))
        self.loaded.add(index)
        return _acknowledgment()

    def _return_weights(self, message: Message) -> Message:
        index = _integer(message, "block")
        if index not in self.loaded:
            raise WireError(f"node '{self.node}' requested the weights of block {index} without sending them first")
        state = self.segment.blocks[index].state_dict()
        return Message("weights", step=self.steps, tensors={n: WireTensor(t.cpu().numpy()) for n, t in state.items()})

    def _handle_codec(self, message: Message) -> Message:
        codec = self.segment.codec
        if codec is None:
            raise WireError(f"node '{self.node}' sent a codec, but the segment has no rank")
        if message.fields["what"] == "load":
            try:
                codec.load_state_dict(_tensors(message))
            except RuntimeError as error:
                raise ConfigError(f"cannot load the codec's weights: {str(error).splitlines()[-1].strip()}") from error
            return _acknowledgment()
        return self._initialize_codec(message)

    @torch.no_grad()
    def _initialize_codec(self, message: Message) -> Message:
        """Set the decoder to the node's, then set the encoder to the principal directions of the blocks' output."""
        codec = self.segment.codec
        assert codec is not None
        rows, codes = self._read(message)
        matrix, offset = _tensors(message, "matrix")["matrix"], _tensors(message, "offset")["offset"]
        if matrix.shape != codec.decode.weight.shape or offset.shape != codec.decode.bias.shape:
            raise WireError(f"the codec has wrong shapes: matrix {tuple(matrix.shape)}, offset {tuple(offset.shape)}")
        codec.init_decoder(matrix, offset)
        self.segment.eval()
        hidden = self.segment.hidden(codec.decode(rows.scatter(codes)), rows.mask.to(self.device))
        basis = principal_basis(Rows(rows.mask, ragged=True).gather(hidden), self.config.width)
        codec.init_encoder(basis)
        tensors = {"matrix": basis.r.float(), "offset": basis.c.float()}
        return Message("codec", tensors={n: WireTensor(t.numpy()) for n, t in tensors.items()})

    # ---- forward and backward ------------------------------------------------------------------------------------

    def _forward(self, message: Message) -> Message:
        if len(self.loaded) < len(self.config.recipe.blocks):
            raise WireError(f"node '{self.node}' requested a forward pass before it sent the weights of all blocks")
        self._release_graphs(str(message.fields["free"]))
        rows, codes = self._read(message)
        backward = bool(message.fields["backward"])
        if backward and len(self.graphs) >= self.config.graphs:
            raise RunFailedError(
                f"{len(self.graphs)} forward passes of node '{self.node}' await their backward pass",
                hint="do not keep losses of earlier batches, or use torch.no_grad()",
            )
        self.segment.train(bool(message.fields["train"]))
        codes.requires_grad_(backward)
        with torch.set_grad_enabled(backward), self._dropout(message):
            out = rows.gather(self.segment(rows.scatter(codes), rows.mask.to(self.device)))
        if backward:
            self.graphs[_integer(message, "id")] = rows, codes, out
        self.forwards += 1
        tensors = {"codes": activation_tensor(out, self.config.encoding)}
        return Message("activation", step=message.step, micro=message.micro, tensors=tensors)

    def _backward(self, message: Message) -> Message:
        forward_id = _integer(message, "id")
        if forward_id not in self.graphs:
            raise WireError(f"node '{self.node}' requested a backward pass of forward {forward_id}, which was released")
        rows, codes, out = self.graphs[forward_id]
        self._apply_gradient_state(message)
        gradient = rows.read(message, "codes", self.config.width).to(self.device)
        retain = bool(message.fields["retain"])
        inputs = [codes, *(self.trainable if message.fields["accumulate"] else ())]
        code_gradient, *gradients = torch.autograd.grad(out, inputs, gradient, retain_graph=retain, allow_unused=True)
        for parameter, new in zip(self.trainable, gradients, strict=False):
            if new is not None:
                parameter.grad = new if parameter.grad is None else parameter.grad.add_(new)
        if not retain:
            del self.graphs[forward_id]
        self.backwards += 1
        tensors = {}
        if message.fields["want"]:
            seed = self.session.run.seed.child("gradient", "down", message.step, message.micro)
            tensors["codes"] = gradient_rows(code_gradient, self.config.encoding, rows.groups, seed)
        fields: dict[str, Scalar] = {"norm": self._norm()}
        return Message("gradient", step=message.step, micro=message.micro, tensors=tensors, fields=fields)

    def _read(self, message: Message) -> tuple[Rows, Tensor]:
        rows = Rows.of(message, _integer(message, "tokens"), self.config.ragged)
        return rows, rows.read(message, "codes", self.config.width).to(self.device)

    @contextmanager
    def _dropout(self, message: Message) -> Iterator[None]:
        """Seed torch's global generator from step and micro-batch for a forward pass; restore it afterwards.

        transformers draws dropout masks from the global generator: masks then depend on the step and nothing else.
        """
        seed = self.session.run.seed.child("dropout", "segment", "step", message.step, "micro", message.micro)
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed.value)
            yield

    def _release_graphs(self, forward_ids: str) -> None:
        for forward_id in forward_ids.split(",") if forward_ids else ():
            self.graphs.pop(int(forward_id), None)

    # ---- gradients and steps -------------------------------------------------------------------------------------

    def _apply_gradient_state(self, message: Message) -> None:
        """Drop or scale the server's gradients as the user's process dropped or scaled the proxy's gradient."""
        if message.fields["dropped"]:
            for parameter in self.trainable:
                parameter.grad = None
            return
        keep = float(message.fields["keep"])
        if keep != 1.0:
            for parameter in self.trainable:
                if parameter.grad is not None:
                    parameter.grad.mul_(keep)

    def _norm(self) -> float:
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _step(self, message: Message) -> None:
        self._apply_gradient_state(message)
        rate = float(message.fields["learning_rate"])
        if not math.isfinite(rate) or rate < 0:
            raise WireError(f"node '{self.node}' sent the invalid learning rate {rate}")
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
                return self._return_weights(message)
            case "codec" if self.segment.codec is not None:
                state = self.segment.codec.state_dict()
                return Message("codec", tensors={n: WireTensor(t.cpu().numpy()) for n, t in state.items()})
            case "close":
                return _acknowledgment()
        raise WireError(f"node '{self.node}' sent the unknown control request {message.fields['what']!r}")


def make_optimizer(parameters: list[torch.nn.Parameter], settings: OptimizerConfig) -> torch.optim.Optimizer | None:
    """Create the configured optimizer; None if no parameter is trainable."""
    if not parameters:
        return None
    options: dict[str, Any] = settings.options()
    return _OPTIMIZERS[settings.name]([{"params": parameters}], **{"lr": 1e-3, **options})


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("the server has no CUDA device", hint="use device='cpu'")
    return torch.device(name)


def _acknowledgment() -> Message:
    return Message("control", fields={"what": "done"})


def _integer(message: Message, name: str) -> int:
    value = message.fields[name]
    if not isinstance(value, int):
        raise WireError(f"field '{name}' of a '{message.kind}' message is {value!r}, expected an integer")
    return value


def _tensors(message: Message, *names: str) -> dict[str, Tensor]:
    """Copy a message's tensors (or the named ones), which must be float32."""
    arrays = {name: message.array(name) for name in names or message.tensors}
    wrong = [name for name, array in arrays.items() if array.dtype != np.float32]
    if wrong:
        raise WireError(f"'{wrong[0]}' of a '{message.kind}' message is {arrays[wrong[0]].dtype}, expected float32")
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
