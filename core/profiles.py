"""Device and link profiles: one file that throttles real nodes, drives virtual time and informs scheduling."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError


class LinkProfile(BaseModel):
    """The link between a node and the server; zero bandwidth means unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_mbps: float = Field(0.0, ge=0, description="uplink bandwidth, Mbit/s (10^6 bit); 0 = unlimited")
    down_mbps: float = Field(0.0, ge=0, description="downlink bandwidth, Mbit/s (10^6 bit); 0 = unlimited")
    latency_ms: float = Field(0.0, ge=0, description="one-way latency, ms")
    jitter_ms: float = Field(0.0, ge=0, description="standard deviation of the latency, ms; never reorders")


class DeviceProfile(BaseModel):
    """What a device is like; unset values are unknown or unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: LinkProfile = LinkProfile()
    threads: int = Field(0, ge=0, description="compute threads a run may use; 0 = all")

    @classmethod
    def read(cls, path: Path) -> DeviceProfile:
        """Read a YAML profile.

        Raises
        ------
        ConfigError
            The file is missing, not YAML, or has a wrong key or value.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()) or {})
        except OSError as error:
            raise ConfigError(f"cannot read the device profile {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValidationError) as error:
            first = str(error).splitlines()
            raise ConfigError(
                f"the device profile {path} is wrong: {'; '.join(s.strip() for s in first[:3])}"
            ) from error
