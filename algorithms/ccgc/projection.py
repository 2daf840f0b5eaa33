"""Two-dimensional projections of an embedding, for pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data.graph_set import Floats


def project(embedding: Tensor, with_tsne: bool = False) -> dict[str, Floats]:
    """Return points (N, 2) by method: ``pca`` and, if wanted, ``tsne``."""
    x = embedding.detach().cpu()
    found = {"pca": principal_components(x)}
    if with_tsne:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, max(1.0, (len(x) - 1) / 3))
        model = TSNE(init="pca", perplexity=perplexity, random_state=0)
        found["tsne"] = np.asarray(model.fit_transform(x.numpy()), np.float32)
    return found


def principal_components(x: Tensor) -> Floats:
    """Return the coordinates (n, 2) on the first two principal axes; the largest entry of each axis is positive."""
    centered = (x - x.mean(dim=0)).double()
    _, axes = torch.linalg.eigh(centered.T @ centered)
    first = axes[:, [-1, -2]] if axes.shape[1] > 1 else axes[:, [-1, -1]]
    signs = first.gather(0, first.abs().argmax(dim=0)[None]).sign()
    return np.asarray((centered @ (first * signs)).float())
