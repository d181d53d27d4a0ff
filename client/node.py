"""A silo's node: it fetches what its coordinator asks, has the installed code answer, and sends the signed answer back.

    state/node/   pid (locked while the node runs)  status.json  inbox.bin  outbox.bin  last.bin  seen

What arrives is on disk before its arrival is confirmed, and what is answered before it is sent; a node that comes back
after a loss of power goes on with either. The bundle of a run is compared with the pinned digest and thrown away.

Guarantees: nothing is trained for an instruction that the pinned coordinator's key has not signed for this silo and
this very message; each instruction is worked on once, and asked again, the same bytes answer; a task that outlasts its
message is killed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flwr.app import Message

from client.child import Child, Killed
from client.enrolment import Enrolment, enrolment
from client.fleet import HEARTBEAT_S, Connection, RunFacts, TurnedAway, Unreachable, from_bytes, pause, to_bytes
from client.keys import ledger_key, transport_key
from client.observe import Meters
from client.running import FOLDER
from client.silo import Silo, replace_file
from strategies import wire
from strategies.envelope import Answer, Instruction, digest, open_envelope, seal
from strategies.errors import ProtocolError, RefusalCode, SettingError, VerificationError
from strategies.proof.entries import public_hex
from strategies.sealed import attach, envelope_of, payload_hash

_SHORTEST_POLL_S, _LONGEST_POLL_S, _OF_IDLE_TIME = 0.2, 2.0, 0.3  # so idle silos cost the coordinator little
_LONGEST_TASK_S = 86400.0
_SEEN = 4096  # instructions that are remembered


@dataclass(frozen=True, kw_only=True)
class Task:
    """A message that was pulled, and what its envelope says.

    Args:
        message: with its content.
        config: of its run.
        sealed: the envelope.
    """

    message: Message
    config: dict[str, Any]
    sealed: bytes

    @property
    def left_s(self) -> float:
        """Seconds until nobody waits for the answer any more."""
        facts = self.message.metadata
        return min(_LONGEST_TASK_S, facts.created_at + facts.ttl - time.time())


class Node:
    """The node of one silo.

    Args:
        silo: opened with its passphrase.

    Raises:
        SettingError, VerificationError: the silo is enrolled nowhere, or with other keys than it has.
    """

    def __init__(self, silo: Silo) -> None:
        plain = silo.settings.ledger.durability == "process"
        self._silo = silo
        self._folder = silo.folder / FOLDER
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._enrolment: Enrolment = enrolment(silo.folder)
        self._key = ledger_key(silo.folder / "keys", silo.passphrase, simulated=plain)
        if public_hex(self._key) != self._enrolment.member.ledger_key:
            raise SettingError(
                f"the keys of {silo.folder} are not those of the roster that it knows: a change of keys was begun; "
                "end it with fedsilo-silo enrol --install ANSWER"
            )
        self._transport = transport_key(silo.folder / "keys", silo.passphrase, simulated=plain)
        self._stop = threading.Event()
        self._child = Child(silo.folder, silo.passphrase, self._stop.is_set)
        self._runs: dict[int, RunFacts] = {}
        self._seen = self._read_seen()
        self._idle_since = 0.0
        self._attempt = 0
        self._status: dict[str, Any] = {}
        self.meters = Meters()

    # --- life -----------------------------------------------------------------------------------------------

    def stop(self, *_: object) -> None:
        """End soon: what is being trained is killed and taken up again by the next start, if there is time left."""
        self._stop.set()

    def run(self) -> None:
        """Serve until `stop`, through every loss of the connection."""
        self._child.start()
        try:
            while not self._stop.is_set():
                connection = Connection(
                    self._silo.settings.server or self._enrolment.answer.address,
                    self._enrolment.answer.authority,
                    self._transport,
                )
                try:
                    node = connection.activate()
                    self._say("online", node=node)
                    try:
                        with self._beating(connection):
                            self._serve_through(connection, node)
                    finally:
                        with suppress(Unreachable, TurnedAway):
                            connection.deactivate()
                except Unreachable as error:
                    self._say("unreachable", why=str(error))
                except TurnedAway as error:
                    self._say("turned away", why=str(error))
                finally:
                    connection.close()
                self._attempt += 1
                self._stop.wait(pause(self._attempt))
        finally:
            self._child.kill()
            self._say("stopped")

    @contextmanager
    def _beating(self, connection: Connection) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(0.8 * HEARTBEAT_S):
                with suppress(Unreachable, TurnedAway):
                    connection.heartbeat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=1)

    def _serve_through(self, connection: Connection, node: int) -> None:
        """Serve until `stop`; while the coordinator is away the node stays the one that it knows."""
        while not self._stop.is_set():
            try:
                self._serve(connection, node)
            except Unreachable as error:
                self._say("unreachable", why=str(error))
                self._attempt += 1
                self._stop.wait(pause(self._attempt))

    def _serve(self, connection: Connection, node: int) -> None:
        self._finish_what_was_begun(connection)
        while not self._stop.is_set():
            found = connection.pull()
            self._attempt = 0
            self._say("online", node=node)
            if found is None:
                idle_s = _OF_IDLE_TIME * (time.monotonic() - self._idle_since)
                self._stop.wait(min(_LONGEST_POLL_S, max(_SHORTEST_POLL_S, idle_s)))
                continue
            try:
                task = self._fetched(connection, *found)
            except TurnedAway as error:  # its run has ended meanwhile
                self._log(logging.WARNING, f"a message could not be fetched: {error}")
                continue
            self._work(connection, task)

    def _fetched(self, connection: Connection, message: Message, tree: Any) -> Task:
        """Return a message with its content, on disk before the coordinator is told that it has arrived."""
        known = self._know(connection, message.metadata.run_id)
        whole = connection.content(message, tree, self._stop.is_set)
        task = Task(message=whole, config=dict(known.config), sealed=_sealed(whole))
        self._keep(task)
        connection.confirm(whole)
        return task

    def _know(self, connection: Connection, run: int) -> RunFacts:
        """Return what the coordinator says of a run, asked once."""
        if run not in self._runs:
            self._runs[run] = connection.run(run)
        return self._runs[run]

    def _finish_what_was_begun(self, connection: Connection) -> None:
        """Send the answer, or work on the message, that an earlier process left."""
        outbox, inbox = self._folder / "outbox.bin", self._folder / "inbox.bin"
        begun = outbox if outbox.exists() else inbox
        if begun.exists():
            connection.expect(begun.stat().st_size)
        if outbox.exists():
            self._send(connection, from_bytes(outbox.read_bytes()))  # or learn that nobody waits any more
        elif inbox.exists():
            task = self._kept()
            if task is None or task.left_s <= 0:
                inbox.unlink()
                return
            try:
                self._know(connection, task.message.metadata.run_id)
            except TurnedAway:  # its run has ended meanwhile
                inbox.unlink()
                return
            self._work(connection, task, again=True)

    # --- one message ----------------------------------------------------------------------------------------

    def _work(self, connection: Connection, task: Task, *, again: bool = False) -> None:
        facts = task.message.metadata
        self._say("working", run=facts.run_id, group=facts.group_id, kind=facts.message_type)
        try:
            self._admit(task, again=again)
            reply, outcome = from_bytes(self._child.call(*self._handed_on(task), max(0.0, task.left_s))), "answered"
        except _AnsweredError:
            self._log(logging.WARNING, f"message {facts.message_id[:12]} came again: the same bytes answer")
            reply = from_bytes((self._folder / "last.bin").read_bytes())
            reply, outcome = Message(reply.content, reply_to=task.message), "answered again"
        except Killed:
            if self._stop.is_set():
                return  # the inbox is kept
            self._log(logging.ERROR, f"message {facts.message_id[:12]} was stopped by the watchdog")
            reply, outcome = _refused(task, RefusalCode.INTERNAL), "stopped"
        except (ProtocolError, VerificationError) as error:
            self._log(logging.WARNING, f"message {facts.message_id[:12]} is refused: {error}")
            reply, outcome = _refused(task, RefusalCode.PROTOCOL), "refused"
        self.meters.messages[outcome] += 1
        self._sign(reply, task)
        replace_file(self._folder / "outbox.bin", to_bytes(reply))
        self._send(connection, reply)
        self._idle_since = time.monotonic()

    def _handed_on(self, task: Task) -> tuple[dict[str, Any], bytes]:
        """Return what the worker gets of a task, which keeps no content here: it may be a large model."""
        header, body = {"node": task.message.metadata.dst_node_id, "config": task.config}, to_bytes(task.message)
        task.message.content.clear()
        return header, body

    def _admit(self, task: Task, *, again: bool) -> None:
        """Raise unless the coordinator has signed this message for this silo, and it is new.

        Raises:
            ProtocolError, VerificationError: it is refused.
        """
        facts = task.message.metadata
        sealed, roster = envelope_of(task.message.content)
        order = open_envelope(sealed, Instruction, self._enrolment.answer.coordinator)
        if roster:
            self._enrolment = self._enrolment.learn(roster)
        expected = (str(facts.run_id), self._enrolment.member.silo, facts.group_id, facts.message_type)
        if (order.run, order.silo, order.group, order.kind) != expected:
            raise ProtocolError("its envelope is of another message")
        if order.payload != payload_hash(task.message.content):
            raise ProtocolError("it carries something else than was signed")
        if order.roster not in self._enrolment.known():
            raise ProtocolError("the roster in force is none that is known here")
        known = self._runs[facts.run_id]
        if known.bundle != self._enrolment.answer.bundle:
            raise ProtocolError(f"the bundle {known.bundle[:12]} is not the pinned one")
        name = digest(sealed)
        if name in self._seen and not again:
            if (self._folder / "last.bin").exists() and self._seen[-1] == name:
                raise _AnsweredError
            raise ProtocolError("it was worked on before")
        if name not in self._seen:
            self._remember(name)

    def _sign(self, reply: Message, task: Task) -> None:
        answer = Answer(
            silo=self._enrolment.member.silo, instruction=digest(task.sealed), payload=payload_hash(reply.content)
        )
        attach(reply.content, seal(answer, self._key))

    def _send(self, connection: Connection, reply: Message) -> None:
        """Send an answer; where nobody waits for it any more it is kept and not sent again.

        Raises:
            Unreachable: the network is away; the answer stays in the outbox.
        """
        try:
            connection.push(reply)
        except TurnedAway as error:
            self._log(logging.WARNING, f"the answer to {reply.metadata.reply_to_message_id[:12]} is not taken: {error}")
        (self._folder / "outbox.bin").replace(self._folder / "last.bin")
        (self._folder / "inbox.bin").unlink(missing_ok=True)

    # --- files ----------------------------------------------------------------------------------------------

    def _keep(self, task: Task) -> None:
        header = json.dumps({"config": task.config}).encode()
        length = len(header).to_bytes(8, "big")
        replace_file(self._folder / "inbox.bin", length, header, to_bytes(task.message))

    def _kept(self) -> Task | None:
        data = (self._folder / "inbox.bin").read_bytes()
        length = int.from_bytes(data[:8], "big")
        try:
            config = json.loads(data[8 : 8 + length])["config"]
            message = from_bytes(data[8 + length :])
        except (ValueError, KeyError):
            return None
        return Task(message=message, config=config, sealed=_sealed(message))

    def _read_seen(self) -> list[str]:
        path = self._folder / "seen"
        return path.read_text().split()[-_SEEN:] if path.exists() else []

    def _remember(self, name: str) -> None:
        self._seen.append(name)
        if len(self._seen) > 2 * _SEEN:
            self._seen = self._seen[-_SEEN:]
        replace_file(self._folder / "seen", "\n".join(self._seen[-_SEEN:]).encode())

    def _say(self, state: str, **facts: Any) -> None:
        """Write what the node does, for `status`; nothing of it leaves the silo."""
        if (state, facts) == (self._status.get("state"), self._status.get("facts")):
            return
        self.meters.tell(state in ("online", "working"))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._status = {"state": state, "since": now, "facts": facts}
        (self._folder / "status.json").write_text(json.dumps(self._status), encoding="utf-8")
        level = logging.INFO if state in ("online", "working", "stopped") else logging.WARNING
        self._log(level, f"node {state}" + (f": {facts['why']}" if "why" in facts else ""))

    def _log(self, level: int, sentence: str) -> None:
        with suppress(OSError):
            self._silo.log(level, sentence)


class _AnsweredError(Exception):
    """The last instruction came again."""


def _sealed(message: Message) -> bytes:
    try:
        return envelope_of(message.content)[0]
    except (ProtocolError, ValueError):
        return b""


def _refused(task: Task, code: RefusalCode) -> Message:
    return Message(wire.to_record(wire.Refused(code=code)), reply_to=task.message)
