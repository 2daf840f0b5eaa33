"""Load a pre-trained backbone from local files, and compute its fingerprint."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ...core.errors import DataError
from ...engines.split.architectures import architecture_of
from .model_folder import model_folder

#: Held while a model is loaded or cut. transformers patches torch's initializers and its own verbosity for the whole
#: process meanwhile, which is not thread-safe.
LOADING = threading.RLock()

#: Config entries about origin, versions and run-time options, which are not part of a model's identity.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


@dataclass(frozen=True, slots=True)
class Origin:
    """Identity of the whole model that a backbone, or its first blocks, were loaded from.

    Attributes
    ----------
    layers : int
        Number of blocks of the whole model.
    fingerprint : str
        Hash of config and weights (names, shapes, dtypes, contents) of the whole model, 32 hex digits.
    """

    layers: int
    fingerprint: str


def load_backbone(
    name_or_path: str | Path,
    *,
    blocks: int | None = None,
    hidden_dropout: float = 0.1,
    attention_dropout: float = 0.0,
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a backbone and its tokenizer from local safetensors files, in fp32.

    Parameters
    ----------
    name_or_path : str or Path
        ``minilm`` (extra ``demo``), or a folder with ``config.json``, ``*.safetensors`` and a tokenizer.
    blocks : int, optional
        Load only this number of first blocks; the others are never read into memory.
    hidden_dropout, attention_dropout : float
        Dropout rates; the defaults are those of the benchmarks.
    attention : {"sdpa", "eager"}
        Attention implementation; both sides of a split must use the same.

    Returns
    -------
    model, tokenizer

    Raises
    ------
    DataError
        The model cannot be loaded, or its weights are incomplete.
    MissingExtraError
        The package of a packaged model is not installed.
    ConfigError
        The model's type is not supported.
    """
    folder = model_folder(name_or_path)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = architecture_of(config)
    origin = Origin(config.num_hidden_layers, _fingerprint_folder(folder, config))
    for name in architecture.hidden_dropout:
        setattr(config, name, hidden_dropout)
    for name in architecture.attention_dropout:
        setattr(config, name, attention_dropout)
    config.use_cache = False
    if blocks is not None:
        config.num_hidden_layers = min(blocks, origin.layers)
    model: Any  # for the attribute ``origin``
    model, tokenizer = _load(folder, config, attention)
    model.origin = origin
    return model, tokenizer


def _load(folder: Path, config: PreTrainedConfig, attention: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a folder; missing weights are an error, unused ones are not."""
    with LOADING, _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation=attention,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            raise DataError(f"cannot load the model in '{folder}': {error}", hint="check the folder") from error
    # A pooler may be missing (it is rarely used); transformers would fill any other gap with random values.
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise DataError(
            f"the weights in '{folder}' lack {missing[0]} and {len(missing) - 1} more", hint="copy the model again"
        )
    return model, tokenizer


def origin_of(model: PreTrainedModel) -> Origin:
    """Return the origin of a backbone; one not loaded by :func:`load_backbone` is its own origin."""
    origin = getattr(model, "origin", None)
    if isinstance(origin, Origin):
        return origin
    # On the meta device only names and shapes are hashed.
    fingerprint = _digest(model.config, sorted(model.state_dict().items()))
    return Origin(model.config.num_hidden_layers, fingerprint)


def _fingerprint_folder(folder: Path, config: PreTrainedConfig) -> str:
    from safetensors import SafetensorError, safe_open

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in sorted(opened.keys()):
                    yield name, opened.get_tensor(name)

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(
            f"no *.safetensors file in '{folder}'",
            hint="convert the weights with save_pretrained; pickled weights are not read",
        )
    try:
        return _digest(config, tensors())
    except SafetensorError as error:
        raise DataError(f"damaged weights file in '{folder}': {error}", hint="copy the model again") from error


def _digest(config: PreTrainedConfig, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    architecture = architecture_of(config)
    skip = {*_VOLATILE, *architecture.hidden_dropout, *architecture.attention_dropout}
    entries = {key: value for key, value in config.to_dict().items() if key not in skip}
    digest.update(json.dumps(entries, sort_keys=True, default=str).encode())
    for name, tensor in tensors:
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' progress bars and warnings: blocks are left out on purpose."""
    log: Any = transformers_logging  # not annotated
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
