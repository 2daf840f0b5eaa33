"""Bounds on what arrived frames may decode to, from what the program expects and what the conversation has exchanged.

An encoded tensor can be much smaller than the array that it stands for: a rank-1 ``lowrank`` tensor of 131 kB can stand
for 2 GiB. A frame may therefore decode to at most the largest of

- ``FLOOR_BYTES``,
- ``RATIO`` times its payload, which covers every quantizer, and ``topk`` down to a fraction of 0.001,
- twice the largest payload that the two programs have exchanged, whose memory both ends had to have anyway: a model
  that was sent once may be answered by a low-rank update of the same size,

unless the program has declared what it expects, see :meth:`farshore.core.session.Channel.expect`. Arrays are decoded
when the program takes a message, one message at a time, so frames that wait hold only the bytes that arrived.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import WireError
from ..core.expectations import Expected
from .dtypes import lookup
from .limits import Limits
from .pack import Header, Packed

FLOOR_BYTES = 256 << 20
RATIO = 2048
#: Bytes of side data and headers of small tensors, beyond their decoded size.
_SLACK_BYTES = 1 << 20


class Expansion:
    """The bounds of one end of a conversation. Thread-safe without a lock: every attribute is replaced as a whole."""

    def __init__(self) -> None:
        self._kinds: Mapping[str, Expected] = {}
        self._only = False
        self._largest = 0

    def expect(self, kinds: Mapping[str, Expected], *, only: bool) -> None:
        """Declare messages; see :meth:`farshore.core.session.Channel.expect`."""
        self._kinds, self._only = dict(kinds), only

    def payload_bytes(self, limits: Limits) -> int:
        """Most payload bytes that a frame may announce, before its header is known."""
        sizes = [expected.dense_bytes for expected in self._kinds.values()]
        if not self._only or any(size is None for size in sizes):
            return limits.payload_bytes
        return min(limits.payload_bytes, max((size or 0 for size in sizes), default=0) + _SLACK_BYTES)

    def sending(self, kind: str, packed: Packed) -> None:
        """Check a message at its sender, where the error is most useful.

        Raises
        ------
        WireError
            The other end would refuse it.
        """
        self._check_dense(kind, packed.dense_bytes, packed.payload_bytes)

    def sent(self, packed: Packed) -> None:
        """Note a message that was queued; not for published ones, which may be superseded before they arrive."""
        self._largest = max(self._largest, packed.payload_bytes)

    def arriving(self, header: Header, payload_bytes: int) -> None:
        """Check a frame that has arrived.

        Raises
        ------
        WireError
            The program does not expect it, or its tensors decode to too much.
        """
        kind = header.parsed.kind
        expected = self._kinds.get(kind)
        if expected is None and self._only:
            known = ", ".join(sorted(self._kinds)) or "none"
            raise WireError(f"unexpected '{kind}' message; expected kinds: {known}")
        self._check_dense(kind, sum(layout.nbytes for layout in header.layouts), payload_bytes)
        if expected is not None:
            _check_tensors(header, expected)
        self._largest = max(self._largest, payload_bytes)

    def _check_dense(self, kind: str, dense: int, payload: int) -> None:
        expected = self._kinds.get(kind)
        declared = expected.dense_bytes if expected is not None else None
        if declared is not None:
            if dense > declared:
                raise WireError(f"'{kind}' message: {dense} decoded bytes, at most {declared} are expected")
            return
        most = max(FLOOR_BYTES, RATIO * payload, 2 * self._largest)
        if dense > most:
            raise WireError(
                f"'{kind}' message: {payload} bytes would decode to {dense}, at most {most} are allowed",
                hint="declare messages of this size with the channel's expect(), at both ends",
            )


def _check_tensors(header: Header, expected: Expected) -> None:
    for entry in header.parsed.tensors:
        where = f"'{header.parsed.kind}' message, tensor '{entry.name[:64]}': "
        encoding = entry.encoding or "raw"
        if expected.encodings is not None and encoding not in expected.encodings:
            raise WireError(f"{where}the encoding '{encoding[:64]}' is not expected")
        if expected.tensors is None:
            continue
        spec = expected.tensors.get(entry.name)
        if spec is None:
            raise WireError(f"{where}not expected")
        dtype, shape = lookup(entry.dtype)[0], tuple(map(int, entry.shape))
        if not spec.matches(dtype, shape):
            raise WireError(f"{where}{dtype} {list(shape)} instead of {spec.dtype} {list(spec.shape)}")
