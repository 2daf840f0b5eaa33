"""Stores and reads assets over and over: ``python asset_writer.py FOLDER LIMIT REPEATS NUMBER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from farshore.engines.assets.asset import MemorySource
from farshore.engines.assets.cache import AssetCache

folder, limit, repeats, own = Path(sys.argv[1]), *map(int, sys.argv[2:])
cache = AssetCache(folder, limit)
for repeat in range(repeats):
    for number in ((own + repeat) % 7, repeat % 7):
        content = np.random.default_rng(number).integers(0, 256, 1000, np.uint8)
        asset = MemorySource(content, f"asset {number}").asset
        cache.add(asset, content)
        if (file := cache.open(asset)) is not None:  # not evicted by another process
            with file:
                assert file.read() == content.tobytes()
