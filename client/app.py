"""The Flower ClientApp of a silo: decode, call, encode.

This is the silo's edge: whatever goes wrong inside, the other side gets a refusal code and no text, and every reply
stands in `egress.jsonl` before it is handed to Flower.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import closing, sums
from client import round as local_round
from client.round import REGISTRIES
from client.silo import PASSPHRASE, Silo, folder_of
from strategies import wire
from strategies.errors import DataError, FedsiloError, LedgerError, ProtocolError, Refusal, RefusalCode, StudyError
from strategies.manifest import Manifest
from strategies.study import Study

Request = TypeVar("Request", wire.Invite, wire.Setup, wire.Train, wire.Count, wire.Unmask, wire.Close, wire.Attest)

app = ClientApp()


@app.query("invite")
def invite(message: Message, context: Context) -> Message:
    """Does this silo take part?"""
    return _answer(message, context, wire.Invite, local_round.join)


@app.query("setup")
def setup(message: Message, context: Context) -> Message:
    """Here are the rules of secure aggregation; which key is yours?"""
    return _answer(message, context, wire.Setup, sums.keyed)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return _answer(message, context, wire.Train, _train)


@app.evaluate("count")
def count(message: Message, context: Context) -> Message:
    """Count how well a model does, under masks."""
    return _answer(message, context, wire.Count, sums.count)


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """One step that ends a masked sum."""
    return _answer(message, context, wire.Unmask, sums.unmask)


@app.query("attest")
def attest(message: Message, context: Context) -> Message:
    """Countersign the heads of the others."""
    return _answer(message, context, wire.Attest, closing.attest)


@app.evaluate()
def close(message: Message, context: Context) -> Message:
    """The run is over."""
    return _answer(message, context, wire.Close, closing.close)


def _train(request: wire.Train, study: Study, silo: Silo) -> wire.Update | wire.MaskedUpdate:
    job = local_round.prepare(request, study, silo)
    if not isinstance(job, local_round.Job):
        return job
    (result,) = local_round.train([job])
    return local_round.finish(job, result)


def _answer(
    message: Message, context: Context, kind: type[Request], handle: Callable[[Request, Study, Silo], wire.Reply]
) -> Message:
    silo: Silo | None = None
    run, last, exact = "", 0, False
    reply: wire.Reply
    try:
        silo = Silo.open(folder_of(context.node_config), PASSPHRASE.get())
        request = wire.from_record(message.content, (kind,))
        run = _run_of(request)
        study = _study(str(context.run_config.get("study", "")))
        last, exact = study.last_release, study.exact_sums
        reply = handle(request, study, silo)
    except Exception as error:  # noqa: BLE001 - the edge of the silo: no exception text may leave
        reply = _refused(silo, error)
    try:
        if silo is not None:
            silo.record_egress(run, _round_of(reply, last), reply, exact=exact)
    except Exception as error:  # noqa: BLE001 - what cannot be recorded does not leave
        reply = _refused(silo, error)
    return Message(wire.to_record(reply), reply_to=message)


def _refused(silo: Silo | None, error: Exception) -> wire.Refused:
    if isinstance(error, FedsiloError):
        code, level, text = _code(error), logging.WARNING, str(error)
    else:
        code, level, text = RefusalCode.INTERNAL, logging.ERROR, "".join(traceback.format_exception(error))
    sentence = f"refused ({code}): {text}"
    try:
        if silo is None:
            raise OSError("no silo folder")
        silo.log(level, sentence)
    except OSError:
        logging.getLogger("fedsilo.silo").log(level, sentence)
    return wire.Refused(code=code)


def _code(error: FedsiloError) -> RefusalCode:
    if isinstance(error, Refusal):
        return error.code
    for kind, code in (
        (StudyError, RefusalCode.STUDY),
        (DataError, RefusalCode.DATA),
        (ProtocolError, RefusalCode.PROTOCOL),
        (LedgerError, RefusalCode.LEDGER),
    ):
        if isinstance(error, kind):
            return code
    return RefusalCode.INTERNAL


def _run_of(request: wire.Instruction) -> str:
    return request.run if isinstance(request, wire.Invite) else Manifest.from_json(request.manifest).run


def _round_of(reply: wire.Reply, last: int) -> int:
    """Return the number of the release that a reply carries; that of a farewell is `last`, other replies have none."""
    if isinstance(reply, wire.Farewell):
        return last
    if isinstance(reply, wire.MaskedCounts):
        return reply.number
    return reply.round if isinstance(reply, wire.Update | wire.MaskedUpdate) else 0


@lru_cache(maxsize=16)
def _study(text: str) -> Study:
    return Study.parse(text, REGISTRIES)
