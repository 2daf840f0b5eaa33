"""The seed tree: derives independent seeds from one root by name, whatever the order of use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Seed:
    """A node of the seed tree.

    ``seed.child("round", 3).child("node", 7)`` has the same value on every machine and in every process. Children with
    different paths are independent.
    """

    root: int
    path: tuple[str, ...] = ()

    def child(self, *names: str | int) -> Seed:
        """Return the descendant with the given path; an integer and its decimal string are the same name."""
        return Seed(self.root, (*self.path, *(str(n) for n in names)))

    @property
    def value(self) -> int:
        """A non-negative integer of 63 bits, valid for ``torch.manual_seed`` and ``torch.Generator``."""
        digest = hashlib.blake2b(digest_size=8)
        # Lengths before the names: ("ab", "c") and ("a", "bc") must differ.
        for part in (str(self.root), *self.path):
            raw = part.encode()
            digest.update(len(raw).to_bytes(4, "little") + raw)
        return int.from_bytes(digest.digest(), "little") >> 1

    def numpy(self) -> np.random.Generator:
        """Return a new NumPy generator with this seed."""
        return np.random.default_rng(self.value)
