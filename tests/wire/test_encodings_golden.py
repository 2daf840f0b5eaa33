"""Golden bytes: detects changes of the format of an encoding, which require a new protocol version."""

import numpy as np
import pytest

from farshore.core.message import Message, Tensor
from farshore.wire.encodings import Bf16, Bits, Chain, Fp16, Int2, Int4, Int8, LowRank, Ragged, Raw, TopK
from farshore.wire.encodings.registry import LEAVES, TRANSFORMS
from farshore.wire.pack import pack, unpack

X = (np.arange(12, dtype=np.float32).reshape(2, 3, 2) - 5) / 4
ROWS = X.reshape(6, 2)
LABELS = np.array([0, 3, 1, 2, 1])

#: (encoding, array, header, payload)
GOLDEN = [
    (
        None,
        X,
        "0a0a61637469766174696f6e180720012a100a05636f646573100c1a030203023030",
        "0000a0bf000080bf000040bf000000bf000080be000000000000803e0000003f0000403f0000803f0000a03f0000c03f",
    ),
    (
        Raw(),
        X,
        "0a0a61637469766174696f6e180720012a100a05636f646573100c1a030203023030",
        "0000a0bf000080bf000040bf000000bf000080be000000000000803e0000003f0000403f0000803f0000a03f0000c03f",
    ),
    (
        Fp16(),
        X,
        "0a0a61637469766174696f6e180720012a160a05636f646573100c1a030203022204667031363018",
        "00bd00bc00ba00b800b4000000340038003a003c003d003e",
    ),
    (
        Bf16(),
        X,
        "0a0a61637469766174696f6e180720012a160a05636f646573100c1a030203022204626631363018",
        "a0bf80bf40bf00bf80be0000803e003f403f803fa03fc03f",
    ),
    (
        Int8(),
        ROWS,
        "0a0a61637469766174696f6e180720012a170a05636f646573100c1a0206022204696e743830123806",
        "00eb0b750d76012b3456678099aaccd5ffff",
    ),
    (
        Int4(),
        ROWS,
        "0a0a61637469766174696f6e180720012a170a05636f646573100c1a0206022204696e7434300c3806",
        "00efb775dc76316487a9dcff",
    ),
    (
        Int4(grid="uniform16", scales=0.335),
        ROWS,
        "0a0a61637469766174696f6e180720012a170a05636f646573100c1a0206022204696e7434300c3806",
        "04f05c755c7554657798aacb",
    ),
    (
        Int4(groups=[1, 3, 2]),
        ROWS,
        "0a0a61637469766174696f6e180720012a170a05636f646573100c1a0206022204696e74343015380f",
        "01efd5761e7703000000022dfbf0ff314186caccfe",
    ),
    (
        Int4(grid="uniform16", rounding="stochastic", seed=1),
        ROWS,
        "0a0a61637469766174696f6e180720012a170a05636f646573100c1a0206022204696e7434300c3806",
        "04ef56756776305376a9ccff",
    ),
    (
        Int2(),
        ROWS,
        "0a0a61637469766174696f6e180720012a170a05636f646573100c1a0206022204696e743230093806",
        "04f2ab72007454a5fe",
    ),
    (
        Bits(2),
        LABELS,
        "0a0a61637469766174696f6e180720012a160a05636f64657310091a010522046269747330033801",
        "029c01",
    ),
    (
        Ragged([1, 3]),
        X,
        "0a0a61637469766174696f6e180720012a1a0a05636f646573100c1a03020302220672616767656430223802",
        "020d0000a0bf000080bf0000803e0000003f0000403f0000803f0000a03f0000c03f",
    ),
    (
        Chain(Ragged([1, 3]), Int4(groups=[1, 3])),
        X,
        "0a0a61637469766174696f6e180720012a1f0a05636f646573100c1a03020302220b7261676765647c696e7434300e380a",
        "020d03f0bf733e74f8fb31a9ccfe",
    ),
    (
        LowRank(1),
        np.zeros((3, 4), np.float32),
        "0a0a61637469766174696f6e180720012a1a0a05636f646573100c1a02030422076c6f7772616e6b301e3802",
        "010000000000000000000000000000000000000000000000000000000000",
    ),
    (
        TopK(0.25),
        X,
        "0a0a61637469766174696f6e180720012a180a05636f646573100c1a030203022204746f706b30123806",
        "03000000a00b0000a0bf0000a03f0000c03f",
    ),
    (
        Chain(TopK(0.5), Fp16()),
        X,
        "0a0a61637469766174696f6e180720012a1d0a05636f646573100c1a030203022209746f706b7c6670313630123806",
        "06000000070e00bd00bc00ba003c003d003e",
    ),
]


def message(encoding, array):
    return Message("activation", step=7, micro=1, tensors={"codes": Tensor(array, encoding)})


@pytest.mark.parametrize(("encoding", "array", "header", "payload"), GOLDEN)
def test_encoders_produce_the_golden_bytes(encoding, array, header, payload):
    packed = pack(message(encoding, array))
    assert packed.header.hex() == header
    assert b"".join(packed.payload).hex() == payload


@pytest.mark.parametrize(("encoding", "array", "header", "payload"), GOLDEN)
def test_golden_bytes_are_decoded_within_the_error_bound(encoding, array, header, payload):
    back = unpack(bytes.fromhex(header), memoryview(bytes.fromhex(payload))).array("codes")
    bound = 0 if encoding is None else encoding.error_bound(array)
    assert (np.abs(back.astype(np.float64) - array) <= bound).all()


def test_every_encoding_has_golden_bytes():
    used = {e.name for e, *_ in GOLDEN if e is not None}
    assert used >= set(LEAVES) | set(TRANSFORMS)
