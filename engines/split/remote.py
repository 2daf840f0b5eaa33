"""Modules that replace the moved blocks: forward, backward and state_dict go through the server."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...core.errors import WireError
from ...core.message import Message, Scalar
from ...core.message import Tensor as WireTensor
from ...models.torch_internals import backward_keeps_graph, backward_will_run
from .codec import LinearCodec, orthonormal_basis, principal_basis
from .config import SplitSegment
from .masks import token_mask
from .proxy_parameter import ProxyParameter
from .rows import Rows, activation_tensor, gradient_rows
from .rpc import SegmentClient


class _Graph:
    """Handle of the server's autograd graph of one forward pass; the graph is released when the handle is deleted."""

    def __init__(self, client: SegmentClient, forward_id: int) -> None:
        self.forward_id = forward_id
        self.finalizer = weakref.finalize(self, client.release, forward_id)
        self.finalizer.atexit = False


class _Forward(torch.autograd.Function):
    """Autograd function of the remote blocks: exchanges codes in forward and their gradients in backward."""

    @staticmethod
    def forward(ctx: Any, _proxy: Tensor, codes: Tensor, segment: RemoteSegment, rows: Rows) -> Tensor:
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


class RemoteSegment(nn.Module):
    """All moved blocks as one module.

    Attributes
    ----------
    proxy_parameter : nn.Parameter
        Represents the remote parameters; see :mod:`.proxy_parameter`.
    codec : LinearCodec or None
        Encoder of the first boundary and decoder of the second; None without a rank.
    """

    def __init__(self, config: SplitSegment, client: SegmentClient, *, init_method: str) -> None:
        super().__init__()
        self.config = config
        self.client = client
        self.proxy_parameter = nn.Parameter(torch.zeros(()))
        self.proxy = ProxyParameter(self.proxy_parameter)
        self.codec: LinearCodec | None = None
        self._seed = client.session.run.seed
        self._codec_pending = False
        if config.rank is not None:
            self.codec = LinearCodec(config.recipe.hidden, config.rank)
            seed = self._seed.child("codec")
            up, down = (
                orthonormal_basis(config.recipe.hidden, config.rank, seed.child(n).value) for n in ("up", "down")
            )
            self.codec.init_encoder(up)
            self.codec.init_decoder(down.r, down.c)
            self._codec_pending = init_method == "pca"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map hidden states [B, T, d] to hidden states [B, T, d]; ``mask`` [B, T] int64 is 0 at padding."""
        rows = Rows(mask.cpu(), self.config.ragged)
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

    def exchange(self, codes: Tensor, rows: Rows, *, backward: bool) -> tuple[int, Tensor]:
        """Run a remote forward pass on codes [M, w]; return its id and the codes [M, w] it returned."""
        tensors = {"codes": activation_tensor(codes, self.config.encoding), **rows.mask_tensors()}
        fields: dict[str, Scalar] = {"train": self.training, "backward": backward, "tokens": rows.mask.shape[1]}
        forward_id, reply = self.client.forward(fields, tensors)
        return forward_id, rows.read(reply, "codes", self.config.width).to(codes.device, codes.dtype)

    def exchange_gradients(
        self, ctx: Any, gradient: Tensor, accumulate: bool, want: bool, retain: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run a remote backward pass on ∂L/∂output [M, w].

        Returns
        -------
        difference, code_gradient
            What to add to the proxy's gradient, None unless ``accumulate``; and ∂L/∂input [M, w], None unless ``want``.
        """
        rows: Rows = ctx.rows
        seed = self._seed.child("gradient", "up", *ctx.position, ctx.graph.forward_id)
        tensors = {"codes": gradient_rows(gradient, self.config.encoding, rows.groups, seed)}
        fields: dict[str, Scalar] = {
            **self.proxy.state(),
            "id": ctx.graph.forward_id,
            "accumulate": accumulate,
            "want": want,
            "retain": retain,
        }
        reply = self.client.request("gradient", fields, tensors)
        if reply.kind != "gradient":
            raise WireError(f"expected 'gradient' from the server, got '{reply.kind}'")
        difference = self.proxy.difference(float(reply.fields["norm"])) if accumulate else None
        code_gradient = rows.read(reply, "codes", self.config.width) if want else None
        return difference, None if code_gradient is None else code_gradient.to(gradient.device, gradient.dtype)

    def commit(self, learning_rate: float) -> None:
        """Take the optimizer step on the server, with this learning rate."""
        self.client.commit({**self.proxy.state(), "learning_rate": learning_rate})

    @torch.no_grad()
    def _initialize_codec(self, hidden: Tensor, rows: Rows) -> None:
        """Set the codecs of both boundaries to the principal directions of the first batch."""
        codec = self.codec
        assert codec is not None
        basis = principal_basis(Rows(rows.mask, ragged=True).gather(hidden), codec.encode.out_features)
        codec.init_encoder(basis)
        tensors = {
            "codes": activation_tensor(rows.gather(codec.encode(hidden)), self.config.encoding),
            "matrix": _to_wire(basis.r),
            "offset": _to_wire(basis.c),
            **rows.mask_tensors(),
        }
        reply = self.client.request("codec", {"what": "start", "tokens": rows.mask.shape[1]}, tensors)
        received = _from_wire(reply)
        codec.init_decoder(received["matrix"], received["offset"])
        self._codec_pending = False

    # ---- state ---------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the server's half of the codec as ``far.*``; leave out the proxy, which is not part of the model."""
        if self.codec is not None:
            for name, tensor in _from_wire(self.client.request("control", {"what": "codec"})).items():
                destination[f"{prefix}far.{name}"] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        known: set[str] = set()
        if self.codec is not None:
            shapes = {f"{prefix}far.{n}": p.shape for n, p in self.codec.named_parameters()}
            known = set(shapes)
            found = _matching_tensors(state_dict, shapes, missing_keys, error_msgs)
            if len(found) == len(shapes):
                tensors = {n.removeprefix(f"{prefix}far."): _to_wire(t) for n, t in found.items()}
                self.client.request("codec", {"what": "load"}, tensors)
                self._codec_pending = False
        if strict:
            own = {*known, *(f"{prefix}codec.{n}" for n in (self.codec.state_dict() if self.codec else ()))}
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in own]


class RemoteBlock(nn.Module):
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
        self._shapes = {name: tensor.shape for name, tensor in block.state_dict().items()}
        self._send_weights(block.state_dict())

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Same signature as the block's own ``forward``: hidden states [B, T, d], a mask among the arguments."""
        if self.farshore is None:
            return hidden
        return cast(Tensor, self.farshore(hidden, token_mask(hidden, arguments, named)))

    def _send_weights(self, state: Mapping[str, Tensor]) -> None:
        self.client.request("weights", {"block": self.index}, {n: _to_wire(t) for n, t in state.items()})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        state = _from_wire(self.client.request("control", {"what": "state", "block": self.index}))
        for name in self._shapes:
            destination[prefix + name] = state[name]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        shapes = {prefix + name: shape for name, shape in self._shapes.items()}
        found = _matching_tensors(state_dict, shapes, missing_keys, error_msgs)
        if found and len(found) < len(shapes):  # a partial state: keep the current values of the others
            current = _from_wire(self.client.request("control", {"what": "state", "block": self.index}))
            found = {prefix + n: found.get(prefix + n, t) for n, t in current.items()}
        if found:
            self._send_weights({n.removeprefix(prefix): t for n, t in found.items()})
        if strict:
            inner = f"{prefix}farshore."
            unexpected_keys += [
                k
                for k in state_dict
                if k.startswith(prefix) and k not in shapes and not (self.farshore and k.startswith(inner))
            ]


def _matching_tensors(
    state_dict: Mapping[str, Any],
    shapes: Mapping[str, torch.Size],
    missing: list[str],
    errors: list[str],
) -> dict[str, Tensor]:
    """Select the tensors of these names and shapes; report others as ``load_state_dict`` does."""
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in state_dict:
            missing.append(name)
        elif state_dict[name].shape != shape:
            errors.append(
                f"size mismatch for {name}: copying a param with shape {state_dict[name].shape} from checkpoint, "
                f"the shape in current model is {shape}."
            )
        else:
            found[name] = state_dict[name]
    return found


def _to_wire(tensor: Tensor) -> WireTensor:
    return WireTensor(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))


def _from_wire(message: Message) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(tensor.array)) for name, tensor in message.tensors.items()}
