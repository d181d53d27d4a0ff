"""Laws of the silo folder: a wrong file is one sentence, a policy refuses exactly what it names, the folder is chosen by
the environment and never by a message, and what left is written down as `wire.facts` has it.

Oracles: sentences and rules written here by hand, the files as the operating system shows them.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from client.models.base import MODELS
from client.policy import Policy
from client.silo import RunState, Silo, folder_of
from strategies import wire
from strategies.errors import ProtocolError, Refusal, RefusalCode, SettingError
from strategies.spec import Registries
from strategies.study import Study, override

SILO = """name = "north"
[data.records]
path = "data/records.csv"
"""
POLICY = """[budget.records]
epsilon = 8.0
delta = 1e-5
[require]
secagg = false
min_cohort = 3
max_sampling_rate = 0.1
max_steps_per_round = 20
allow_models = ["logistic"]
allow_metrics = "none"
approval = "automatic"
"""
STUDY = """[study]
name = "s"
task = "classification"
[data]
kind = "tabular"
target = "y"
classes = ["a", "b"]
features = { x = { type = "numeric", min = 0, max = 1 } }
[model]
name = "logistic()"
[training]
sampling_rate = 0.1
steps = 20
[privacy]
noise_multiplier = 1.0
[cohort]
min_silos = 3
"""
RUN = "0123456789abcdef" * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "silo.toml").write_text(SILO)
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path


def study(**changes: object) -> Study:
    text = override(STUDY, {key.replace("__", "."): value for key, value in changes.items()})
    return Study.parse(text, Registries(models=MODELS))


# --- opening ------------------------------------------------------------------------------------------------


def test_a_sound_folder_opens(folder: Path) -> None:
    silo = Silo.open(folder)
    assert (silo.name, silo.root()[0], silo.data_path()) == ("north", "records", folder / "data/records.csv")
    assert silo.budget().epsilon == 8.0 and silo.settings.ledger.durability == "power-loss"


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no silo.toml": ("silo.toml", Path.unlink, "is no silo folder: it has no silo.toml; check FEDSILO_SILO"),
    "no policy.toml": ("policy.toml", Path.unlink, "policy.toml is missing; a silo needs a policy"),
    "silo.toml no TOML": ("silo.toml", text("name = "), "silo.toml is no valid TOML"),
    "policy.toml no TOML": ("policy.toml", text("[budget"), "policy.toml is no valid TOML"),
    "silo.toml no text": ("silo.toml", lambda path: path.write_bytes(b"\xff\xfe"), "silo.toml is no valid TOML"),
    "policy.toml no text": ("policy.toml", lambda path: path.write_bytes(b"\xff\xfe"), "policy.toml is no valid TOML"),
    "silo.toml a folder": ("silo.toml", directory, "silo.toml cannot be read: Is a directory"),
    "policy.toml a folder": ("policy.toml", directory, "policy.toml cannot be read: Is a directory"),
    "unknown key": (
        "silo.toml",
        text(SILO.replace("[data", "nmae = 1\n[data")),
        "nmae = 1 is not allowed: extra inputs are not permitted",
    ),
    "bad name": (
        "silo.toml",
        text(SILO.replace("north", "../north")),
        "name = '../north' is not allowed: string should match pattern",
    ),
    "zero weight": (
        "silo.toml",
        text("weight = 0\n" + SILO),
        "weight = 0 is not allowed: input should be greater than 0",
    ),
    "no data": ("silo.toml", text('name = "a"'), "data: field required"),
    "no budget": ("policy.toml", text(""), "budget = {} is not allowed: field required"),
    "negative budget": ("policy.toml", text(POLICY.replace("8.0", "-1")), "budget.records.epsilon = -1 is not allowed"),
    "unknown limit": ("policy.toml", text(POLICY + "min_silos = 3\n"), "require.min_silos = 3 is not allowed"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_file_is_one_sentence(what: str, folder: Path) -> None:
    name, spoil, sentence = BROKEN[what]
    spoil(folder / name)
    with pytest.raises(SettingError) as error:
        Silo.open(folder)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(SettingError, match=str(path)):
            Silo.open(path)


def test_one_data_root_with_a_budget_of_its_own(folder: Path) -> None:
    (folder / "silo.toml").write_text(SILO + '[data.more]\npath = "x.csv"\n')
    with pytest.raises(SettingError, match="names 2 data roots"):
        Silo.open(folder).root()
    (folder / "silo.toml").write_text(SILO.replace("records", "other"))
    with pytest.raises(SettingError, match=r"has no \[budget.other\]"):
        Silo.open(folder).budget()


@pytest.mark.parametrize(
    ("environment", "partition", "expected"),
    [
        ({"FEDSILO_SILO": "/a"}, None, "/a"),
        ({"FEDSILO_SILO": "/a", "FEDSILO_SILOS": "/b"}, 0, "/a"),
        ({"FEDSILO_SILOS": "/b"}, 0, "/b/silo-1"),
        ({"FEDSILO_SILOS": "/b"}, 11, "/b/silo-12"),
        ({"FEDSILO_SILOS": "/b"}, None, None),
        ({"FEDSILO_SILOS": "/b"}, -1, None),
        ({"FEDSILO_SILOS": "/b"}, True, None),
        ({"FEDSILO_SILOS": "/b"}, "../c", None),
        ({}, 0, None),
    ],
)
def test_the_environment_names_the_folder(
    environment: dict[str, str], partition: object, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = {"silo": "/elsewhere", "FEDSILO_SILO": "/elsewhere"} | (
        {} if partition is None else {"partition-id": partition}
    )
    if expected is None:
        with pytest.raises(SettingError):
            folder_of(config)
    else:
        assert folder_of(config) == Path(expected)


# --- policy -------------------------------------------------------------------------------------------------


def test_a_study_within_every_limit_is_admitted(folder: Path) -> None:
    Policy.read(folder / "policy.toml").admit(study())


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("cohort.min_silos", 2, "at least 3"),
        ("training.sampling_rate", 0.11, "at most 0.1"),
        ("training.steps", 21, "at most 20"),
        ("model.name", "mlp()", "one of logistic"),
    ],
)
def test_each_limit_refuses_what_breaks_it_alone(key: str, value: object, limit: str, folder: Path) -> None:
    with pytest.raises(Refusal) as refused:
        Policy.read(folder / "policy.toml").admit(study(**{key.replace(".", "__"): value}))
    assert refused.value.code is RefusalCode.POLICY
    assert f"asks for {key} {limit}; the study has {value}" in str(refused.value)


def test_unprotected_training_needs_a_policy_that_says_so(folder: Path) -> None:
    plain = Study.parse(STUDY.replace("noise_multiplier = 1.0", 'mechanism = "none"'), Registries(models=MODELS))
    with pytest.raises(Refusal, match=r"asks for privacy.mechanism dp-sgd; the study has none"):
        Policy.read(folder / "policy.toml").admit(plain)
    (folder / "policy.toml").write_text(POLICY.replace("[require]", '[require]\nmechanism = "none"'))
    Policy.read(folder / "policy.toml").admit(plain)
    Policy.read(folder / "policy.toml").admit(study())  # a study may always be stricter


def test_secure_aggregation_can_be_required(folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY.replace("secagg = false", "secagg = true"))
    with pytest.raises(Refusal, match=r"secagg.enabled true; the study has False") as refused:
        Policy.read(folder / "policy.toml").admit(study())
    assert refused.value.code is RefusalCode.POLICY


def test_released_metrics_must_be_allowed(folder: Path) -> None:
    agreed = study()
    file = agreed.file.model_copy(update={"evaluation": agreed.file.evaluation.model_copy(update={"release": "noisy"})})
    released = Study(
        text=agreed.text, file=file, model=agreed.model, strategy=agreed.strategy, optimizer=agreed.optimizer
    )
    with pytest.raises(Refusal, match=r"evaluation.release none; the study has noisy"):
        Policy.read(folder / "policy.toml").admit(released)
    (folder / "policy.toml").write_text(POLICY.replace('allow_metrics = "none"', 'allow_metrics = "noisy"'))
    Policy.read(folder / "policy.toml").admit(released)


@pytest.mark.parametrize("line", ['approval = "required"', ""], ids=["written", "default"])
def test_without_approval_nothing_is_admitted(line: str, folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY.replace('approval = "automatic"', line))
    with pytest.raises(Refusal, match="has not been approved") as refused:
        Policy.read(folder / "policy.toml").admit(study())
    assert refused.value.code is RefusalCode.APPROVAL


# --- what leaves, and what stays ----------------------------------------------------------------------------


def test_egress_lines_are_the_facts_of_each_field(folder: Path) -> None:
    silo = Silo.open(folder)
    replies = [
        wire.Accept(silo="north", weight=1.0, head=""),
        wire.Update(silo="north", round=3, head="", countersigned="", update=np.arange(5, dtype=np.float32)),
        wire.Refused(code="data"),
    ]
    for reply in replies:
        silo.record_egress(RUN, 3, reply)
    lines = [json.loads(line) for line in (folder / "egress.jsonl").read_text().splitlines()]
    expected = [asdict(row) for reply in replies for row in wire.facts(reply)]
    assert [{key: line[key] for key in row} for line, row in zip(lines, expected, strict=True)] == expected
    assert {(line["run"], line["round"]) for line in lines} == {(RUN, 3)} and all(line["time"] for line in lines)


def test_the_log_stays_in_the_folder(folder: Path) -> None:
    Silo.open(folder).log(30, "a private fact")
    assert "WARNING a private fact" in (folder / "logs" / "silo.log").read_text()


@pytest.fixture
def state(folder: Path) -> RunState:
    return Silo.open(folder).state(RUN)


def test_the_first_manifest_of_a_run_is_the_only_one(state: RunState) -> None:
    assert [state.agree("ä"), state.agree("ä"), state.agree("b"), state.agree("ä")] == [True, True, False, True]


def test_replies_come_back_as_they_were_and_old_ones_go(state: RunState) -> None:
    assert state.reply(1) is None
    state.keep_reply(1, b"one\0")
    assert state.reply(1) == b"one\0"
    state.keep_reply(2, b"two")
    assert (state.reply(1), state.reply(2)) == (None, b"two")


def test_home_arrays_come_back_as_they_were(state: RunState) -> None:
    assert state.home(0) == {}
    arrays = {"c": np.arange(6, dtype=np.float32), "sliced": np.arange(12, dtype=np.float32)[::2]}
    state.keep_home(1, arrays)
    kept = state.home(1)
    assert kept.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(kept[name], array)
    assert state.home(0) == {} == state.home(1), "of a round that is not gone on from, nothing is kept"


def test_home_arrays_are_those_of_the_round_that_is_gone_on_from(state: RunState) -> None:
    for round in (1, 2, 5):
        state.keep_home(round, {"c": np.full(2, round, np.float32)})
    assert state.home(2)["c"].tolist() == [2, 2]
    state.keep_home(6, {"c": np.zeros(2, np.float32)})
    assert (state.home(2)["c"].tolist(), state.home(6)) == ([2, 2], {})


def test_files_of_a_run_are_the_owners_alone(state: RunState) -> None:
    state.agree("m")
    state.keep_reply(1, b"r")
    state.keep_home(1, {"c": np.zeros(1, np.float32)})
    files = sorted(state.folder.iterdir())
    assert [file.name for file in files] == ["home-000001.safetensors", "manifest.json", "reply-000001.bin"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize(
    "run", ["../../elsewhere", "/tmp/elsewhere", "", ".", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"]
)
def test_a_run_cannot_name_another_folder(run: str, folder: Path) -> None:
    """Found: the server chose the folder that a silo writes to, and out of which it deletes old replies."""
    with pytest.raises(ProtocolError, match="32 hex digits"):
        Silo.open(folder).state(run)


@pytest.mark.parametrize(("durability", "synced"), [("power-loss", 3), ("process", 0)])
def test_what_a_run_keeps_is_synced_where_the_ledger_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, durability: str, synced: int
) -> None:
    (folder / "silo.toml").write_text(f'{SILO}[ledger]\ndurability = "{durability}"\n')
    calls: list[int] = []
    monkeypatch.setattr("os.fsync", calls.append)
    state = Silo.open(folder).state(RUN)
    assert state.agree("manifest")
    state.keep_reply(1, b"reply")
    state.keep_home(1, {"a": np.zeros(1, np.float32)})
    assert len(calls) == synced and state.reply(1) == b"reply" and RunState(folder=folder).durable
