"""Device and link profiles: one file that throttles real nodes, drives virtual time and informs scheduling."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError


class LinkProfile(BaseModel):
    """The link between a node and the server; zero bandwidth means unlimited.

    Virtual time divides a bandwidth by what loss costs: every lost packet is sent again, so ``1 - loss`` of it is left.
    Real links lose more, where congestion control backs off. Throttled real nodes run over a transport that loses
    nothing: there, loss and energy have no effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_mbps: float = Field(0.0, ge=0, description="uplink bandwidth, Mbit/s (10^6 bit); 0 = unlimited")
    down_mbps: float = Field(0.0, ge=0, description="downlink bandwidth, Mbit/s (10^6 bit); 0 = unlimited")
    latency_ms: float = Field(0.0, ge=0, description="one-way latency, ms")
    jitter_ms: float = Field(0.0, ge=0, description="standard deviation of the latency, ms; never reorders")
    loss: float = Field(0.0, ge=0, lt=1, description="share of packets that are lost and sent again")
    up_joule_per_mb: float = Field(0.0, ge=0, description="energy of sending 10^6 bytes, J")
    down_joule_per_mb: float = Field(0.0, ge=0, description="energy of receiving 10^6 bytes, J")


class DeviceProfile(BaseModel):
    """What a device is like; unset values are unknown or unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: LinkProfile = LinkProfile()
    threads: int = Field(0, ge=0, description="compute threads a run may use; 0 = all")
    compute_factor: float = Field(1.0, gt=0, description="how many times longer a step takes than the cost table says")
    memory_mb: float = Field(0.0, ge=0, description="main memory, 10^6 bytes; 0 = unknown. Told, not simulated.")
    compute_watts: float = Field(0.0, ge=0, description="power while it computes, W")
    availability: float = Field(1.0, gt=0, le=1, description="share of each period in which it can be drawn")
    period_s: float = Field(86400.0, gt=0, description="length of an on/off period, s")
    crash_rate: float = Field(
        0.0, ge=0, le=1, description="chance that a client is lost in a round that it takes part in"
    )

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
