"""A site as `fedsilo-silo` makes it, with records, keys and passphrases, for the tests of approval and the commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from witnesses import witnessed

from client import closing
from client import round as local_round
from client.models.base import MODELS, Shape, build, weights_of
from client.round import finish, join, model_layout, train
from client.silo import Silo
from strategies import wire
from strategies.manifest import CODE_VERSION, Manifest, Member
from strategies.spec import Registries
from strategies.study import Study, override

SILO_WORD, OFFICER_WORD = b"silo's own word", b"officer's own word"
RUN = "0123456789abcdef" * 2
TEXT = """[study]
name = "readmission"
task = "classification"
rounds = 3
[data]
kind = "tabular"
target = "outcome"
classes = ["home", "ward"]
unit = "patient_id"
[data.features]
age = { type = "numeric", min = 18, max = 100 }
crp = { type = "numeric", min = 0.1, max = 300, transform = "log" }
[model]
name = "logistic()"
[training]
sampling_rate = 0.1
steps = 3
expected_batch_size = 8.0
[privacy]
epsilon = 2.0
"""
REGISTRIES = Registries(models=MODELS)
STUDY = Study.parse(TEXT, REGISTRIES)


def changed(**values: object) -> Study:
    """The study with `section__key` values."""
    return Study.parse(override(TEXT, {key.replace("__", "."): value for key, value in values.items()}), REGISTRIES)


def records(path: Path, *, first: int = 0) -> None:
    """Write 160 rows of 80 patients."""
    rows = [
        f"{first + i // 2},{20 + i % 60},{1 + i % 7},{('home', 'ward')[i * 7 % 11 > 5]}" for i in range(160)
    ]  # made up; nothing depends on what is learnt
    path.write_text("\n".join(["patient_id,age,crp,outcome", *rows]) + "\n")


def credentials(folder: Path, silo: bytes = SILO_WORD, officer: bytes = OFFICER_WORD) -> Path:
    """A folder as systemd makes one for a service."""
    folder.mkdir(exist_ok=True)
    (folder / "silo-passphrase").write_bytes(silo + b"\n")
    (folder / "officer-passphrase").write_bytes(officer)
    return folder


def opened(folder: Path) -> Silo:
    """The silo with its passphrase."""
    return Silo.open(folder, SILO_WORD)


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace a text that must be in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def invite(study: Study) -> wire.Invite:
    """The server's question before a run."""
    return wire.Invite(run=RUN, study=study.digest, code=CODE_VERSION, layout=model_layout(study).digest())


def manifest(study: Study, run: str = RUN) -> str:
    """What silos and server have agreed."""
    members = tuple(Member(silo=name, weight=1.0) for name in ("east", "north", "south"))
    layout = model_layout(study).digest()
    return Manifest(run=run, study=study.digest, code=CODE_VERSION, layout=layout, roster=members).to_json()


def request(study: Study, number: int, run: str = RUN) -> wire.Train:
    """The server's message of a round."""
    weights = weights_of(build(study.model, Shape.of_study(study), 7))
    return wire.Train(
        manifest=manifest(study, run),
        round=number,
        received=number - 1,
        heads="",
        receipts="",
        weights=weights,
        broadcast={},
    )


def prepare(message: wire.Train, study: Study, silo: Silo) -> local_round.Job | wire.Update:
    """What the silo does with the request when it comes from an honest coordinator."""
    return local_round.prepare(witnessed(message, silo), study, silo)


def run_to_its_end(silo: Silo, study: Study, run: str = RUN) -> wire.Farewell:
    """Join, every round, and the end, as the client app walks them."""
    join(invite(study), study, silo)
    for number in range(1, study.file.study.rounds + 1):
        job = prepare(request(study, number, run), study, silo)
        assert isinstance(job, local_round.Job)
        finish(job, train([job])[0])
    last = request(study, 1, run)
    close = wire.Close(
        manifest=last.manifest, received=study.file.study.rounds, heads="", receipts="", weights=last.weights
    )
    return closing.close(witnessed(close, silo), study, silo)


def with_budget(silo: Silo, **values: object) -> Silo:
    """The silo with another budget in its policy, which can only be stricter than the registered one."""
    (name, table) = next(iter(silo.policy.budget.items()))
    budget = {name: table.model_copy(update=values)}
    return replace(silo, policy=silo.policy.model_copy(update={"budget": budget}))


def nothing(*_: object) -> None:
    """Stands where records would be read, and must not be."""
    raise AssertionError("records were read")
