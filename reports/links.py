"""Estimated transfer time and radio energy of a run on typical links (ADSL, LTE, 5G, Wi-Fi, Ethernet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.profiles import LinkProfile

if TYPE_CHECKING:
    from .account import Account


@dataclass(frozen=True, slots=True)
class NamedLink:
    """A named link profile with the sources of its values.

    Attributes
    ----------
    name : str
    profile : LinkProfile
        Bandwidths, one-way latency and, if known, energy per MB of the device's radio.
    watts : float
        Base power of the radio while it transfers, independent of the rate.
    source, energy_source : str
        Sources of the values; ``energy_source`` is empty if the energy is unknown.
    """

    name: str
    profile: LinkProfile
    source: str
    watts: float = 0.0
    energy_source: str = ""


_HUANG = "Huang et al., MobiSys 2012, table 4: mW per Mbit/s, and base power while transferring"
_OFCOM = "mean rates of UK phones: Ofcom, Mobile Matters 2023; round trip: Mobile Matters 2024"

LINKS = (
    NamedLink(
        "ADSL2+",
        LinkProfile(up_mbps=1.4, down_mbps=24, latency_ms=10),
        "best case: maximum rates of ITU-T G.992.5 annex A; latency assumed",
    ),
    NamedLink(
        "LTE",
        LinkProfile(
            up_mbps=7.6,
            down_mbps=29.5,
            latency_ms=10.5,
            up_joule_per_mb=8 * 0.43839,
            down_joule_per_mb=8 * 0.05197,
        ),
        _OFCOM,
        1.28804,
        _HUANG,
    ),
    NamedLink("5G", LinkProfile(up_mbps=14.7, down_mbps=129.9, latency_ms=9.5), _OFCOM),
    NamedLink(
        "Wi-Fi",
        LinkProfile(
            up_mbps=217,
            down_mbps=217,
            latency_ms=2,
            up_joule_per_mb=8 * 0.28317,
            down_joule_per_mb=8 * 0.13701,
        ),
        "half of the 433 Mbit/s of IEEE 802.11ac with one stream in 80 MHz; factor and latency assumed",
        0.13286,
        _HUANG + " (older Wi-Fi)",
    ),
    NamedLink(
        "1 GbE",
        LinkProfile(up_mbps=949, down_mbps=949, latency_ms=0.1),
        "IEEE 802.3ab without headers: 1,460 of 1,538 bytes; latency assumed",
    ),
)

#: Electricity use of fixed-line networks, core and access, in J per byte.
NETWORK_JOULE_PER_BYTE = 0.06 * 3.6e6 / 1e9
NETWORK_SOURCE = "0.06 kWh/GB in 2015, halving about every two years: Aslan et al., J. Industrial Ecology 22(4), 2018"


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """Estimated transfer time and energy of a run on a link.

    Attributes
    ----------
    link : NamedLink
    seconds : float
        Transfer time alone. Every node has its own link; a round or step takes as long as its busiest node's transfers
        plus one round trip, and does not overlap with computation.
    at_least : bool
        Whether ``seconds`` is a lower bound: rounds or steps were merged, and the busiest node may differ within one
        window.
    joule : float or None
        Energy of all devices' radios; None if unknown.
    """

    link: NamedLink
    seconds: float
    at_least: bool
    joule: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, including the link's profile and sources."""
        values = {"link": self.link.name, **self.link.profile.model_dump(), "source": self.link.source}
        values |= {"seconds": self.seconds, "at_least": self.at_least, "joule": self.joule}
        return values | {"energy_source": self.link.energy_source}


def estimate_links(account: Account, links: tuple[NamedLink, ...] = LINKS) -> tuple[LinkEstimate, ...]:
    """Estimate the transfers of a run on each link; repeated messages and the channels' own frames count too."""
    rows = account.by("window", "node", "direction")
    window = np.array([row["window"] for row in rows], np.int64)
    codes = {name: code for code, name in enumerate(dict.fromkeys(row["node"] for row in rows))}
    node = np.array([codes[row["node"]] for row in rows], np.int64)
    sizes = np.array([row["frame_bytes"] for row in rows], np.float64)
    is_up, is_peer = (np.array([row["direction"] == name for row in rows], bool) for name in ("up", "peer"))
    shape = (account.node_periods.count, max(1, len(codes)))
    periods = sum(last - first + 1 for first, last in map(account.node_periods.span, sorted(set(window.tolist()))))
    found = []
    for link in links:
        profile = link.profile
        # Peer traffic uses the sender's uplink and the receiver's downlink; in a ring, every node has both.
        up, down = np.where(is_up | is_peer, sizes, 0.0), np.where(is_up, 0.0, sizes)
        duration = 8e-6 * (up / profile.up_mbps + down / profile.down_mbps)
        busy = np.zeros(shape)
        np.add.at(busy, (window, node), duration)
        seconds = float(busy.max(axis=1).sum()) + periods * 2e-3 * profile.latency_ms
        joule = None
        if link.energy_source:
            by_size = 1e-6 * (up.sum() * profile.up_joule_per_mb + down.sum() * profile.down_joule_per_mb)
            joule = float(by_size + link.watts * busy.sum())
        found.append(LinkEstimate(link, seconds, account.node_periods.width > 1, joule))
    return tuple(found)
