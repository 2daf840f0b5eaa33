"""Device and link profiles, which throttle real nodes and define the virtual time of simulations."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError
from .yaml_text import load_yaml


class LinkProfile(BaseModel):
    """The link between a node and the server; a bandwidth of zero means unlimited.

    In virtual time, lost packets are retransmitted, which leaves the share ``1 - loss`` of the bandwidth. Congestion
    control, which reduces the throughput of real links further, is not modeled. Loss and energy do not apply to
    throttled real nodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_mbps: float = Field(0.0, ge=0, description="uplink bandwidth, Mbit/s (10^6 bit); 0 = unlimited")
    down_mbps: float = Field(0.0, ge=0, description="downlink bandwidth, Mbit/s (10^6 bit); 0 = unlimited")
    latency_ms: float = Field(0.0, ge=0, description="one-way latency, ms")
    jitter_ms: float = Field(0.0, ge=0, description="standard deviation of the latency, ms; does not reorder")
    loss: float = Field(0.0, ge=0, lt=1, description="share of packets that are lost and retransmitted")
    up_joule_per_mb: float = Field(0.0, ge=0, description="energy of sending 10^6 bytes, J")
    down_joule_per_mb: float = Field(0.0, ge=0, description="energy of receiving 10^6 bytes, J")


class DeviceProfile(BaseModel):
    """Compute, memory, energy and availability of a device; unset values are unknown or unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: LinkProfile = LinkProfile()
    threads: int = Field(0, ge=0, description="compute threads a run may use; 0 = all")
    compute_factor: float = Field(1.0, gt=0, description="compute time of a step, relative to the cost table")
    memory_mb: float = Field(0.0, ge=0, description="main memory, 10^6 bytes; 0 = unknown. Reported, not simulated.")
    compute_watts: float = Field(0.0, ge=0, description="power during computation, W")
    availability: float = Field(1.0, gt=0, le=1, description="share of each period in which the client can be sampled")
    period_s: float = Field(86400.0, gt=0, description="length of an on/off period, s")
    crash_rate: float = Field(
        0.0, ge=0, le=1, description="probability that a client fails in a round in which it participates"
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
            return cls.model_validate(load_yaml(path.read_text()) or {})
        except OSError as error:
            raise ConfigError(f"cannot read the device profile {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValidationError, ValueError, RecursionError) as error:
            lines = str(error).splitlines()
            raise ConfigError(f"invalid device profile {path}: {'; '.join(s.strip() for s in lines[:3])}") from error
