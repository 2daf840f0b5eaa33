"""``farshore.split``: leave the middle of a model to the cloud, in an ordinary PyTorch script."""

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
    """Move the blocks after ``cut[0]``, up to and including ``cut[1]``, to a server; the rest of the script stays.

    The model is changed in place and returned. Its ``forward``, ``backward`` and ``state_dict`` work as before, and so
    do ``train()``, ``eval()``, ``torch.no_grad()``, gradient accumulation, clipping and ``zero_grad()``. A step of an
    optimizer that holds ``model.parameters()`` is taken in the cloud too, with the learning rate of that moment. Token
    ids and labels never leave this process.

    Parameters
    ----------
    model : transformers model
        BERT, RoBERTa, DistilBERT or GPT-2, with any head, in float32.
    server : str
        ``host:port``.
    cut : (str, str)
        Names of two blocks, as in ``model.named_modules()``: the last that stays in front, and the last that goes.
    rank : int, optional
        Numbers per token that cross each border: a trainable linear code. None: all of them, and results equal those of
        the whole model.
    encoding : {"raw", "fp16", "int8", "int4"}
        How these numbers are written, both ways; ``raw`` is float32.
    start : {"pca", "random"}
        Where the codes start: at the principal directions of the first batch, or at random ones.
    optimizer : {"adamw", "adam", "sgd"}
        Of the half in the cloud.
    optimizer_options : mapping, optional
        ``weight_decay``, ``betas``, ``eps``, ``momentum``; torch's own defaults for what is left out.
    skip_padding : bool, optional
        Whether padding stays here; its hidden states are then zeros behind the cut. By default it does, unless
        everything travels unchanged (``rank=None, encoding="raw"``).
    device : {"auto", "cpu", "cuda"}
        Where the server computes.
    token : str, optional
        Join token; else ``$FARSHORE_TOKEN``. Needed the first time only, the node's home keeps the key.
    name, home : str, Path, optional
        Of this node; ``HOST-split`` and ``~/.farshore/nodes/NAME`` by default.
    seed : int, optional
        Root of the seed tree, for dropout and rounding; the server draws one where it is left out.
    ca : Path, optional
        Own authority (PEM) to trust instead of the token's fingerprint.
    insecure : bool
        No TLS; loopback only.

    Returns
    -------
    nn.Module
        ``model``; its attribute ``farshore`` is a :class:`SplitConnection`.

    Raises
    ------
    ConfigError
        A name in ``cut`` is no block (the nearest is suggested), or a setting or the model does not fit.
    RefusedError, UnreachableError, VersionError
        The server does not take this node.
    """
    try:
        from .engines.split import attach as at
    except ModuleNotFoundError as error:
        if error.name in ("torch", "transformers"):
            raise MissingExtraError(error.name, "text") from error
        raise
    if hasattr(model, "farshore"):
        raise ConfigError("the model is split already", hint="call farshore.split once, on a whole model")
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
        attachment = at.attach(model, place, settings, session, start)
    except BaseException:
        node.close()
        raise
    model.farshore = SplitConnection(node, attachment)  # type: ignore[assignment]
    return model


class SplitConnection:
    """A split model's way to the cloud; it is closed at the process's end, by :meth:`close`, or by a ``with`` block."""

    def __init__(self, node: InteractiveNode, attachment: AttachedSegment) -> None:
        self._node = node
        self._attachment = attachment
        self._process = os.getpid()
        self._closed = False
        atexit.register(self._at_exit)

    @property
    def run(self) -> str:
        """Id of the run: ``farshore runs show RUN`` has its bytes."""
        return self._attachment.session.run.id

    @property
    def steps(self) -> int:
        """Steps that the cloud has taken."""
        return self._attachment.steps

    def close(self) -> None:
        """End the run in good order; idempotent. Take ``model.state_dict()`` before: the weights over there go.

        Raises
        ------
        FarshoreError
            The server is gone already.
        """
        if self._closed or os.getpid() != self._process:  # a forked child, such as a data loader's worker
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        try:
            self._attachment.close()
        finally:
            self._node.close()

    def _at_exit(self) -> None:
        try:
            self.close()
        except FarshoreError as error:
            _log.warning("the split model could not be closed in good order: %s", error)

    def __enter__(self) -> SplitConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _node(
    server: str, *, token: str | None, name: str | None, home: Path | str | None, ca: Path | str | None, insecure: bool
) -> InteractiveNode:
    from .client.interactive import InteractiveNode
    from .client.options import AgentOptions

    called = name or f"{_host_name()}-split"
    options = AgentOptions(
        address=server,
        name=called,
        home=(Path(home) if home else node_home(called)).expanduser().resolve(),
        token=token or os.environ.get("FARSHORE_TOKEN") or None,
        insecure=insecure,
        ca=Path(ca) if ca else None,
    )
    return InteractiveNode(options)


def _host_name() -> str:
    short = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", short)[:56].lstrip("._-") or "node"
