"""Laws of policy.toml: every key of the interface is read, a value that is none is one sentence, the hash is that of the
file, and a study passes exactly when it is as strict as the policy in each setting.

Oracles: tomllib and hashlib over the same file, the comparison written out here setting by setting.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sites import STUDY, changed

from client.policy import BudgetTable, Policy, Requirements
from strategies.errors import Refusal, RefusalCode, SettingError

INTERFACE = """[budget.cardiology_2024]
epsilon = 8.0
delta = 1e-5
period = "lifetime"
gate = "rdp"
[require]
mechanism = "dp-sgd"
secagg = true
min_cohort = 3
max_sampling_rate = 0.1
max_steps_per_round = 200
allow_models = ["mlp", "cnn", "lstm", "gru", "transformer", "ft_transformer"]
allow_metrics = "masked"
approval = "required"
"""


def read(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_bytes(text.encode())
    return Policy.read(path)


def test_every_key_of_the_interface(tmp_path: Path) -> None:
    policy = read(tmp_path, INTERFACE)
    table, require = policy.budget["cardiology_2024"], policy.require
    assert (table.epsilon, table.delta, table.period, table.gate) == (8.0, 1e-5, "lifetime", "rdp")
    assert (require.mechanism, require.secagg, require.min_cohort) == ("dp-sgd", True, 3)
    assert (require.max_sampling_rate, require.max_steps_per_round) == (0.1, 200)
    assert require.allow_models == ("mlp", "cnn", "lstm", "gru", "transformer", "ft_transformer")
    assert (require.allow_metrics, require.approval) == ("masked", "required")
    assert read(tmp_path, INTERFACE.replace('"rdp"', '"preregistered"')).budget["cardiology_2024"].gate != "rdp"


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    for text in (INTERFACE, INTERFACE + "# ä\n", INTERFACE.replace("\n", "\r\n")):
        assert read(tmp_path, text).sha256 == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(SettingError, match="sha256"):
        read(tmp_path, '_sha256 = "0"\n' + INTERFACE)  # the file cannot say it


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('gate = "rdp"', 'gate = "pld"'),
        ('period = "lifetime"', 'period = "year"'),
        ("epsilon = 8.0", "epsilon = nan"),
        ("epsilon = 8.0", "epsilon = 0"),
        ("delta = 1e-5", "delta = 0"),
        ("delta = 1e-5", "delta = 1"),
        ("delta = 1e-5", ""),
        ("min_cohort = 3", "min_cohort = 0"),
        ("min_cohort = 3", "min_cohorts = 3"),
        ("max_sampling_rate = 0.1", "max_sampling_rate = 0"),
        ("max_sampling_rate = 0.1", "max_sampling_rate = nan"),
        ("max_steps_per_round = 200", "max_steps_per_round = 1.5"),
        ("max_steps_per_round = 200", "max_clip_norm = -1"),
        ('"masked"', '"exact"'),
        ('"required"', '"no"'),
        ('"dp-sgd"', '"dp-ftrl"'),
    ],
)
def test_a_value_that_is_none_is_one_sentence(old: str, new: str, tmp_path: Path) -> None:
    assert old in INTERFACE
    with pytest.raises(SettingError) as wrong:
        read(tmp_path, INTERFACE.replace(old, new))
    assert len(str(wrong.value).splitlines()) == 1 and "policy.toml" in str(wrong.value)


def policy(**require: object) -> Policy:
    table = BudgetTable(epsilon=8.0, delta=1e-5)
    return Policy(budget={"ward": table}, require=Requirements(approval="automatic", **require))  # type: ignore[arg-type]


LIMITS = policy(max_sampling_rate=0.1, max_steps_per_round=10, min_cohort=3, allow_models=("logistic",))
AS_STRICT = {
    "training__sampling_rate": 0.1,
    "training__steps": 10,
    "privacy__clip_norm": 1000.0,
    "privacy__delta": 1e-5,
    "cohort__min_silos": 3,
    "model__name": "logistic()",
}


def test_a_study_at_every_limit_passes() -> None:
    LIMITS.admit(changed(**AS_STRICT), data_root="ward")
    LIMITS.admit(changed(**AS_STRICT | {"privacy__accountant": "rdp"}), data_root="ward")  # more noise, not less


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training__sampling_rate", 0.1001),
        ("training__sampling_rate", 1.0),
        ("training__steps", 11),
        ("privacy__clip_norm", 1000.1),
        ("privacy__clip_norm", 1e9),
        ("privacy__delta", 1.1e-5),
        ("cohort__min_silos", 2),
        ("model__name", "mlp()"),
    ],
)
def test_one_setting_beyond_its_limit_is_refused(key: str, value: object) -> None:
    with pytest.raises(Refusal, match=key.replace("__", r"\.")) as refused:
        LIMITS.admit(changed(**AS_STRICT | {key: value}), data_root="ward")
    assert refused.value.code is RefusalCode.POLICY


def test_the_delta_is_that_of_the_data_root() -> None:
    two = Policy(
        budget={"a": BudgetTable(epsilon=1.0, delta=1e-5), "b": BudgetTable(epsilon=1.0, delta=1e-7)},
        require=Requirements(approval="automatic"),
    )
    two.admit(STUDY, data_root="a")
    for root in ("b", None, "unknown"):  # where the root is not known, the least delta counts
        with pytest.raises(Refusal, match=r"privacy\.delta at most 1e-07; the study has 1e-05"):
            two.admit(STUDY, data_root=root)
