"""The preconditioner's state: of one rank, of all together, and onto another number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import ConfigError

if TYPE_CHECKING:
    from .layers import Layer
    from .preconditioner import DPKFAC

#: What a saved layer may hold: factors, and what the inverse of its kind is made of.
_INVERSES = {"eigen": ("q_a", "q_g", "share"), "cholesky": ("inverse_a", "inverse_g")}


def saved(kfac: DPKFAC) -> dict[str, Any]:
    """This rank's part, see :meth:`DPKFAC.state_dict`."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for layer in kfac.layers:
        found: dict[str, torch.Tensor] = {}
        if (pair := kfac.factors.get(layer.name)) is not None:
            found.update(A=pair[0], G=pair[1])
        if (inverse := kfac.inverses.get(layer.name)) is not None:
            found.update(zip(_INVERSES[kfac.options.inverse], inverse.tensors(), strict=True))
        if found:
            layers[layer.name] = {name: tensor.detach().clone() for name, tensor in found.items()}
    return {"steps": kfac.steps, "inverse": kfac.options.inverse, "owners": dict(kfac.owners), "layers": layers}


def gathered(kfac: DPKFAC, dst: int) -> dict[str, Any] | None:
    """The parts of all owners at one rank."""
    mine = saved(kfac)
    if kfac.ranks == 1:
        return mine
    names = ("A", "G", *_INVERSES[kfac.options.inverse])
    has = torch.zeros(len(kfac.layers), 2, dtype=torch.int32)
    for layer in kfac.owned:
        tensors = mine["layers"].get(layer.name, {})
        has[layer.index] = torch.tensor(["A" in tensors, names[2] in tensors], dtype=torch.int32)
    has = has.to(kfac.collectives.device)
    kfac.collectives.all_reduce(has, "saving").wait()
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for layer in kfac.layers:
        present = names[0 if has[layer.index, 0] else 2 : 2 + 3 * int(has[layer.index, 1])]
        for name in present:
            tensor = _passed(kfac, layer, name, mine["layers"].get(layer.name, {}), kfac.owners[layer.name], dst)
            if tensor is not None:
                layers.setdefault(layer.name, {})[name] = tensor
    return {**mine, "layers": layers} if kfac.rank == dst else None


def handed_over(kfac: DPKFAC, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of which each rank has some layers, with what each rank needs of it now; all must call it."""
    own: Mapping[str, Mapping[str, torch.Tensor]] = state["layers"]
    if kfac.ranks == 1:
        return dict(state)
    parts = (("A", "G"), _INVERSES[kfac.options.inverse])
    # The first rank that has something gives it; nobody has what stays at the number of ranks.
    first = torch.full((len(kfac.layers), len(parts)), kfac.ranks, dtype=torch.int32)
    for layer in kfac.layers:
        for place, names in enumerate(parts):
            if all(name in own.get(layer.name, {}) for name in names):
                first[layer.index, place] = kfac.rank
    first = first.to(kfac.collectives.device)
    kfac.collectives.all_reduce(first, "saving", least=True).wait()
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for layer in kfac.layers:
        for place, names in enumerate(parts):
            if (source := int(first[layer.index, place])) == kfac.ranks:
                continue
            # Here too where nothing of it is kept here: all ranks must agree on which layers begin anew.
            found = layers.setdefault(layer.name, {})
            for name in names:
                tensor = _brought(kfac, layer, name, own.get(layer.name, {}), source)
                if tensor is not None:
                    found[name] = tensor
    return {**state, "inverse": kfac.options.inverse, "layers": layers}


def _brought(
    kfac: DPKFAC, layer: Layer, name: str, tensors: Mapping[str, torch.Tensor], source: int
) -> torch.Tensor | None:
    """One tensor from the rank that has it to those that need it."""
    everywhere = kfac.scheme.source == "allreduce" if name in ("A", "G") else kfac.scheme.workers > 1
    if not everywhere:
        return _passed(kfac, layer, name, tensors, source, kfac.owners[layer.name])
    tensor = tensors[name].contiguous() if kfac.rank == source else _room(kfac, layer, name)
    kfac.collectives.broadcast(tensor, source, "saving").wait()
    return tensor


def _passed(
    kfac: DPKFAC, layer: Layer, name: str, tensors: Mapping[str, torch.Tensor], source: int, dst: int
) -> torch.Tensor | None:
    """One tensor from the rank that has it to ``dst``, at ``dst``."""
    if kfac.rank not in (source, dst):
        return None
    tensor = tensors.get(name) if kfac.rank == source else None
    if tensor is None:
        tensor = _room(kfac, layer, name)
    if source != dst:
        kfac.collectives.pass_on(tensor.contiguous(), source, dst, "saving").wait()
    return tensor if kfac.rank == dst else None


def _room(kfac: DPKFAC, layer: Layer, name: str) -> torch.Tensor:
    kind = kfac.factors.dtype_of(layer) if name in ("A", "G") else kfac.options.inv_dtype
    return torch.empty(_shape(layer, name), dtype=kind, device=layer.module.weight.device)


def _shape(layer: Layer, name: str) -> tuple[int, int]:
    if name == "share":
        return layer.g, layer.a
    return (layer.a, layer.a) if name in ("A", "q_a", "inverse_a") else (layer.g, layer.g)


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of the parts of all ranks; it can be loaded by any number of them.

    Raises
    ------
    ConfigError
        The parts are of different steps.
    """
    found = list(parts)
    if len({part["steps"] for part in found}) != 1:
        raise ConfigError(
            f"the parts are of steps {sorted({part['steps'] for part in found})}", hint="save all at one step"
        )
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for part in found:
        for name, tensors in part["layers"].items():
            layers.setdefault(name, {}).update(tensors)
    return {**found[0], "layers": layers}


def load(kfac: DPKFAC, state: Mapping[str, Any]) -> None:
    """Take this rank's layers out of a state, see :meth:`DPKFAC.load_state_dict`."""
    known = {layer.name: layer for layer in kfac.layers}
    if strange := sorted(set(state["layers"]) - set(known)):
        raise ConfigError(
            f"the state has a layer '{strange[0]}', the model has none", hint="load it into the same model"
        )
    for name, tensors in state["layers"].items():
        _check(known[name], tensors)
    kfac.steps = int(state["steps"])
    everywhere = kfac.scheme.source == "allreduce"
    for name, tensors in state["layers"].items():
        layer, here = known[name], kfac.owners[name] == kfac.rank
        like = layer.module.weight
        if (everywhere or here) and "A" in tensors:
            kfac.factors.put(name, tensors["A"].to(like.device).clone(), tensors["G"].to(like.device).clone())
        if not kfac.grid.works_on(kfac.owners[name]):
            continue
        if state["inverse"] == kfac.options.inverse and all(n in tensors for n in _INVERSES[state["inverse"]]):
            parts = [tensors[n].to(like.device, kfac.options.inv_dtype, copy=True) for n in _INVERSES[state["inverse"]]]
            kfac.inverses.put(name, parts)


def _check(layer: Layer, tensors: Mapping[str, torch.Tensor]) -> None:
    allowed = {"A", "G", *_INVERSES["eigen"], *_INVERSES["cholesky"]}
    for name, tensor in tensors.items():
        wanted = _shape(layer, name) if name in allowed else None
        if wanted is None or tuple(tensor.shape) != wanted:
            raise ConfigError(
                f"{layer.name}: {name} of shape {tuple(tensor.shape)} does not fit", hint=f"expected {wanted}"
            )
