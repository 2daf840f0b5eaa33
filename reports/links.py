"""How long a run's bytes would take on links that people have, and what the radio of a device spends on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.profiles import LinkProfile

if TYPE_CHECKING:
    from .account import Account


@dataclass(frozen=True, slots=True)
class NamedLink:
    """A link with a name.

    Attributes
    ----------
    name : str
    profile : LinkProfile
        Bandwidths, one-way latency and, where known, the energy of the device's radio.
    watts : float
        What the radio takes while it transfers, whatever the rate.
    source, energy_source : str
        Where the figures come from; ``energy_source`` is empty where no energy is told.
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
        "at best: the most that ITU-T G.992.5 annex A carries; latency assumed",
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
        "half of the 433 Mbit/s of IEEE 802.11ac with one stream in 80 MHz; the half and the latency assumed",
        0.13286,
        _HUANG + " (of an older Wi-Fi)",
    ),
    NamedLink(
        "1 GbE",
        LinkProfile(up_mbps=949, down_mbps=949, latency_ms=0.1),
        "IEEE 802.3ab less headers: 1,460 of 1,538 bytes; latency assumed",
    ),
)

#: Electricity of fixed-line networks, core and access, in J per byte.
NETWORK_JOULE_PER_BYTE = 0.06 * 3.6e6 / 1e9
NETWORK_SOURCE = "0.06 kWh/GB in 2015, halving about every two years: Aslan et al., J. Industrial Ecology 22(4), 2018"


@dataclass(frozen=True, slots=True)
class OnLink:
    """A run on a link.

    Attributes
    ----------
    link : NamedLink
    seconds : float
        Transfers alone: every node has such a link of its own, a round or step ends when its busiest node is through,
        and takes one round trip more. Nothing overlaps with computing.
    at_least : bool
        Rounds or steps were put together, so that the busiest node may have changed within one sum.
    joule : float or None
        Of all devices' radios; None where no figure is known.
    """

    link: NamedLink
    seconds: float
    at_least: bool
    joule: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with the link's figures and their sources."""
        told = {"link": self.link.name, **self.link.profile.model_dump(), "source": self.link.source}
        told |= {"seconds": self.seconds, "at_least": self.at_least, "joule": self.joule}
        return told | {"energy_source": self.link.energy_source}


def on_links(account: Account, links: tuple[NamedLink, ...] = LINKS) -> tuple[OnLink, ...]:
    """A run on each of several links, repeated messages and the channels' own included."""
    rows = account.by("window", "node", "direction")
    window = np.array([row["window"] for row in rows], np.int64)
    codes = {name: code for code, name in enumerate(dict.fromkeys(row["node"] for row in rows))}
    node = np.array([codes[row["node"]] for row in rows], np.int64)
    sizes = np.array([row["frame_bytes"] for row in rows], np.float64)
    is_up, peer = (np.array([row["direction"] == way for row in rows], bool) for way in ("up", "peer"))
    shape = (account.stretches.count, max(1, len(codes)))
    periods = sum(last - first + 1 for first, last in map(account.stretches.span, sorted(set(window.tolist()))))
    found = []
    for link in links:
        profile = link.profile
        # What one node sends another goes up one link and down another; in a ring both are alike.
        up, down = np.where(is_up | peer, sizes, 0.0), np.where(is_up, 0.0, sizes)
        each = 8e-6 * (up / profile.up_mbps + down / profile.down_mbps)
        busy = np.zeros(shape)
        np.add.at(busy, (window, node), each)
        seconds = float(busy.max(axis=1).sum()) + periods * 2e-3 * profile.latency_ms
        joule = None
        if link.energy_source:
            spent = 1e-6 * (up.sum() * profile.up_joule_per_mb + down.sum() * profile.down_joule_per_mb)
            joule = float(spent + link.watts * busy.sum())
        found.append(OnLink(link, seconds, account.stretches.width > 1, joule))
    return tuple(found)
