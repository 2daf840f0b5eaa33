"""The inputs of a queue on a node: received once per machine, verified, and found by name."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ...core.errors import DataError
from ...core.message import Message
from ..assets.asset import Asset
from ..assets.cache import AssetCache
from ..assets.receiver import AssetReceiver


class NodeInputs:
    """Inputs of a node program.

    Parameters
    ----------
    cache : Path
        Folder of the machine's assets.
    folder : Path
        For links that have the names of the inputs; created when the first input is there.
    """

    def __init__(self, cache: Path, folder: Path) -> None:
        self._cache, self._folder = AssetCache(cache), folder
        self._receiver = AssetReceiver(self._cache, self._use)
        self._assets: dict[str, Asset] = {}
        self._open = ExitStack()

    def answer(self, message: Message) -> Message | None:
        """Handle an offer or a chunk; return the message to send. Errors as :meth:`.AssetReceiver.answer`."""
        return self._receiver.answer(message)

    def path(self, name: str) -> Path | None:
        """The file of an input; None if there is none of this name."""
        return self._folder / name if name in self._assets else None

    def digest(self, name: str) -> str:
        """SHA-256 of an input.

        Raises
        ------
        DataError
            The server has not offered it.
        """
        if name not in self._assets:
            raise DataError(f"the server did not send the input '{name}'")
        return self._assets[name].digest

    def close(self) -> None:
        """Close all files; other runs may evict them from now on."""
        self._receiver.close()
        self._open.close()

    def _use(self, asset: Asset) -> bool:
        file = self._cache.open(asset)
        if file is None:
            return False
        self._open.enter_context(file)  # an open file is not evicted
        # The link has the input's name for readers that look at the suffix; the name comes from the server's operator.
        if Path(asset.name).name != asset.name or asset.name in (".", ".."):
            raise DataError(f"the server's input '{asset.name}' has an invalid name")
        self._folder.mkdir(parents=True, exist_ok=True)
        link = self._folder / asset.name
        link.unlink(missing_ok=True)
        link.symlink_to(Path(file.name).resolve())
        self._assets[asset.name] = asset
        return True
