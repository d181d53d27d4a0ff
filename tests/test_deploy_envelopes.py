"""Laws of the signed envelopes, both directions: what is asked, and what answers just that, once.

Between the coordinator's Grid and a silo's node stands a post of a few lines that may change, swap, repeat or forge what
it carries. Oracle: nothing but the untouched answer to the very instruction reaches a round.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinators import Consortium, copied, found, server_
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from sites import SILO_WORD

from client import node as node_module
from client.fleet import RunFacts, TurnedAway
from client.node import Node
from client.silo import Silo
from server import envelopes
from server.cohort import ask
from server.envelopes import SignedGrid
from server.home import Home
from server.superlink import pem_of
from strategies import wire
from strategies.bundle import digest as bundle_digest
from strategies.envelope import Answer, Instruction, digest, open_envelope, seal
from strategies.errors import ProtocolError, SettingError
from strategies.proof.entries import public_hex
from strategies.sealed import attach, envelope_of, payload_hash

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
INSTRUCTION = Instruction(
    run="7", silo="north", group="3", kind="train", roster="a" * 64, payload="b" * 64, nonce="c" * 32
)
ANSWER = Answer(silo="north", instruction="d" * 64, payload="e" * 64)


# --- the envelopes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [INSTRUCTION, ANSWER])
def test_an_envelope_opens_as_it_was_sealed_and_no_other_way(value: Any) -> None:
    sealed = seal(value, KEY)
    assert open_envelope(sealed, type(value), public_hex(KEY)) == value
    with pytest.raises(ProtocolError, match="not signed by the key"):
        open_envelope(sealed, type(value), public_hex(OTHER))
    with pytest.raises(ProtocolError):
        open_envelope(sealed, Answer if isinstance(value, Instruction) else Instruction, public_hex(KEY))
    for place in range(len(sealed)):
        for bit in (1, 32):
            changed = bytearray(sealed)
            changed[place] ^= bit
            with pytest.raises(ProtocolError):
                open_envelope(bytes(changed), type(value), public_hex(KEY))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"1" * 5000, b'{"body":1,"signature":2}'])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_envelope(data, Instruction, public_hex(KEY))


def content(**arrays: list[float]) -> RecordDict:
    return RecordDict({name: ArrayRecord({"x": flower_array(values)}) for name, values in arrays.items()})


def flower_array(values: list[float]) -> Any:
    from flwr.app import Array

    return Array(np.array(values, dtype=np.float32))


def test_the_hash_covers_every_array_and_nothing_else_may_travel() -> None:
    one = content(fedsilo=[1, 2, 3], more=[4])
    others = [content(fedsilo=[1, 2, 4], more=[4]), content(fedsilo=[1, 2, 3]), content(fedsilo=[1, 2, 3], mora=[4])]
    assert payload_hash(one) == payload_hash(deepcopy(one))
    assert all(payload_hash(one) != payload_hash(other) for other in others)
    attach(one, b"sealed", b"roster")
    assert payload_hash(one) == payload_hash(content(fedsilo=[1, 2, 3], more=[4]))
    assert envelope_of(one) == (b"sealed", b"roster")
    for extra in (ConfigRecord({"x": 1}), MetricRecord({"x": 1.0})):
        more = content(fedsilo=[1])
        more["extra"] = extra
        with pytest.raises(ProtocolError, match="does not cover"):
            payload_hash(more)
    with pytest.raises(ProtocolError, match="no envelope"):
        envelope_of(content(fedsilo=[1]))


# --- a post between coordinator and silo --------------------------------------------------------------------


class Post:
    """Flower's Grid, and a silo's connection, in one: it carries messages, and does as it is told with them."""

    def __init__(self, nodes: dict[int, bytes]) -> None:
        self.nodes, self.boxes = nodes, {number: [] for number in nodes}  # type: ignore[var-annotated]
        self.replies: list[Message] = []
        self.run = type("Run", (), {"run_id": 7})()
        self.pushed = 0

    def set_run(self, run: Any) -> None: ...

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=number, public_key=key) for number, key in self.nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self.pushed += 1
            message.metadata.__dict__["_message_id"] = f"{self.pushed:064x}"
            message.metadata.__dict__["_run_id"] = 7
            message.metadata.__dict__["_src_node_id"] = 1
            self.boxes[message.metadata.dst_node_id].append(deepcopy(message))
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        wanted, found = set(ids), []
        for message in list(self.replies):
            if message.metadata.reply_to_message_id in wanted:
                self.replies.remove(message)
                found.append(message)
        return found

    # --- as a silo's connection ---

    def expect(self, size: int) -> None: ...

    def push(self, reply: Message) -> None:
        self.replies.append(deepcopy(reply))


@dataclass
class World:
    consortium: Consortium
    post: Post
    grid: SignedGrid
    nodes: dict[str, Node]
    trained: list[str]

    def deliver(self, silo: str, message: Message | None = None) -> None:
        """Hand a silo what is in its box, or another message."""
        number = {name: number for number, name in enumerate(self.nodes, start=11)}[silo]
        for each in [message] if message is not None else self.post.boxes[number]:
            task = node_module.Task(message=deepcopy(each), config={}, sealed=node_module._sealed(each))
            self.nodes[silo]._work(self.post, task)  # type: ignore[arg-type]
        if message is None:
            self.post.boxes[number].clear()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return found(tmp_path_factory.mktemp("made"), ("north", "south"))


@pytest.fixture
def world(tmp_path: Path, made: Consortium) -> World:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    consortium = copied(made, tmp_path)
    home = Home.open(consortium.server)
    roster = home.roster()
    post = Post({11: pem_of(roster.members["north"].transport_key), 12: pem_of(roster.members["south"].transport_key)})
    trained: list[str] = []
    nodes = {}
    for folder in consortium.silos:
        node = Node(Silo.open(folder, SILO_WORD))
        node._runs[7] = RunFacts(bundle=bundle_digest(), config={})
        node._child = Echo(folder.name, trained)  # type: ignore[assignment]
        nodes[folder.name] = node
    grid = SignedGrid(post, roster, home.key())  # type: ignore[arg-type]
    return World(consortium=consortium, post=post, grid=grid, nodes=nodes, trained=trained)


class Echo:
    """Stands for the process that trains: answers with the silo's name and counts."""

    def __init__(self, name: str, trained: list[str]) -> None:
        self.name, self.trained = name, trained

    def call(self, header: Any, body: bytes, timeout_s: float) -> bytes:
        from client.fleet import from_bytes, to_bytes

        message = from_bytes(body)
        self.trained.append(f"{self.name} {message.metadata.group_id}")
        reply = wire.Attested(silo=self.name, head=str(len(self.trained)), countersigned="{}")
        return to_bytes(Message(wire.to_record(reply), reply_to=message))


def asked(world: World, group: str, carry: Callable[[], None], *, silos: tuple[int, ...] = (11, 12)) -> dict[int, Any]:
    """Ask both silos as a round does; `carry` is what the post does while the coordinator waits."""
    request = wire.Attest(manifest="{}", heads="{}")
    done = False
    original = world.post.pull_messages

    def pull(ids: Iterable[str]) -> list[Message]:
        nonlocal done
        if not done:
            done = True
            carry()
        return original(ids)

    world.post.pull_messages = pull  # type: ignore[method-assign]
    world.grid.get_node_ids()
    answers = ask(world.grid, dict.fromkeys(silos, request), group=group, timeout_s=0.3)
    world.post.pull_messages = original  # type: ignore[method-assign]
    return dict(answers.replies)


def both(world: World) -> None:
    world.deliver("north")
    world.deliver("south")


def test_untouched_messages_arrive_both_ways(world: World) -> None:
    replies = asked(world, "1", lambda: both(world))
    assert {number: reply.silo for number, reply in replies.items()} == {11: "north", 12: "south"}
    assert world.trained == ["north 1", "south 1"]


def test_a_message_that_no_silo_could_keep_is_not_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "_LARGEST_BYTES", 100)
    with pytest.raises(SettingError, match=r"a message of \d+ bytes is not allowed .* may take 100"):
        asked(world, "1", lambda: None)
    assert world.post.pushed == 0


def test_a_node_beside_the_roster_is_not_seen(world: World) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    rogue = generate_private_key(SECP384R1()).public_key()
    world.post.nodes[66] = rogue.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert list(world.grid.get_node_ids()) == [11, 12]


CHANGES: dict[str, Callable[[Message], None]] = {
    "payload": lambda m: m.content.array_records["fedsilo"].__setitem__("payload", other_payload()),
    "no envelope": lambda m: m.content.pop("envelope"),
    "an extra record": lambda m: m.content.__setitem__("extra", ConfigRecord({"x": 1})),
    "another group": lambda m: m.metadata.__dict__.__setitem__("_group_id", "2"),
    "another kind": lambda m: m.metadata.__dict__.__setitem__("_message_type", "query.invite"),
    "another run": lambda m: m.metadata.__dict__.__setitem__("_run_id", 8),
    "the payload's type": lambda m: m.content.array_records["fedsilo"]["payload"].__setattr__("dtype", "int8"),
}


def other_payload() -> Any:
    return wire.to_record(wire.Attest(manifest="{}", heads="[]")).array_records["fedsilo"]["payload"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_instruction_is_not_worked_on(world: World, change: str) -> None:
    def carry() -> None:
        for box in world.post.boxes.values():
            for message in box:
                CHANGES[change](message)
        both(world)

    replies = asked(world, "1", carry)
    assert world.trained == [] and not any(isinstance(reply, wire.Attested) for reply in replies.values())


@pytest.mark.parametrize("change", ["payload", "no envelope", "an extra record"])
def test_a_changed_answer_does_not_count(world: World, change: str) -> None:
    def carry() -> None:
        both(world)
        CHANGES[change](world.post.replies[0])

    assert list(asked(world, "1", carry)) == [12]
    assert world.trained == ["north 1", "south 1"]


def test_an_instruction_of_another_coordinator_or_for_another_silo_is_not_worked_on(world: World) -> None:
    world.grid.get_node_ids()
    forged = SignedGrid(world.post, world.grid._roster, OTHER)  # type: ignore[arg-type]
    forged.get_node_ids()
    ask(forged, {11: wire.Attest(manifest="{}", heads="{}")}, group="1", timeout_s=0.01)
    both(world)
    ask(world.grid, {11: wire.Attest(manifest="{}", heads="{}")}, group="1", timeout_s=0.01)
    world.deliver("south", world.post.boxes[11][0])
    assert world.trained == []


def test_an_answer_fits_its_own_instruction_alone(world: World) -> None:
    kept: list[Message] = []

    def first() -> None:
        both(world)
        kept.extend(deepcopy(reply) for reply in world.post.replies[:1])

    def second() -> None:
        (message,) = world.post.boxes[11]
        world.post.boxes[11].clear()
        world.deliver("south")
        kept[0].metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
        world.post.push(kept[0])  # the silo's own, signed, of the round before

    assert set(asked(world, "1", first)) == {11, 12}
    assert list(asked(world, "2", second)) == [12]


def test_nobody_answers_for_another(world: World) -> None:
    def carry() -> None:
        world.deliver("south")
        (asked_,) = world.post.boxes[11]
        reply = Message(
            wire.to_record(wire.Attested(silo="north", head="", countersigned="{}")), reply_to=deepcopy(asked_)
        )
        task = node_module.Task(message=asked_, config={}, sealed=envelope_of(asked_.content)[0])
        world.nodes["south"]._sign(reply, task)  # with its own key: it has no other
        world.post.push(reply)

    assert list(asked(world, "1", carry)) == [12]


def test_replays_duplicates_and_reorders_count_once(world: World, scaled: Callable[..., int]) -> None:
    kept: list[Message] = []
    random_ = random.Random(3)
    hostile, number = 0, 0
    while hostile < scaled(2000, 200):
        before, number = len(world.trained), number + 1

        def carry() -> None:
            nonlocal hostile
            new = [deepcopy(message) for box in world.post.boxes.values() for message in box]
            old = [deepcopy(random_.choice(kept)) for _ in range(4)] if kept else []
            old = [each for each in old if not each.metadata.reply_to_message_id]
            stale = [deepcopy(reply) for reply in kept if reply.metadata.reply_to_message_id][-4:]
            messages = [*new, *new, *old]
            random_.shuffle(messages)
            for box in world.post.boxes.values():
                box.clear()
            world.post.replies.extend(stale)  # answers of earlier rounds
            for message in messages:
                world.deliver("north" if message.metadata.dst_node_id == 11 else "south", message)
            again = deepcopy(world.post.replies[-2:])
            world.post.replies.extend(again)
            kept.extend(new)
            kept.extend(deepcopy(world.post.replies[:2]))
            hostile += len(new) + len(old) + len(stale) + len(again)

        replies = asked(world, str(number), carry)
        assert len(world.trained) == before + 2, "each instruction was worked on once"
        assert set(replies) <= {11, 12}
        assert all(isinstance(reply, wire.Attested | wire.Refused) for reply in replies.values())


def test_asked_again_the_same_bytes_answer(world: World) -> None:
    def carry() -> None:
        (message,) = deepcopy(world.post.boxes[11])
        both(world)
        (first,) = [reply for reply in world.post.replies if reply.metadata.dst_node_id == 1][:1]
        world.deliver("north", message)
        again = world.post.replies[-1]
        assert (
            again.content.array_records["fedsilo"]["payload"].data
            == first.content.array_records["fedsilo"]["payload"].data
        )
        assert envelope_of(again.content) == envelope_of(first.content)

    assert set(asked(world, "1", carry)) == {11, 12}
    assert world.trained == ["north 1", "south 1"]


def test_a_bundle_that_is_not_the_pinned_one_is_not_worked_for(world: World) -> None:
    world.nodes["north"]._runs[7] = RunFacts(bundle="0" * 64, config={})
    replies = asked(world, "1", lambda: both(world))
    assert isinstance(replies[11], wire.Refused) and world.trained == ["south 1"]


def test_a_split_roster_stops_the_run(world: World) -> None:
    home = Home.open(world.consortium.server)
    whole = home.roster_path.read_bytes()
    server_("enrol", "--server", str(home.folder), "--remove", "south")
    one = SignedGrid(world.post, home.roster(), home.key())  # type: ignore[arg-type]
    one.know({"north": 11})
    ask(one, {11: wire.Attest(manifest="{}", heads="{}")}, group="1", timeout_s=0.01)
    world.deliver("north")
    assert world.trained == ["north 1"], "north has learnt that south has left"
    home.roster_path.write_bytes(whole)
    forked = home.roster().add(
        replace(
            home.roster().members["south"],
            silo="other",
            ledger_id="9" * 64,
            ledger_key="8" * 64,
            transport_key="04" + "7" * 192,
        ),
        home.key(),
        "2026-01-31T12:00:00.000Z",
    )
    two = SignedGrid(world.post, forked, home.key())  # type: ignore[arg-type]
    two.know({"north": 11, "south": 12})
    ask(two, dict.fromkeys((11, 12), wire.Attest(manifest="{}", heads="{}")), group="2", timeout_s=0.01)
    both(world)
    assert world.trained == ["north 1", "south 2"], "north has seen another line of rosters"


def test_a_node_that_comes_back_sends_what_it_had(world: World) -> None:
    """A reboot between training and sending, and one between fetching and training."""
    node = world.nodes["north"]
    world.grid.get_node_ids()
    request = {11: wire.Attest(manifest="{}", heads="{}")}
    ask(world.grid, request, group="1", timeout_s=0.01)
    (message,) = world.post.boxes[11]
    task = node_module.Task(message=message, config={}, sealed=node_module._sealed(message))
    node._keep(task)

    class Away:
        def push(self, reply: Message) -> None:
            raise node_module.Unreachable("cut off")

    with pytest.raises(node_module.Unreachable):
        node._work(Away(), task)  # type: ignore[arg-type]
    assert world.trained == ["north 1"]
    again = Node(Silo.open(world.consortium.silos[0], SILO_WORD))
    again._finish_what_was_begun(world.post)  # type: ignore[arg-type]
    assert world.trained == ["north 1"] and len(world.post.replies) == 1
    again._finish_what_was_begun(world.post)  # type: ignore[arg-type]
    assert len(world.post.replies) == 1, "it is sent once"

    ask(world.grid, request, group="2", timeout_s=0.01)
    message = world.post.boxes[11][-1]
    message.metadata.__dict__["_ttl"] = 60.0  # there is time left
    again._keep(node_module.Task(message=message, config={}, sealed=node_module._sealed(message)))
    third = Node(Silo.open(world.consortium.silos[0], SILO_WORD))
    third._runs[7] = RunFacts(bundle=bundle_digest(), config={})
    third._child = node._child
    third._finish_what_was_begun(world.post)  # type: ignore[arg-type]
    assert world.trained == ["north 1", "north 2"]


def test_an_answer_that_is_not_taken_is_not_sent_for_ever(world: World) -> None:
    node = world.nodes["north"]
    world.grid.get_node_ids()
    ask(world.grid, {11: wire.Attest(manifest="{}", heads="{}")}, group="1", timeout_s=0.01)
    (message,) = world.post.boxes[11]

    class Closed:
        def push(self, reply: Message) -> None:
            raise TurnedAway(403, "the run has ended")

    node._work(Closed(), node_module.Task(message=message, config={}, sealed=node_module._sealed(message)))  # type: ignore[arg-type]
    assert not (world.consortium.silos[0] / "state" / "node" / "outbox.bin").exists()
    assert (world.consortium.silos[0] / "state" / "node" / "last.bin").exists()


def test_digests_name_envelopes() -> None:
    assert digest(seal(INSTRUCTION, KEY)) != digest(seal(replace(INSTRUCTION, nonce="0" * 32), KEY))
