"""``farshore.split``: run the middle blocks of a transformer on a server, from an ordinary PyTorch script."""

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
    device: Literal["auto", "cpu", "cuda"] = "auto",
    token: str | None = None,
    name: str | None = None,
    home: Path | str | None = None,
    seed: int | None = None,
    ca: Path | str | None = None,
    insecure: bool = False,
) -> Model:
    """Move the blocks after ``cut[0]``, up to and including ``cut[1]``, to a server.

    The model is modified in place and returned. Its ``forward``, ``backward`` and ``state_dict`` work as before, and so
    do ``train()``, ``eval()``, ``torch.no_grad()``, gradient accumulation, clipping and ``zero_grad()``. A step of an
    optimizer over ``model.parameters()`` is applied on the server too, with the current learning rate. Token ids and
    labels never leave this process.

    Parameters
    ----------
    model : transformers model
        BERT, RoBERTa, DistilBERT or GPT-2, with any head, in float32.
    server : str
        ``host:port``.
    cut : (str, str)
        Names of two blocks, as in ``model.named_modules()``: the last block that stays local in front of the cut, and
        the last block that moves to the server.
    rank : int, optional
        Values per token sent across each boundary, by a trainable linear code. None sends full hidden states, and
        results equal those of the unsplit model.
    encoding : {"raw", "fp16", "int8", "int4"}
        Encoding of these values in both directions; ``raw`` is float32.
    start : {"pca", "random"}
        Initialization of the codes: principal directions of the first batch, or random.
    optimizer : {"adamw", "adam", "sgd"}
        Optimizer of the blocks on the server.
    optimizer_options : mapping, optional
        ``weight_decay``, ``betas``, ``eps``, ``momentum``; defaults as in torch.
    skip_padding : bool, optional
        Whether to leave out padding tokens on the wire; their hidden states are zeros after the second cut. Default:
        True, except with ``rank=None, encoding="raw"``, where results equal those of the unsplit model.
    device : {"auto", "cpu", "cuda"}
        Device of the server.
    token : str, optional
        Join token; by default ``$FARSHORE_TOKEN``. Needed the first time only: the node's home stores its key.
    name, home : str, Path, optional
        Name and home of this node; ``HOST-split`` and ``~/.farshore/nodes/NAME`` by default.
    seed : int, optional
        Root of the seed tree, for dropout and rounding; drawn by the server if not given.
    ca : Path, optional
        Certificate authority (PEM) to trust instead of the token's fingerprint.
    insecure : bool
        No TLS; loopback only.

    Returns
    -------
    nn.Module
        ``model``; its attribute ``farshore`` is a :class:`SplitConnection`.

    Raises
    ------
    ConfigError
        A name in ``cut`` is not a block (the closest is suggested), or a setting or the model is unsupported.
    RefusedError, UnreachableError, VersionError
        The connection to the server fails.
    """
    try:
        from .engines.split import attach as at
    except ModuleNotFoundError as error:
        if error.name in ("torch", "transformers"):
            raise MissingExtraError(error.name, "text") from error
        raise
    if hasattr(model, "farshore"):
        raise ConfigError("the model is already split", hint="call farshore.split once, on an unsplit model")
    place = at.Place.find(model, cut)
    everything = rank is None and encoding == "raw"
    settings = at.settings(
        recipe=at.recipe_of(model, place),
        rank=rank,
        encoding=encoding,
        ragged=not everything if skip_padding is None else skip_padding,
        optimizer={"name": optimizer, **(optimizer_options or {})},
        device=device,
    )
    node = _node(server, token=token, name=name, home=home, ca=ca, insecure=insecure)
    try:
        session = node.open("split_segment", settings.model_dump_json(), seed)
        segment = at.attach(model, place, settings, session, start)
    except BaseException:
        node.close()
        raise
    model.farshore = SplitConnection(node, segment)  # type: ignore[assignment]
    return model


class SplitConnection:
    """A split model's connection to its server; closed by :meth:`close`, a ``with`` block, or at process exit."""

    def __init__(self, node: InteractiveNode, segment: AttachedSegment) -> None:
        self._node = node
        self._segment = segment
        self._process = os.getpid()
        self._closed = False
        atexit.register(self._at_exit)

    @property
    def run(self) -> str:
        """Id of the run, for ``farshore runs show RUN``."""
        return self._segment.session.run.id

    @property
    def steps(self) -> int:
        """Number of optimizer steps on the server."""
        return self._segment.steps

    def close(self) -> None:
        """End the run; idempotent. Call ``model.state_dict()`` before: the weights on the server are discarded.

        Raises
        ------
        FarshoreError
            The connection to the server is lost.
        """
        if self._closed or os.getpid() != self._process:  # a forked child, such as a data loader's worker
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

    node_name = name or f"{_host_name()}-split"
    options = AgentOptions(
        address=server,
        name=node_name,
        home=(Path(home) if home else node_home(node_name)).expanduser().resolve(),
        token=token or os.environ.get("FARSHORE_TOKEN") or None,
        insecure=insecure,
        ca=Path(ca) if ca else None,
    )
    return InteractiveNode(options)


def _host_name() -> str:
    short = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", short)[:56].lstrip("._-") or "node"
