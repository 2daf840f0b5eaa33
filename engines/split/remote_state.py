"""Modules whose parameters are on a server, and that save and load them like parameters of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...core.errors import ConfigError


class RemoteState(nn.Module):
    """Base class of modules with remote parameters; child modules keep their own state."""

    def remote_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return names and shapes of the remote parameters."""
        raise NotImplementedError

    def read_remote(self) -> dict[str, Tensor]:
        """Return the values of all remote parameters, on the CPU."""
        raise NotImplementedError

    def write_remote(self, tensors: Mapping[str, Tensor]) -> None:
        """Set all remote parameters."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled or copied: the weights are not in this process.

        Raises
        ------
        ConfigError
        """
        raise ConfigError(
            "a split model cannot be pickled or copied: some of its blocks are on the server",
            hint="use torch.save(model.state_dict(), FILE) or model.save_pretrained(DIR)",
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the remote parameters only: a module's own ones represent them and are not part of the model."""
        if self.remote_shapes():
            destination.update({prefix + name: tensor for name, tensor in self.read_remote().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        shapes = self.remote_shapes()
        found: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if name not in given:
                missing_keys.append(prefix + name)
            elif given[name].shape != shape:
                error_msgs.append(
                    f"size mismatch for {prefix + name}: copying a param with shape {given[name].shape} from "
                    f"checkpoint, the shape in current model is {shape}."
                )
            else:
                found[name] = given[name]
        if found and len(found) < len(shapes):  # a partial state: keep the current values of the others
            found = self.read_remote() | found
        if found:
            self.write_remote(found)
        if strict:
            children = dict(self.named_children())
            unexpected_keys += [
                prefix + name for name in given if name not in shapes and name.partition(".")[0] not in children
            ]
