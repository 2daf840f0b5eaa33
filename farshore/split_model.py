"""``farshore.split``: run the middle blocks of a transformer on a server, in an ordinary PyTorch script."""

from __future__ import annotations

import atexit
import logging
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .core.devices import DeviceName, Precision
from .core.errors import ConfigError, FarshoreError, MissingExtraError
from .core.paths import node_home

if TYPE_CHECKING:
    from torch import nn

    from .client.interactive import InteractiveNode
    from .engines.split.attach import AttachedSegment

    Model = TypeVar("Model", bound=nn.Module)
else:
    Model = TypeVar("Model")

_log = logging.getLogger(__name__)


def split(
    model: Model,
    server: str,
    *,
    cut: tuple[str, str],
    rank: int | None = None,
    encoding: Literal["raw", "fp16", "int8", "int4"] = "raw",
    start: Literal["pca", "random"] = "pca",
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    optimizer_options: Mapping[str, Any] | None = None,
    skip_padding: bool | None = None,
    device: DeviceName = "auto",
    precision: Precision = "fp32",
    token: str | None = None,
    name: str | None = None,
    home: Path | str | None = None,
    seed: int | None = None,
    ca: Path | str | None = None,
    insecure: bool = False,
) -> Model:
    """Move the blocks after ``cut[0]``, up to and including ``cut[1]``, to a server.

    The model is changed in place and returned. ``forward``, ``backward`` and ``state_dict`` work as before, and so do
    ``train()``, ``eval()``, ``torch.no_grad()``, gradient accumulation, clipping and ``zero_grad()``. A step of an
    optimizer that holds ``model.parameters()`` also updates the server's half, with the optimizer's current learning
    rate. Token ids and labels never leave this process.

    Parameters
    ----------
    model : transformers model
        BERT, RoBERTa, DistilBERT or GPT-2, with any head, in float32.
    server : str
        ``host:port``.
    cut : (str, str)
        Names of two blocks, as in ``model.named_modules()``: the last one before the moved blocks, the last moved one.
    rank : int, optional
        Numbers per token that cross each boundary, by a trainable linear codec. None sends full hidden states, and
        results equal those of the whole model.
    encoding : {"raw", "fp16", "int8", "int4"}
        Encoding of these numbers, in both directions; ``raw`` is float32.
    start : {"pca", "random"}
        Initialization of the codec: principal directions of the first batch, or random orthonormal directions.
    optimizer : {"adamw", "adam", "sgd"}
        Optimizer of the server's half.
    optimizer_options : mapping, optional
        ``weight_decay``, ``betas``, ``eps``, ``momentum``; torch's defaults for what is left out.
    skip_padding : bool, optional
        Do not send padding; its hidden states are zeros after the cut. Default: True, except with ``rank=None`` and
        ``encoding="raw"``.
    device : {"auto", "cpu", "cuda", "mps"}
        Device of the server's half; ``auto`` is its accelerator, if it has one.
    precision : {"fp32", "bf16", "fp16"}
        Precision in which the server's half computes, under autocast; its weights and all messages are float32. Use
        ``torch.amp.GradScaler`` with ``fp16``.
    token : str, optional
        Join token; default ``$FARSHORE_TOKEN``. Needed once: the node's home directory keeps the key.
    name, home : str, Path, optional
        Name and home directory of this node; default ``HOST-split`` and ``~/.farshore/nodes/NAME``.
    seed : int, optional
        Root of the seed tree, for dropout and rounding; drawn by the server by default.
    ca : Path, optional
        CA certificate (PEM) to trust instead of the token's fingerprint.
    insecure : bool
        Connect without TLS; loopback only.

    Returns
    -------
    nn.Module
        ``model``, with a :class:`SplitConnection` as its attribute ``farshore``.

    Raises
    ------
    ConfigError
        A name in ``cut`` is not a block (the nearest one is suggested), or a setting or the model is not supported.
    RefusedError, UnreachableError, VersionError
        The server refused this node or could not be reached.
    """
    try:
        from .engines.split import attach as at
    except ModuleNotFoundError as error:
        if error.name in ("torch", "transformers"):
            raise MissingExtraError(error.name, "text") from error
        raise
    if hasattr(model, "farshore"):
        raise ConfigError("the model is already split", hint="call farshore.split once, on a whole model")
    block_range = at.BlockRange.find(model, cut)
    lossless = rank is None and encoding == "raw"
    settings = at.make_settings(
        recipe=at.recipe_of(model, block_range),
        rank=rank,
        encoding=encoding,
        ragged=not lossless if skip_padding is None else skip_padding,
        optimizer={"name": optimizer, **(optimizer_options or {})},
        device=device,
        precision=precision,
    )
    node = _node(server, token=token, name=name, home=home, ca=ca, insecure=insecure)
    try:
        session = node.open("split_segment", settings.model_dump_json(), seed)
        segment = at.attach(model, block_range, settings, session, start)
    except BaseException:
        node.close()
        raise
    model.farshore = SplitConnection(node, segment)  # type: ignore[assignment]
    return model


class SplitConnection:
    """Connection of a split model to its server; closed by :meth:`close`, a ``with`` block, or at interpreter exit."""

    def __init__(self, node: InteractiveNode, segment: AttachedSegment) -> None:
        self._node = node
        self._segment = segment
        self._pid = os.getpid()
        self._closed = False
        atexit.register(self._at_exit)

    @property
    def run(self) -> str:
        """Id of the run; ``farshore runs show RUN`` prints its traffic."""
        return self._segment.session.run.id

    @property
    def steps(self) -> int:
        """Number of optimizer steps taken on the server."""
        return self._segment.steps

    def close(self) -> None:
        """End the run; idempotent. The server discards its weights: call ``model.state_dict()`` before.

        Raises
        ------
        FarshoreError
            The connection to the server was lost.
        """
        if self._closed or os.getpid() != self._pid:  # not in a forked child, such as a data loader worker
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        try:
            self._segment.close()
        finally:
            self._node.close()

    def _at_exit(self) -> None:
        try:
            self.close()
        except FarshoreError as error:
            _log.warning("closing the split model failed: %s", error)

    def __enter__(self) -> SplitConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _node(
    server: str, *, token: str | None, name: str | None, home: Path | str | None, ca: Path | str | None, insecure: bool
) -> InteractiveNode:
    from .client.interactive import InteractiveNode
    from .client.options import AgentOptions

    name = name or f"{_host_name()}-split"
    options = AgentOptions(
        address=server,
        name=name,
        home=(Path(home) if home else node_home(name)).expanduser().resolve(),
        token=token or os.environ.get("FARSHORE_TOKEN") or None,
        insecure=insecure,
        ca=Path(ca) if ca else None,
    )
    return InteractiveNode(options)


def _host_name() -> str:
    short = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", short)[:56].lstrip("._-") or "node"
