"""The modules that stand where the blocks were: to the model around them, and to autograd, nothing has changed."""

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
from .codec import LinearCodec, orthonormal, principal
from .config import SplitSegment
from .masks import token_mask
from .proxy_parameter import ProxyParameter
from .rows import Rows, activation_tensor, gradient_rows
from .rpc import SegmentClient


class _Graph:
    """The cloud's graph of one forward; when nothing refers to it any more, the cloud may forget it."""

    def __init__(self, conversation: SegmentClient, number: int) -> None:
        self.number = number
        self.release = weakref.finalize(self, conversation.freed, number)
        self.release.atexit = False


class _Forward(torch.autograd.Function):
    """Codes up, codes back; on the way back gradients up, gradients down."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, codes: Tensor, segment: RemoteSegment, rows: Rows) -> Tensor:
        number, out = segment.exchange(codes, rows, backward=True)
        ctx.segment, ctx.rows, ctx.graph = segment, rows, _Graph(segment.conversation, number)
        ctx.place = segment.conversation.step, segment.conversation.micro
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # torch.autograd.grad for some inputs only: the parameters in the cloud are none of them.
        anchor = ctx.next_functions[0][0]
        accumulate = anchor is not None and torch._C._will_engine_execute_node(anchor)
        want = ctx.needs_input_grad[1]
        retain = bool(torch._C._autograd._get_current_graph_task_keep_graph())
        difference, inner = ctx.segment.exchange_gradients(ctx, gradients[0], accumulate, want, retain)
        if not retain:
            ctx.graph.release.detach()
        return difference, inner, None, None


class RemoteSegment(nn.Module):
    """The blocks in the cloud as one module.

    Attributes
    ----------
    anchor : nn.Parameter
        Stands for the parameters in the cloud; see :mod:`.anchor`.
    codec : Codec or None
        This side's halves of the codes at the two borders.
    """

    def __init__(self, config: SplitSegment, conversation: SegmentClient, *, codec_start: str) -> None:
        super().__init__()
        self.config = config
        self.conversation = conversation
        self.anchor = nn.Parameter(torch.zeros(()))
        self.watch = ProxyParameter(self.anchor)
        self.codec: LinearCodec | None = None
        self._seed = conversation.session.run.seed
        self._unstarted = False
        if config.rank is not None:
            self.codec = LinearCodec(config.recipe.hidden, config.rank)
            seed = self._seed.child("codec")
            up, down = (orthonormal(config.recipe.hidden, config.rank, seed.child(n).value) for n in ("up", "down"))
            self.codec.start_encoder(up)
            self.codec.start_decoder(down.r, down.c)
            self._unstarted = codec_start == "pca"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [B, T, d] to hidden states [B, T, d]; ``mask`` [B, T] int64 is 0 at padding."""
        rows = Rows(mask.cpu(), self.config.ragged)
        if self._unstarted:
            self._start(hidden, rows)
        codes = hidden if self.codec is None else cast(Tensor, self.codec.encode(hidden))
        picked = rows.pick(codes)
        if torch.is_grad_enabled() and (picked.requires_grad or self.anchor.requires_grad):
            out = cast(Tensor, _Forward.apply(self.anchor * 1.0, picked, self, rows))
        else:
            _, out = self.exchange(picked, rows, backward=False)
        out = rows.place(out)
        return out if self.codec is None else cast(Tensor, self.codec.decode(out))

    # ---- messages ------------------------------------------------------------------------------------------------

    def exchange(self, codes: Tensor, rows: Rows, *, backward: bool) -> tuple[int, Tensor]:
        """Send codes [M, w] forward; returns the forward's number and the codes [M, w] that came back."""
        tensors = {"codes": activation_tensor(codes, self.config.encoding), **rows.describe()}
        fields: dict[str, Scalar] = {"train": self.training, "backward": backward, "tokens": rows.mask.shape[1]}
        number, answer = self.conversation.forward(fields, tensors)
        return number, rows.read(answer, "codes", self.config.width).to(codes.device, codes.dtype)

    def exchange_gradients(
        self, ctx: Any, gradient: Tensor, accumulate: bool, want: bool, retain: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Send ∂L/∂output [M, w]; returns what the anchor's gradient gains, and ∂L/∂input [M, w] if wanted."""
        rows: Rows = ctx.rows
        seed = self._seed.child("gradient", "up", *ctx.place, ctx.graph.number)
        tensors = {"codes": gradient_rows(gradient, self.config.encoding, rows.groups, seed)}
        fields: dict[str, Scalar] = {
            **self.watch.state(),
            "id": ctx.graph.number,
            "accumulate": accumulate,
            "want": want,
            "retain": retain,
        }
        answer = self.conversation.ask("gradient", fields, tensors)
        if answer.kind != "gradient":
            raise WireError(f"the cloud answered a gradient with a '{answer.kind}'")
        difference = self.watch.difference(float(answer.fields["norm"])) if accumulate else None
        inner = rows.read(answer, "codes", self.config.width) if want else None
        return difference, None if inner is None else inner.to(gradient.device, gradient.dtype)

    def commit(self, learning_rate: float) -> None:
        """Take the optimizer's step in the cloud too."""
        self.conversation.commit({**self.watch.state(), "learning_rate": learning_rate})

    @torch.no_grad()
    def _start(self, hidden: Tensor, rows: Rows) -> None:
        """Turn the codes into the principal directions of the first batch, at both borders."""
        codec = self.codec
        assert codec is not None
        basis = principal(Rows(rows.mask, ragged=True).pick(hidden), codec.encode.out_features)
        codec.start_encoder(basis)
        tensors = {
            "codes": activation_tensor(rows.pick(codec.encode(hidden)), self.config.encoding),
            "matrix": _sent(basis.r),
            "offset": _sent(basis.c),
            **rows.describe(),
        }
        answer = self.conversation.ask("codec", {"what": "start", "tokens": rows.mask.shape[1]}, tensors)
        received = _received(answer)
        codec.start_decoder(received["matrix"], received["offset"])
        self._unstarted = False

    # ---- state ---------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The anchor is no part of the model; the codec's far halves are."""
        if self.codec is not None:
            for name, tensor in _received(self.conversation.ask("control", {"what": "codec"})).items():
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
            found = _fitting(state_dict, shapes, missing_keys, error_msgs)
            if len(found) == len(shapes):
                tensors = {n.removeprefix(f"{prefix}far."): _sent(t) for n, t in found.items()}
                self.conversation.ask("codec", {"what": "load"}, tensors)
                self._unstarted = False
        if strict:
            own = {*known, *(f"{prefix}codec.{n}" for n in (self.codec.state_dict() if self.codec else ()))}
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in own]


class RemoteBlock(nn.Module):
    """Stands at one block's place, so that later blocks keep their names; the first of them does the work.

    Parameters
    ----------
    number : int
        Of the block in the model.
    block : nn.Module
        The block itself; its weights are sent, and it is not kept.
    conversation : Conversation
    segment : RemoteSegment or None
        What does the work; None: hidden states pass.
    """

    def __init__(
        self, number: int, block: nn.Module, conversation: SegmentClient, segment: RemoteSegment | None
    ) -> None:
        super().__init__()
        self.number = number
        self.conversation = conversation
        self.farshore = segment
        self._shapes = {name: tensor.shape for name, tensor in block.state_dict().items()}
        self._push(block.state_dict())

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """What the block's own ``forward`` takes and returns: hidden states [B, T, d], and a mask somewhere."""
        if self.farshore is None:
            return hidden
        return cast(Tensor, self.farshore(hidden, token_mask(hidden, arguments, named)))

    def _push(self, state: Mapping[str, Tensor]) -> None:
        self.conversation.ask("weights", {"block": self.number}, {n: _sent(t) for n, t in state.items()})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        answer = self.conversation.ask("control", {"what": "state", "block": self.number})
        state = _received(answer)
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
        found = _fitting(state_dict, shapes, missing_keys, error_msgs)
        if found and len(found) < len(shapes):  # only some are given: the others stay as they are
            kept = _received(self.conversation.ask("control", {"what": "state", "block": self.number}))
            found = {prefix + n: found.get(prefix + n, t) for n, t in kept.items()}
        if found:
            self._push({n.removeprefix(prefix): t for n, t in found.items()})
        if strict:
            inner = f"{prefix}farshore."
            unexpected_keys += [
                k
                for k in state_dict
                if k.startswith(prefix) and k not in shapes and not (self.farshore and k.startswith(inner))
            ]


def _fitting(
    state_dict: Mapping[str, Any],
    shapes: Mapping[str, torch.Size],
    missing: list[str],
    errors: list[str],
) -> dict[str, Tensor]:
    """The tensors of those names; what is missing or does not fit is said in torch's own words."""
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


def _sent(tensor: Tensor) -> WireTensor:
    return WireTensor(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))


def _received(message: Message) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(tensor.array)) for name, tensor in message.tensors.items()}
