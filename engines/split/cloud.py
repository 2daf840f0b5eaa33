"""Server program of a remote segment: answers the requests of one user process until it closes the run.

:mod:`.protocol` lists requests and replies.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import Tensor

from ...core.errors import ConfigError, RunFailedError, WireError
from ...core.message import Message
from ...core.session import ServerSession
from .config import SplitSegment
from .factors import pca_basis_of_rows, random_basis
from .placement import Placement
from .protocol import (
    REQUESTS,
    Backward,
    BlockWeights,
    Close,
    CodecWeights,
    Done,
    Forward,
    Gradients,
    LoadBlock,
    LoadCodec,
    Output,
    ReadBlock,
    ReadCodec,
    Request,
    StartCodec,
    Step,
)
from .received_codes import ReceivedCodes
from .remote_gradients import RemoteGradients
from .seeded_dropout import GlobalGeneratorDropout
from .segment import Segment
from .token_rows import TokenRows
from .turns import require_position
from .wire_codec import (
    activation_tensor,
    floats_of,
    gradient_tensor,
    read_floats,
    read_weights,
    shapes_of,
    weight_tensors,
)


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
        ((node, self.channel),) = session.channels.items()
        self.peer = f"node '{node}'"
        self.placement = Placement(config)
        self.segment = self.placement.place(Segment(config))
        if self.segment.codec is not None:
            seed = session.run.seed.child("codec")
            up, down = (random_basis(config.recipe.hidden, config.width, seed.child(n).value) for n in ("up", "down"))
            self.segment.codec.init_decoder(up.r, up.c)
            self.segment.codec.init_encoder(down)
        self.dropout = GlobalGeneratorDropout(session.run.seed.child("dropout", "segment"), self.placement.device)
        self.loaded: set[int] = set()
        self.gradients = RemoteGradients(self.segment, config.optimizer)
        #: Inputs and outputs of the forward passes that await their backward pass.
        self.graphs: dict[int, tuple[ReceivedCodes, Tensor]] = {}
        self.steps = self.micro = self.forwards = self.backwards = 0

    def serve(self) -> dict[str, Any]:
        """Answer requests until the node closes the run; return the run's result."""
        request: Request | None = None
        while not isinstance(request, Close):
            message = self.channel.receive()
            self.session.check_cancelled()
            request = REQUESTS.read(message, self.peer)
            micro = self.micro if isinstance(request, Forward) else message.micro
            require_position(message, self.peer, self.steps, micro)
            reply = self._answer(request, message)
            if reply is not None:
                self.channel.send(reply)
        parameters = sum(p.numel() for p in self.segment.parameters())
        return {
            "steps": self.steps,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "parameters": parameters,
        }

    def _answer(self, request: Request, message: Message) -> Message | None:
        match request:
            case Forward():
                return self._forward(request, message)
            case Backward():
                return self._backward(request, message)
            case Step():
                self._step(request)
                return None
            case LoadBlock(block):
                return self._load_block(block, message)
            case ReadBlock(block):
                return self._read_block(block)
            case StartCodec() | LoadCodec() | ReadCodec():
                return self._codec(request, message)
            case Close():
                return Done().message()
            case _:
                assert_never(request)

    # ---- weights -------------------------------------------------------------------------------------------------

    def _load_block(self, block: int, message: Message) -> Message:
        if block not in self.config.recipe.blocks:
            raise WireError(f"{self.peer}: the segment has no block {block}")
        module = self.segment.blocks[block]
        module.load_state_dict(read_weights(message, shapes_of(module.state_dict()), self.peer))
        self.loaded.add(block)
        return Done().message()

    def _read_block(self, block: int) -> Message:
        if block not in self.loaded:
            raise WireError(f"{self.peer}: requested the weights of block {block} without sending them first")
        state = self.segment.blocks[block].state_dict()
        return BlockWeights().message(step=self.steps, tensors=weight_tensors(state))

    def _codec(self, request: StartCodec | LoadCodec | ReadCodec, message: Message) -> Message:
        codec = self.segment.codec
        if codec is None:
            raise WireError(f"{self.peer}: sent a request about the codec, but the segment has no rank")
        match request:
            case StartCodec(tokens):
                return self._start_codec(tokens, message)
            case ReadCodec():
                return CodecWeights().message(tensors=weight_tensors(codec.state_dict()))
            case LoadCodec():
                codec.load_state_dict(read_weights(message, shapes_of(codec.state_dict()), self.peer))
                return Done().message()

    @torch.no_grad()
    def _start_codec(self, tokens: int, message: Message) -> Message:
        """Set the decoder to the node's, then set the encoder to the principal directions of the blocks' output."""
        self._require_loaded()
        codec = self.segment.codec
        assert codec is not None
        received = self._received(tokens, message)
        decode = codec.decode
        matrix = read_floats(message, "matrix", tuple(decode.weight.shape), self.peer)
        codec.init_decoder(matrix, read_floats(message, "offset", tuple(decode.bias.shape), self.peer))
        self.segment.eval()
        with self.placement.autocast():
            hidden = self.segment.hidden(codec.decode(received.padded()), received.mask)
        basis = pca_basis_of_rows(TokenRows(received.rows.mask, ragged=True).gather(hidden), self.config.width)
        codec.init_encoder(basis)
        return CodecWeights().message(tensors=weight_tensors({"matrix": basis.r, "offset": basis.c}))

    # ---- forward and backward ------------------------------------------------------------------------------------

    def _forward(self, request: Forward, message: Message) -> Message:
        self._require_loaded()
        for forward_id in request.free:
            self.graphs.pop(forward_id, None)
        received = self._received(request.tokens, message)
        if request.backward and len(self.graphs) >= self.config.graphs:
            raise RunFailedError(
                f"{len(self.graphs)} forward passes of {self.peer} await their backward pass",
                hint="do not keep losses of earlier batches, or use torch.no_grad()",
            )
        self.segment.train(request.train)
        received.codes.requires_grad_(request.backward)
        masks = self.dropout.masks(message.step, message.micro)
        with torch.set_grad_enabled(request.backward), masks, self.placement.autocast():
            out = received.rows.gather(self.segment(received.padded(), received.mask)).float()
        if request.backward:
            self.graphs[request.id] = received, out
        self.forwards += 1
        self.micro += 1
        tensors = {"codes": activation_tensor(floats_of(out), self.config.encoding)}
        return Output().message(step=message.step, micro=message.micro, tensors=tensors)

    def _backward(self, request: Backward, message: Message) -> Message:
        if request.id not in self.graphs:
            raise WireError(f"{self.peer}: requested a backward pass of forward {request.id}, which has no graph")
        received, out = self.graphs[request.id]
        gradient = read_floats(message, "codes", tuple(out.shape), self.peer).to(out.device)
        self.gradients.change(request.dropped, request.keep)
        inputs = [received.codes, *(self.gradients.parameters if request.accumulate else ())]
        code_gradient, *gradients = torch.autograd.grad(
            out, inputs, gradient, retain_graph=request.retain, allow_unused=True
        )
        self.gradients.accumulate(gradients)
        if not request.retain:
            del self.graphs[request.id]
        self.backwards += 1
        tensors = {}
        if request.want:
            seed = self.session.run.seed.child("gradient", "down", message.step, message.micro)
            groups = received.rows.per_sentence if self.config.ragged else None
            tensors["codes"] = gradient_tensor(floats_of(code_gradient), self.config.encoding, groups, seed)
        return Gradients(self.gradients.norm()).message(step=message.step, micro=message.micro, tensors=tensors)

    def _received(self, tokens: int, message: Message) -> ReceivedCodes:
        rows = TokenRows.of_message(message, tokens, self.config.ragged, self.peer)
        return ReceivedCodes.of(message, rows, self.config.width, self.placement.device, self.peer)

    def _require_loaded(self) -> None:
        if len(self.loaded) < len(self.config.recipe.blocks):
            raise WireError(f"{self.peer}: requested a forward pass before it sent the weights of all blocks")

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _step(self, request: Step) -> None:
        self.gradients.change(request.dropped, request.keep)
        norm = self.gradients.norm()
        self.gradients.step(request.learning_rate)
        self.steps += 1
        self.micro = 0
        self.session.metrics(self.steps, learning_rate=request.learning_rate, gradient_norm=norm)
        self.session.progress(self.steps, 0)
