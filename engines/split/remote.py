"""Modules that replace the moved blocks: forward, backward and state_dict go through the server."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...core.message import Message
from ...models.torch_internals import backward_keeps_graph, backward_will_run
from .codec import LinearCodec
from .config import SplitSegment
from .factors import pca_basis_of_rows, random_basis
from .masks import token_mask
from .protocol import (
    Backward,
    BlockWeights,
    CodecWeights,
    Done,
    Gradients,
    LoadBlock,
    LoadCodec,
    ReadBlock,
    ReadCodec,
    StartCodec,
)
from .proxy_parameter import ProxyParameter
from .remote_state import RemoteState
from .rpc import SERVER, SegmentClient
from .token_rows import TokenRows
from .wire_codec import (
    activation_tensor,
    floats_of,
    gradient_tensor,
    read_floats,
    read_weights,
    shapes_of,
    weight_tensors,
)


class _Graph:
    """Handle of the server's autograd graph of one forward pass; the graph is released when the handle is deleted."""

    def __init__(self, client: SegmentClient, forward_id: int) -> None:
        self.forward_id = forward_id
        self.finalizer = weakref.finalize(self, client.release, forward_id)
        self.finalizer.atexit = False


class _Forward(torch.autograd.Function):
    """Autograd function of the remote blocks: exchanges codes in forward and their gradients in backward."""

    @staticmethod
    def forward(ctx: Any, _proxy: Tensor, codes: Tensor, segment: RemoteSegment, rows: TokenRows) -> Tensor:
        forward_id, out = segment.exchange(codes, rows, backward=True)
        ctx.segment, ctx.rows, ctx.graph = segment, rows, _Graph(segment.client, forward_id)
        ctx.position = segment.client.step, segment.client.micro
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # torch.autograd.grad() with explicit inputs must not accumulate into the remote parameters.
        proxy_node = ctx.next_functions[0][0]
        accumulate = proxy_node is not None and backward_will_run(proxy_node)
        want = ctx.needs_input_grad[1]
        retain = backward_keeps_graph()
        difference, code_gradient = ctx.segment.exchange_gradients(ctx, gradients[0], accumulate, want, retain)
        if not retain:
            ctx.graph.finalizer.detach()
        return difference, code_gradient, None, None


class RemoteSegment(RemoteState):
    """All moved blocks as one module.

    Parameters
    ----------
    config : SplitSegment
    client : SegmentClient
    init_method : {"pca", "random"}
        Initialization of the codec.
    device : torch.device
        Device of the user's half.

    Attributes
    ----------
    proxy_parameter : nn.Parameter
        Represents the remote parameters; see :mod:`.proxy_parameter`.
    codec : LinearCodec or None
        Encoder of the first boundary and decoder of the second; None without a rank.
    """

    def __init__(self, config: SplitSegment, client: SegmentClient, *, init_method: str, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.client = client
        self.proxy_parameter = nn.Parameter(torch.zeros((), device=device))
        self.proxy = ProxyParameter(self.proxy_parameter)
        self.codec: LinearCodec | None = None
        self._seed = client.session.run.seed
        self._codec_pending = False
        if config.rank is not None:
            self.codec = LinearCodec(config.recipe.hidden, config.rank)
            seed = self._seed.child("codec")
            up, down = (random_basis(config.recipe.hidden, config.rank, seed.child(n).value) for n in ("up", "down"))
            self.codec.init_encoder(up)
            self.codec.init_decoder(down.r, down.c)
            self.codec.to(device)
            self._codec_pending = init_method == "pca"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map hidden states [B, T, d] to hidden states [B, T, d]; ``mask`` [B, T] int64 is 0 at padding."""
        rows = TokenRows(mask.cpu(), self.config.ragged)
        if self._codec_pending:
            self._initialize_codec(hidden, rows)
        codes = hidden if self.codec is None else cast(Tensor, self.codec.encode(hidden))
        sent = rows.gather(codes)
        if torch.is_grad_enabled() and (sent.requires_grad or self.proxy_parameter.requires_grad):
            out = cast(Tensor, _Forward.apply(self.proxy_parameter * 1.0, sent, self, rows))
        else:
            _, out = self.exchange(sent, rows, backward=False)
        out = rows.scatter(out)
        return out if self.codec is None else cast(Tensor, self.codec.decode(out))

    # ---- messages ------------------------------------------------------------------------------------------------

    def exchange(self, codes: Tensor, rows: TokenRows, *, backward: bool) -> tuple[int, Tensor]:
        """Run a remote forward pass on codes [M, w]; return its id and the codes [M, w] it returned."""
        tensors = {"codes": activation_tensor(floats_of(codes), self.config.encoding), **rows.mask_tensors()}
        tokens = rows.mask.shape[1]
        forward_id, reply = self.client.forward(train=self.training, backward=backward, tokens=tokens, tensors=tensors)
        return forward_id, self._read_codes(reply, rows).to(codes.device, codes.dtype)

    def exchange_gradients(
        self, ctx: Any, gradient: Tensor, accumulate: bool, want: bool, retain: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run a remote backward pass on ∂L/∂output [M, w].

        Returns
        -------
        difference, code_gradient
            What to add to the proxy's gradient, None unless ``accumulate``; and ∂L/∂input [M, w], None unless ``want``.
        """
        rows: TokenRows = ctx.rows
        forward_id: int = ctx.graph.forward_id
        seed = self._seed.child("gradient", "up", *ctx.position, forward_id)
        groups = rows.per_sentence if rows.ragged else None
        tensors = {"codes": gradient_tensor(floats_of(gradient), self.config.encoding, groups, seed)}
        request = Backward(*self.proxy.change(), forward_id, accumulate, want, retain)
        result, reply = self.client.request(request, Gradients, tensors)
        difference = self.proxy.difference(result.norm) if accumulate else None
        code_gradient = self._read_codes(reply, rows).to(gradient.device, gradient.dtype) if want else None
        return difference, code_gradient

    def commit(self, learning_rate: float) -> None:
        """Take the optimizer step on the server, with this learning rate."""
        self.client.commit(self.proxy.change(), learning_rate)

    def _read_codes(self, message: Message, rows: TokenRows) -> Tensor:
        return read_floats(message, "codes", (rows.count, self.config.width), SERVER)

    @torch.no_grad()
    def _initialize_codec(self, hidden: Tensor, rows: TokenRows) -> None:
        """Set the codecs of both boundaries to the principal directions of the first batch."""
        codec = self.codec
        assert codec is not None
        basis = pca_basis_of_rows(TokenRows(rows.mask, ragged=True).gather(hidden), codec.encode.out_features)
        codec.init_encoder(basis)
        codes = floats_of(rows.gather(codec.encode(hidden)))
        tensors = {
            "codes": activation_tensor(codes, self.config.encoding),
            **weight_tensors({"matrix": basis.r, "offset": basis.c}),
            **rows.mask_tensors(),
        }
        _, reply = self.client.request(StartCodec(rows.mask.shape[1]), CodecWeights, tensors)
        shapes = shapes_of({"matrix": codec.decode.weight, "offset": codec.decode.bias})
        codec.init_decoder(**read_weights(reply, shapes, SERVER))
        self._codec_pending = False

    # ---- state ---------------------------------------------------------------------------------------------------

    def remote_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The server's half of the codec, as ``far.*``."""
        return {} if self.codec is None else {f"far.{name}": p.shape for name, p in self.codec.named_parameters()}

    def read_remote(self) -> dict[str, Tensor]:
        """Return the weights of the server's half of the codec."""
        _, reply = self.client.request(ReadCodec(), CodecWeights)
        shapes = {name.removeprefix("far."): tuple(shape) for name, shape in self.remote_shapes().items()}
        return {f"far.{name}": tensor for name, tensor in read_weights(reply, shapes, SERVER).items()}

    def write_remote(self, tensors: Mapping[str, Tensor]) -> None:
        """Set them; the codec is then not initialized from the first batch."""
        weights = weight_tensors({name.removeprefix("far."): tensor for name, tensor in tensors.items()})
        self.client.request(LoadCodec(), Done, weights)
        self._codec_pending = False


class RemoteBlock(RemoteState):
    """Placeholder of one moved block, so that all blocks keep their names; the first one runs the remote segment.

    Parameters
    ----------
    index : int
        Index of the block in the model.
    block : nn.Module
        The block; its weights are sent to the server and no reference to it is kept.
    client : SegmentClient
    segment : RemoteSegment or None
        The remote segment if this is its first block; None passes hidden states through.
    """

    def __init__(self, index: int, block: nn.Module, client: SegmentClient, segment: RemoteSegment | None) -> None:
        super().__init__()
        self.index = index
        self.client = client
        self.farshore = segment
        self._shapes = shapes_of(block.state_dict())
        self.write_remote(block.state_dict())

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Same signature as the block's own ``forward``: hidden states [B, T, d], a mask among the arguments."""
        if self.farshore is None:
            return hidden
        return cast(Tensor, self.farshore(hidden, token_mask(hidden, arguments, named)))

    def remote_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The state of the block that moved."""
        return self._shapes

    def read_remote(self) -> dict[str, Tensor]:
        """Return the block's weights."""
        _, reply = self.client.request(ReadBlock(self.index), BlockWeights)
        return read_weights(reply, self._shapes, SERVER)

    def write_remote(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the block's weights."""
        self.client.request(LoadBlock(self.index), Done, weight_tensors(tensors))
