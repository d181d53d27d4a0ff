"""Who was given what: the objects that a silo may fetch, and those that it may send.

The gateway lets a silo fetch only the objects of messages that it was handed, and send only objects of a reply that it
announced, one reply to a message. What was granted is on disk, so that a gateway that comes back knows it; it is
forgotten after a day.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.checkpoint import write_whole
from server.fleet import Pulled, Reply

_LIFE_S = 86400.0


@dataclass(kw_only=True)
class _Silo:
    node: int = 0
    given: dict[str, frozenset[str]] = field(default_factory=dict)  # objects by message, until it is confirmed
    runs: set[int] = field(default_factory=set)
    awaited: dict[str, int] = field(default_factory=dict)  # run by message that may be answered
    answered: dict[str, str] = field(default_factory=dict)  # reply by message
    announced: set[str] = field(default_factory=set)  # objects of replies


class Grants:
    """The table, kept in a file of JSON lines.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._silos: dict[str, _Silo] = {}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = self._read()
        write_whole(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        for line in lines:
            self._apply(line)

    def _read(self) -> list[dict[str, Any]]:
        """Return the lines of the last day; one that was not finished counts for nothing."""
        if not self._path.exists():
            return []
        lines = [json.loads(line) for line in self._path.read_bytes().split(b"\n")[:-1]]
        return [line for line in lines if line["time"] > time.time() - _LIFE_S]

    def _of(self, silo: str) -> _Silo:
        return self._silos.setdefault(silo, _Silo())

    def _keep(self, silo: str, what: str, **values: object) -> None:
        line = {"time": time.time(), "silo": silo, "what": what, **values}
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
        self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        silo = self._of(line["silo"])
        if line["what"] == "node":
            silo.node = line["node"]
        elif line["what"] == "given":
            silo.given[line["message"]] = frozenset(line["objects"])
            silo.runs.add(line["run"])
            silo.awaited[line["message"]] = line["run"]
        elif line["what"] == "confirmed":
            silo.given.pop(line["message"], None)
        elif line["what"] == "answered":
            silo.answered[line["answers"]] = line["message"]
            silo.announced |= set(line["objects"])

    # --- nodes ----------------------------------------------------------------------------------------------

    def node(self, silo: str) -> int:
        """Return the silo's node id, or 0 where it is not known yet."""
        return self._of(silo).node

    def bind(self, silo: str, node: int) -> None:
        """Remember the node id that Flower gave to a silo's key."""
        if self.node(silo) != node:
            self._keep(silo, "node", node=node)

    # --- messages -------------------------------------------------------------------------------------------

    def give(self, silo: str, pulled: Pulled) -> None:
        """Let a silo fetch a message's objects and answer it."""
        self._keep(silo, "given", message=pulled.message, run=pulled.run, objects=sorted(pulled.objects))

    def takes_part(self, silo: str, run: int) -> bool:
        """Return whether the silo was given a message of the run."""
        return run in self._of(silo).runs

    def may_fetch(self, silo: str, object: str) -> bool:
        """Return whether an object belongs to a message that the silo was given and has not confirmed."""
        return any(object in objects for objects in self._of(silo).given.values())

    def may_confirm(self, silo: str, message: str) -> bool:
        """Return whether the message is the silo's own."""
        return message in self._of(silo).awaited

    def confirm(self, silo: str, message: str) -> None:
        """The silo has all of a message."""
        if message in self._of(silo).given:
            self._keep(silo, "confirmed", message=message)

    def may_answer(self, silo: str, reply: Reply) -> bool:
        """Return whether the silo was asked this, in this run, and has not answered otherwise."""
        found = self._of(silo)
        return found.awaited.get(reply.answers) == reply.run and found.answered.get(reply.answers) in (
            None,
            reply.message,
        )

    def answer(self, silo: str, reply: Reply) -> None:
        """The silo announces a reply, whose objects it may send."""
        if reply.answers not in self._of(silo).answered:
            self._keep(silo, "answered", answers=reply.answers, message=reply.message, objects=sorted(reply.objects))

    def may_send(self, silo: str, object: str) -> bool:
        """Return whether an object belongs to a reply that the silo announced."""
        return object in self._of(silo).announced
