"""Cost of encoding an update: predicted bytes, and CPU time of encoding and decoding compared with zlib and a copy.

Two models: that of the digits experiments (24 thousand parameters) and the CNN of McMahan (2017, section 3) with
1,663,370. The update is the initial state plus normal noise of a hundredth of each layer's standard deviation; the cost
does not depend on the values.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any, cast

import numpy as np
import torch
from _common import Table
from torch import nn

from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.config import Uplink
from farshore.engines.federated.methods import FLOATS, FedAvg, Update
from farshore.engines.federated.tensor_partition import cut_for
from farshore.engines.federated.tree import NamedArrays
from farshore.models.flat_params import FlatLayout, FlatModel
from farshore.models.image_classifiers import build
from farshore.wire.encodings import SizedEncoding
from farshore.wire.pack import pack, unpack

#: Label of the larger model: its number of parameters.
LARGE = "1.66 M"
#: Copies timed together, since one takes only microseconds.
_COPIES = 20


@dataclass(frozen=True)
class Cost:
    """Cost of one encoding on one model.

    Attributes
    ----------
    state, name : str
        Names of the model and the encoding.
    raw_bytes, payload_bytes, zlib_bytes : int
        Size of the update raw, encoded, and compressed with zlib at level 1.
    write, read : float
        CPU seconds from the client's arrays to the sent bytes, and from those to the server's arrays.
    deflate, inflate, copy : float
        CPU seconds of the references in the same turns: zlib both ways, one copy of the raw bytes.
    """

    state: str
    name: str
    raw_bytes: int
    payload_bytes: int
    zlib_bytes: int
    write: float
    read: float
    deflate: float
    inflate: float
    copy: float

    @property
    def of_zlib(self) -> float:
        """CPU time of encoding and decoding divided by zlib's."""
        return (self.write + self.read) / (self.deflate + self.inflate)

    @property
    def of_copy(self) -> float:
        """CPU time of encoding and decoding divided by that of two copies of the raw bytes."""
        return (self.write + self.read) / (2 * self.copy)


def models() -> dict[str, Callable[[], nn.Module]]:
    """Name -> builder of the model."""
    return {"24 k (digits)": digits_model, f"{LARGE} (McMahan's CNN)": mcmahan_cnn}


def digits_model() -> nn.Module:
    """Build the model of the digits experiments, with batch norm."""
    return build("conv3", 10, 1, seed=0, size=8)


def mcmahan_cnn() -> nn.Module:
    """Build the CNN for images of 28 x 28 in ten classes; 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def update_bytes(uplink: Uplink, layout: FlatLayout | None = None) -> int:
    """Predict the payload bytes of a FedAvg update from the size functions; by default of the digits model."""
    layout = layout or FlatModel(digits_model()).layout
    cut = cut_for(uplink)
    if cut is None:
        return layout.payload_bytes
    sizes = [
        cast(SizedEncoding, piece.encoding).size(piece.shape) if piece.encoding else 4 * math.prod(piece.shape)
        for piece in cut(FLOATS, layout.total, layout)
    ]
    return sum(sizes) + layout.payload_bytes - 4 * layout.total


def costs(uplinks: Mapping[str, Uplink], repeats: int) -> list[Cost]:
    """Measure both models with every encoding; encodings and references take turns, ``repeats`` times."""
    torch.set_num_threads(1)
    found = []
    for state, model in models().items():
        torch.manual_seed(0)
        flat = FlatModel(model())
        found += [_cost(state, name, uplink, flat, repeats) for name, uplink in uplinks.items()]
    return found


def _cost(state: str, name: str, uplink: Uplink, flat: FlatModel, repeats: int) -> Cost:
    codec = UpdateCodec(uplink, layout=flat.layout)
    seen = FedAvg().start(flat)
    update, memory = moved(seen, flat.layout), dict[str, torch.Tensor]()
    raw = b"".join(array.tobytes() for array in update.tensors.values())
    turns: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        begun = thread_time()
        result = work()
        turns.setdefault(what, []).append(thread_time() - begun)
        return result

    for _ in range(repeats):
        packed = timed("write", lambda: _written(codec, update, seen, memory))
        timed("read", lambda packed=packed: codec.decode_update(unpack(*packed), 1, seen, seen))
        small = timed("deflate", lambda: zlib.compress(raw, 1))
        timed("inflate", lambda small=small: zlib.decompress(small))
        timed("copy", lambda: _copies(raw))
    took = {what: median(seconds) for what, seconds in turns.items()}
    took["copy"] /= _COPIES
    return Cost(state, name, len(raw), len(packed[1]), len(small), **took)


def _written(
    codec: UpdateCodec, update: Update, seen: NamedArrays, memory: dict[str, torch.Tensor]
) -> tuple[bytes, memoryview]:
    packed = pack(codec.encode_update(1, update, seen, memory))
    return packed.header, memoryview(b"".join(packed.payload))


def _copies(raw: bytes) -> None:
    array = np.frombuffer(raw, np.uint8)
    for _ in range(_COPIES):
        array.copy()


def moved(seen: NamedArrays, layout: FlatLayout) -> Update:
    """Build an update: every layer plus normal noise of a hundredth of its standard deviation."""
    rng = np.random.default_rng(0)
    after = seen[FLOATS].copy()
    for view in layout.floats:
        part = after[view.start : view.start + view.count]
        spread = 0.01 * (float(part.std()) or 1.0)
        part += (spread * rng.standard_normal(view.count)).astype(np.float32)
    return Update({**seen, FLOATS: after}, 1, 1, 0.0)


def table(found: Sequence[Cost]) -> Table:
    """Table with a row per model and encoding."""
    columns = [
        "parameters",
        "uplink",
        "bytes an update",
        "compression",
        "write + read, ms",
        "/ zlib",
        "/ two copies",
    ]
    rows = [
        [c.state, c.name, f"{c.payload_bytes:,}", f"{c.raw_bytes / c.payload_bytes:.1f}", *_times(c)] for c in found
    ]
    return Table("CPU time of encoding and decoding an update", columns, [*rows, *_reference_rows(found)])


def _times(c: Cost) -> list[str]:
    return [f"{1e3 * c.write:.2f} + {1e3 * c.read:.2f}", f"{c.of_zlib:.2f}", f"{c.of_copy:.1f}"]


def _reference_rows(found: Sequence[Cost]) -> list[list[str]]:
    rows = []
    for state in dict.fromkeys(c.state for c in found):
        own = [c for c in found if c.state == state]
        deflate, inflate = (1e3 * median(getattr(c, name) for c in own) for name in ("deflate", "inflate"))
        copy = 1e3 * median(c.copy for c in own)
        first = own[0]
        times = f"{first.raw_bytes / first.zlib_bytes:.1f}"
        of_copy = f"{(deflate + inflate) / (2 * copy):.1f}"
        rows.append(
            [
                state,
                "reference: zlib, level 1",
                f"{first.zlib_bytes:,}",
                times,
                f"{deflate:.2f} + {inflate:.2f}",
                "1",
                of_copy,
            ]
        )
        rows.append(
            [
                state,
                "reference: copy",
                f"{first.raw_bytes:,}",
                "1.0",
                f"{copy:.3f} + {copy:.3f}",
                f"{2 * copy / (deflate + inflate):.4f}",
                "1",
            ]
        )
    return rows
