"""Who is there, who takes part in a round, and asking all of them at once.

Rounds push and pull by themselves: polling starts fast and slows down, a silo that fails or stays silent is simply
missing from the answers, and the deadline is the study's.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from strategies import wire
from strategies.errors import ProtocolError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.01, 1.0
_OF_WAITING = 0.15  # between two looks for replies: what looking late adds to an exchange, at most


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came back.

    Args:
        replies: by node.
        silent: nodes without a reply that can be used: none in time, a failure of the node, or a wrong message.
        digests: SHA-256 of each reply as it arrived, by node.
    """

    replies: Mapping[int, wire.Reply]
    silent: tuple[int, ...]
    digests: Mapping[int, str] = field(default_factory=dict)


def wait_for_nodes(grid: Grid, least: int, timeout_s: float) -> list[int]:
    """Return the connected nodes, sorted, after waiting until there are `least` of them or time is up."""
    deadline = time.monotonic() + timeout_s
    wait_s = _FIRST_WAIT_S
    while len(nodes := sorted(grid.get_node_ids())) < least and time.monotonic() < deadline:
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    return nodes


def enrolled_name(grid: Grid, node: int) -> str | None:
    """Return the name under which the roster has a node, or None where there is no roster (in a simulation)."""
    name_of: Callable[[int], str] | None = getattr(grid, "name_of", None)
    return name_of(node) if name_of is not None else None


def enrolled_ledger(grid: Grid, node: int) -> str | None:
    """Return the identity of the ledger that the roster gives to a node, or None where there is no roster."""
    ledger_of: Callable[[int], str] | None = getattr(grid, "ledger_of", None)
    return ledger_of(node) if ledger_of is not None else None


def select(silos: Sequence[str], *, fraction: float, least: int, seed: int, round: int) -> list[str]:
    """Return the cohort of a round: a seeded choice of the larger of `least` and the fraction of `silos`.

    The choice is public and gives no privacy amplification; the accounting does not use it.
    """
    size = min(len(silos), max(least, math.ceil(fraction * len(silos))))
    chosen = random.Random(f"fedsilo/cohort/{seed}/{round}").sample(sorted(silos), size)  # noqa: S311 - public
    return sorted(chosen)


def ask(grid: Grid, requests: Mapping[int, wire.Instruction], *, group: str, timeout_s: float) -> Answers:
    """Send each node its request and collect what comes back before the deadline.

    Replies are matched by the message that they answer, never by who claims to have sent them.
    """
    nodes = list(requests)
    messages = (  # made one by one and kept by nobody here: each holds the whole model
        Message(
            wire.to_record(requests[node]),
            dst_node_id=node,
            message_type=wire.MESSAGE_TYPE[type(requests[node])],
            group_id=group,
            ttl=timeout_s,
        )
        for node in nodes
    )
    pending = dict(zip(grid.push_messages(messages), nodes, strict=True))
    replies: dict[int, wire.Reply] = {}
    digests: dict[int, str] = {}
    began = time.monotonic()
    deadline = began + timeout_s
    while pending:
        for message in grid.pull_messages(list(pending)):
            node = pending.pop(message.metadata.reply_to_message_id, None)
            reply = _decode(message)
            if node is not None and reply is not None:
                replies[node], digests[node] = reply, wire.digest(message.content)
        now = time.monotonic()
        if not pending or now >= deadline:
            break
        wait_s = min(_LONGEST_WAIT_S, max(_FIRST_WAIT_S, _OF_WAITING * (now - began)))
        time.sleep(min(wait_s, deadline - now))
    silent = tuple(node for node in nodes if node not in replies)
    return Answers(replies=replies, silent=silent, digests=digests)


def _decode(message: Message) -> wire.Reply | None:
    if message.has_error():
        return None
    try:
        return wire.from_record(message.content, wire.REPLIES)
    except ProtocolError:
        return None
