"""The preconditioner's state dict: one rank's shard, the state of all ranks, and loading onto other ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import ConfigError

if TYPE_CHECKING:
    from .layers import Layer
    from .preconditioner import DPKFAC

#: Keys of an inverse's tensors in the state of a layer, in the order of the inverse's ``tensors()``.
_INVERSE_KEYS = {"eigen": ("q_a", "q_g", "share"), "cholesky": ("inverse_a", "inverse_g")}


def local_state(kfac: DPKFAC) -> dict[str, Any]:
    """Return this rank's shard, see :meth:`DPKFAC.state_dict`."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for layer in kfac.layers:
        found: dict[str, torch.Tensor] = {}
        if (pair := kfac.factors.get(layer.name)) is not None:
            found.update(A=pair[0], G=pair[1])
        if (inverse := kfac.inverses.get(layer.name)) is not None:
            found.update(zip(_INVERSE_KEYS[kfac.options.inverse], inverse.tensors(), strict=True))
        if found:
            layers[layer.name] = {name: tensor.detach().clone() for name, tensor in found.items()}
    return {"steps": kfac.steps, "inverse": kfac.options.inverse, "owners": dict(kfac.owners), "layers": layers}


def gather_state(kfac: DPKFAC, dst: int) -> dict[str, Any] | None:
    """Return the state of all ranks on rank ``dst``, None on the others; a collective."""
    own = local_state(kfac)
    if kfac.ranks == 1:
        return own
    names = ("A", "G", *_INVERSE_KEYS[kfac.options.inverse])
    has = torch.zeros(len(kfac.layers), 2, dtype=torch.int32)
    for layer in kfac.owned_layers:
        tensors = own["layers"].get(layer.name, {})
        has[layer.index] = torch.tensor(["A" in tensors, names[2] in tensors], dtype=torch.int32)
    has = has.to(kfac.collectives.device)
    kfac.collectives.all_reduce(has, "saving").wait()
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for layer in kfac.layers:
        present = names[0 if has[layer.index, 0] else 2 : 2 + 3 * int(has[layer.index, 1])]
        for name in present:
            tensor = _transfer(kfac, layer, name, own["layers"].get(layer.name, {}), kfac.owners[layer.name], dst)
            if tensor is not None:
                layers.setdefault(layer.name, {})[name] = tensor
    return {**own, "layers": layers} if kfac.rank == dst else None


def redistribute_state(kfac: DPKFAC, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that this rank needs, given that each rank holds some layers of it; a collective."""
    own: Mapping[str, Mapping[str, torch.Tensor]] = state["layers"]
    if kfac.ranks == 1:
        return dict(state)
    groups = (("A", "G"), _INVERSE_KEYS[kfac.options.inverse])
    # The lowest rank that holds a group of tensors sends it. The number of ranks means that no rank holds it.
    holder = torch.full((len(kfac.layers), len(groups)), kfac.ranks, dtype=torch.int32)
    for layer in kfac.layers:
        for group, names in enumerate(groups):
            if all(name in own.get(layer.name, {}) for name in names):
                holder[layer.index, group] = kfac.rank
    holder = holder.to(kfac.collectives.device)
    kfac.collectives.all_reduce(holder, "saving", minimum=True).wait()
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for layer in kfac.layers:
        for group, names in enumerate(groups):
            if (source := int(holder[layer.index, group])) == kfac.ranks:
                continue
            # An entry on every rank, even an empty one: all ranks must agree on the layers that have no state.
            found = layers.setdefault(layer.name, {})
            for name in names:
                tensor = _deliver(kfac, layer, name, own.get(layer.name, {}), source)
                if tensor is not None:
                    found[name] = tensor
    return {**state, "inverse": kfac.options.inverse, "layers": layers}


def _deliver(
    kfac: DPKFAC, layer: Layer, name: str, tensors: Mapping[str, torch.Tensor], source: int
) -> torch.Tensor | None:
    """Send one tensor from the rank that holds it to the ranks that need it; return it there."""
    everywhere = kfac.scheme.source == "allreduce" if name in ("A", "G") else kfac.scheme.workers > 1
    if not everywhere:
        return _transfer(kfac, layer, name, tensors, source, kfac.owners[layer.name])
    tensor = _held_tensor(layer, tensors[name]) if kfac.rank == source else _empty_tensor(kfac, layer, name)
    kfac.collectives.broadcast(tensor, source, "saving").wait()
    return tensor


def _transfer(
    kfac: DPKFAC, layer: Layer, name: str, tensors: Mapping[str, torch.Tensor], source: int, dst: int
) -> torch.Tensor | None:
    """Send one tensor from rank ``source`` to ``dst``; return it on ``dst``, None elsewhere."""
    if kfac.rank not in (source, dst):
        return None
    held = tensors.get(name) if kfac.rank == source else None
    tensor = _empty_tensor(kfac, layer, name) if held is None else _held_tensor(layer, held)
    if source != dst:
        kfac.collectives.point_to_point(tensor, source, dst, "saving").wait()
    return tensor if kfac.rank == dst else None


def _held_tensor(layer: Layer, tensor: torch.Tensor) -> torch.Tensor:
    # Loaded states are on the CPU; ranks send and receive on the model's device.
    return tensor.to(layer.module.weight.device).contiguous()


def _empty_tensor(kfac: DPKFAC, layer: Layer, name: str) -> torch.Tensor:
    dtype = kfac.factors.dtype_of(layer) if name in ("A", "G") else kfac.options.inv_dtype
    return torch.empty(_shape(layer, name), dtype=dtype, device=layer.module.weight.device)


def _shape(layer: Layer, name: str) -> tuple[int, int]:
    if name == "share":
        return layer.g, layer.a
    return (layer.a, layer.a) if name in ("A", "q_a", "inverse_a") else (layer.g, layer.g)


def merge_shards(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the shards of all ranks into a state that any number of ranks can load.

    Raises
    ------
    ConfigError
        The shards are of different steps.
    """
    found = list(shards)
    if len({shard["steps"] for shard in found}) != 1:
        raise ConfigError(
            f"the shards are of steps {sorted({shard['steps'] for shard in found})}",
            hint="save all of them at the same step",
        )
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for shard in found:
        for name, tensors in shard["layers"].items():
            layers.setdefault(name, {}).update(tensors)
    return {**found[0], "layers": layers}


def load(kfac: DPKFAC, state: Mapping[str, Any]) -> None:
    """Load what this rank needs from a state, see :meth:`DPKFAC.load_state_dict`."""
    known = {layer.name: layer for layer in kfac.layers}
    if unknown := sorted(set(state["layers"]) - set(known)):
        raise ConfigError(
            f"the state has a layer '{unknown[0]}' that the model lacks", hint="load it into the same model"
        )
    for name, tensors in state["layers"].items():
        _check_shapes(known[name], tensors)
    kfac.steps = int(state["steps"])
    everywhere = kfac.scheme.source == "allreduce"
    for name, tensors in state["layers"].items():
        layer, is_owner = known[name], kfac.owners[name] == kfac.rank
        like = layer.module.weight
        if (everywhere or is_owner) and "A" in tensors:
            kfac.factors.set_factors(name, tensors["A"].to(like.device).clone(), tensors["G"].to(like.device).clone())
        if not kfac.grid.preconditions(kfac.owners[name]):
            continue
        if state["inverse"] == kfac.options.inverse and all(n in tensors for n in _INVERSE_KEYS[state["inverse"]]):
            inverse = [
                tensors[n].to(like.device, kfac.options.inv_dtype, copy=True) for n in _INVERSE_KEYS[state["inverse"]]
            ]
            kfac.inverses.set_inverse(name, inverse)


def _check_shapes(layer: Layer, tensors: Mapping[str, torch.Tensor]) -> None:
    allowed = {"A", "G", *_INVERSE_KEYS["eigen"], *_INVERSE_KEYS["cholesky"]}
    for name, tensor in tensors.items():
        expected = _shape(layer, name) if name in allowed else None
        if expected is None or tuple(tensor.shape) != expected:
            raise ConfigError(
                f"{layer.name}: the state's {name} has shape {tuple(tensor.shape)}, expected {expected}",
                hint="load it into the same model",
            )
