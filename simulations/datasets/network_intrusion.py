"""Synthetic (security): 60,000 network connections in four hospitals and banks, 2.2 % of them attacks of four kinds.

A model made up for this project of what a firewall logs of a connection; no real network is behind it.

Hosts browse, send mail, move backups, query databases and ask for names, each service with its own habits of bytes,
length and pace, by day more than by night. Attacks look like services: a scan is many short connections that are
refused, a guesser of passwords many short logins, a smuggler of data a backup at night to a host outside, a flood many
requests to one place. Each of that is done honestly as well (monitors scan, scripts log in, backups leave the house),
only seldom. No column decides; together they do. Sites see different attacks and run different services, and at each of
them one kind of attack is never seen: what it learns of it comes from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.base import Dataset
from strategies.spec import require

if TYPE_CHECKING:
    import polars as pl

SITES = ("hospital1", "hospital2", "bank1", "bank2")
SERVICES = ("web", "mail", "backup", "database", "login", "names", "other")
_MIX = np.array(  # of services at each site
    [
        [0.45, 0.10, 0.06, 0.12, 0.05, 0.18, 0.04],
        [0.38, 0.14, 0.10, 0.10, 0.06, 0.16, 0.06],
        [0.50, 0.08, 0.04, 0.18, 0.04, 0.12, 0.04],
        [0.40, 0.06, 0.08, 0.22, 0.08, 0.12, 0.04],
    ]
)
ATTACKS = ("scan", "guess", "smuggle", "flood")
_SEEN = np.array([[0.5, 0.3, 0.2, 0.0], [0.2, 0.5, 0.0, 0.3], [0.0, 0.3, 0.4, 0.3], [0.3, 0.0, 0.3, 0.4]])
# logarithms of bytes sent, bytes received, seconds; connections of the host to one port in the minute before
_HABITS = {
    "web": (6.5, 9.5, 0.0, 1.2),
    "mail": (8.0, 6.5, 0.5, 0.5),
    "backup": (13.0, 7.0, 4.0, 0.1),
    "database": (6.5, 8.0, 1.0, 1.5),
    "login": (7.5, 7.5, 3.0, 0.2),
    "names": (4.2, 4.8, -3.5, 1.8),
    "other": (7.0, 7.0, 1.0, 0.7),
    "scan": (4.4, 3.6, -3.0, 2.4),
    "guess": (6.9, 6.8, 0.4, 1.9),
    "smuggle": (11.5, 6.8, 3.2, 0.3),
    "flood": (6.0, 6.6, -1.0, 3.0),
}
_SPREAD = (1.3, 1.5, 1.4, 0.9)
_PORT = {"scan": "other", "guess": "login", "smuggle": "backup", "flood": "web"}


@dataclass(frozen=True, kw_only=True)
class NetworkIntrusion(Dataset):
    """One row a connection: host, site, service, sent, received, seconds, recent, refused, outside, night, `attack`.

    Args:
        hosts: number of them; each opens about 20 connections.
        share: of connections that are attacks.
        seed: of the records; the same seed gives the same records.
    """

    hosts: int = 3000
    share: float = 0.022
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.hosts >= 100, "network_intrusion.hosts", self.hosts, "at least 100")
        require(0 < self.share < 0.5, "network_intrusion.share", self.share, "between 0 and 0.5")

    def load(self) -> pl.DataFrame:
        import polars as pl

        random = np.random.default_rng([self.seed, 105])
        site_of = random.integers(len(SITES), size=self.hosts)
        host = np.sort(random.integers(self.hosts, size=20 * self.hosts))
        taken = random.random(self.hosts) < 0.15  # hosts that somebody has broken into
        attack = taken[host] & (random.random(len(host)) < self.share / 0.15)
        site = site_of[host]
        kind = np.where(attack, _chosen(random, _SEEN[site], ATTACKS), _chosen(random, _MIX[site], SERVICES))
        return pl.DataFrame({"host": host, "site": np.array(SITES)[site], **_facts(random, kind, attack, site)})


def _chosen(random: np.random.Generator, shares: NDArray[np.float64], names: tuple[str, ...]) -> NDArray[np.str_]:
    """Return one name a row, each with the row's own shares."""
    places = (random.random((len(shares), 1)) > shares.cumsum(1)[:, :-1]).sum(1)
    found: NDArray[np.str_] = np.array(names)[places]
    return found


def _facts(
    random: np.random.Generator, kind: NDArray[np.str_], attack: NDArray[np.bool_], site: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Return what a firewall writes down of each connection."""
    names = list(_HABITS)
    habits = np.array(list(_HABITS.values()))[[names.index(name) for name in kind]]
    sent, received, seconds, recent = (habits + random.normal(0, _SPREAD, habits.shape)).T + 0.15 * site
    rows = len(kind)
    is_of = {name: kind == name for name in names}
    refused = random.random(rows) < 0.04 + 0.5 * is_of["scan"] + 0.35 * is_of["guess"] + 0.15 * is_of["flood"]
    outside = random.random(rows) < 0.35 + 0.4 * attack - 0.2 * (is_of["database"] | is_of["backup"])
    night = random.random(rows) < 0.2 + 0.35 * attack + 0.35 * is_of["backup"]
    service = np.array([_PORT.get(name, name) for name in kind])
    stray = random.random(rows) < 0.15  # a service on a port of another
    return {
        "service": np.where(stray, np.array(SERVICES)[random.integers(len(SERVICES), size=rows)], service),
        "sent": np.round(np.exp(sent)),
        "received": np.round(np.exp(received)),
        "seconds": np.round(np.exp(seconds), 4),
        "recent": np.maximum(np.round(np.exp(recent)) - 1, 0),
        "refused": refused.astype(np.int64),
        "outside": outside.astype(np.int64),
        "night": night.astype(np.int64),
        "attack": np.where(attack, "yes", "no"),
    }
