"""Laws of the study file: all problems at once, each with its line and remedy; the digest is the bytes' hash; an override
changes one value and nothing else. Oracles: the values of INTERFACE.md's sample, hashlib, the standard library's tomllib.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from strategies.errors import SettingError, StudyError
from strategies.fedavg import FedAvg
from strategies.optimizers import Sgd
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Exact, Gaussian
from strategies.sections import File
from strategies.spec import STRATEGIES, Registries, Registry
from strategies.study import Study, override, parse_override


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A model without arguments."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A data set without arguments."""


MODELS = Registry(kind="model", classes=(Linear,))
OWN = Registries(models=MODELS)
ALL = Registries(
    models=MODELS,
    datasets=Registry(kind="data set", classes=(Table,)),
    partitions=Registry(kind="partition", classes=(Linear,)),
)

TEXT = """\
# a study
[study]
name = "heart"
task = "classification"   # of what

[data]
kind = "tabular"
target = "ill"
unit = "person"
classes = ["no", "yes"]
[data.features]
"mean age" = { type = "numeric", min = 0, max = 120, transform = "none" }
sex = { type = "categorical", values = ["F", "M"], missing = "refuse" }

[model]
name = "linear()"

[privacy]
epsilon = 3.0             # for the whole study
"""
LINES = TEXT.splitlines()


def parse(text: str, registries: Registries = OWN) -> Study:
    return Study.parse(text, registries)


def problems(text: str, registries: Registries = OWN) -> list[tuple[int | None, str]]:
    with pytest.raises(StudyError) as caught:
        parse(text, registries)
    assert all(line.startswith("study.toml") for line in str(caught.value).splitlines()), "a problem is not one line"
    return [(problem.line, problem.sentence) for problem in caught.value.problems]


def line_of(beginning: str, text: str = TEXT) -> int:
    (number,) = [n for n, line in enumerate(text.splitlines(), start=1) if line.startswith(beginning)]
    return number


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


# --- a valid study ------------------------------------------------------------------------------------------


def test_omitted_keys_have_the_values_of_the_interfaces_sample() -> None:
    file = parse(TEXT).file
    sections = {
        name: getattr(file, name).model_dump() for name in ("study", "strategy", "training", "privacy", "cohort")
    }
    assert sections == {
        "study": {"name": "heart", "task": "classification", "rounds": 20, "seed": 7},
        "strategy": {"name": "fedavg()", "weights": "uniform"},
        "training": {
            "sampling_rate": 0.05,
            "steps": 20,
            "optimizer": "sgd(lr=0.2)",
            "expected_batch_size": None,
            "class_weights": (),
        },
        "privacy": {
            "mechanism": "dp-sgd",
            "clip_norm": 1.0,
            "epsilon": 3.0,
            "noise_multiplier": None,
            "delta": 1e-5,
            "accountant": "pld",
        },
        "cohort": {"min_silos": 3, "fraction": 1.0, "round_timeout_s": 600},
    }
    assert (file.secagg.enabled, file.secagg.max_colluding) == (False, 1)
    assert (file.simulation.silos, file.simulation.partition, file.simulation.engine, file.simulation.dropout) == (
        4,
        "dirichlet(alpha=0.5)",
        "inline",
        0.0,
    )
    assert (file.data.test_share, file.data.max_records_per_unit) == (0.2, 1)
    assert parse(TEXT).metrics == ("accuracy", "auroc", "auprc", "brier")


def test_a_study_holds_what_its_names_stand_for() -> None:
    study = parse(TEXT)
    assert (study.model, study.strategy, study.optimizer) == (Linear(), FedAvg(), Sgd(lr=0.2))
    assert study.unit == "person"
    assert parse(changed('unit = "person"\n', "")).unit == "record"
    assert study.file.data.input_width == 1 + 1 + 2  # a number, its indicator, two categories without one
    age, sex = study.file.data.features.values()
    assert (age.width, sex.width) == (2, 2)
    assert parse(TEXT + '[evaluation]\nmetrics = ["brier"]\n').metrics == ("brier",)


def test_the_digest_is_the_hash_of_the_bytes() -> None:
    text = TEXT + "# Größe\n"
    assert parse(text).digest == hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert parse(TEXT).digest != parse(TEXT + "\n").digest


def test_the_noise_keeps_the_whole_studys_epsilon_or_is_the_one_written() -> None:
    text = changed("epsilon = 3.0 ", "noise_multiplier = 1.5 ")
    written = parse(text)
    event = Gaussian(noise_multiplier=1.5, sampling_rate=0.05, steps=20)
    assert (written.noise_multiplier, written.round_events(), written.private) == (1.5, (event,), True)
    study = parse(TEXT + "[training]\nsampling_rate = 1.0\nsteps = 2\n")
    assert epsilon(study.round_events() * 20, 1e-5) <= 3.0
    less = Gaussian(noise_multiplier=study.noise_multiplier - 1e-4, steps=40)
    assert epsilon([less], 1e-5) > 3.0


def test_without_a_mechanism_every_update_is_exact() -> None:
    study = parse(changed("epsilon = 3.0 ", 'mechanism = "none" '))
    assert (study.private, study.noise_multiplier) == (False, 0.0)
    assert study.round_events() == (Exact(what="model update"),)
    assert epsilon(study.round_events(), 1e-5) == float("inf")


NOISY = '[evaluation]\nrelease = "noisy"\nnoise_multiplier = 30.0\n'


def test_noisy_counts_are_released_every_round_and_at_the_end() -> None:
    text = changed("epsilon = 3.0 ", "noise_multiplier = 1.5 ")
    update, counts = Gaussian(noise_multiplier=1.5, sampling_rate=0.05, steps=20), Gaussian(noise_multiplier=30.0)
    plain, noisy = parse(text), parse(text + NOISY)
    assert (plain.closing_events(), plain.total_events()) == ((), (update,) * 20)
    assert (noisy.round_events(), noisy.closing_events()) == ((update, counts), (counts,))
    assert noisy.total_events() == (update, counts) * 20 + (counts,)
    open_ = parse(changed("epsilon = 3.0 ", 'mechanism = "none" ') + NOISY)  # training stays without protection
    assert open_.total_events() == (Exact(what="model update"), counts) * 20 + (counts,)


def test_the_calibrated_noise_leaves_room_for_the_counts() -> None:
    training = "[training]\nsampling_rate = 1.0\nsteps = 2\n"
    plain, noisy = parse(TEXT + training), parse(TEXT + training + NOISY)
    assert epsilon(noisy.total_events(), 1e-5) <= 3.0
    # plain Gaussians: the inverse squares of their multipliers add up (40 steps, 21 releases of counts)
    left = 1 / (plain.noise_multiplier**2 / 40) - 21 / 30.0**2
    assert noisy.noise_multiplier == pytest.approx((40 / left) ** 0.5, rel=1e-3)
    less = Gaussian(noise_multiplier=noisy.noise_multiplier - 1e-3, steps=40)
    assert epsilon([less, *noisy.closing_events() * 21], 1e-5) > 3.0
    assert noisy.noise_multiplier > plain.noise_multiplier + 0.01


def test_counts_that_cost_more_than_the_studys_epsilon_are_one_sentence() -> None:
    study = parse(TEXT + NOISY.replace("30.0", "2.0"))
    with pytest.raises(
        SettingError, match=r"leaves nothing for training: the metric counts alone cost epsilon 1\d\.\d+"
    ):
        study.total_events()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('classes = ["no", "yes"]', "test_share = 0.0", "data.test_share = 0 holds none out"),
        (
            'task = "classification"   # of what',
            'task = "regression"',
            "data.target_range is missing: with evaluation.release = 'noisy' a regression needs public bounds",
        ),
    ],
    ids=["nothing held out", "no bounds"],
)
def test_counts_without_records_or_bounds_are_refused(old: str, new: str, sentence: str) -> None:
    text = (changed(old, new) + NOISY).replace('classes = ["no", "yes"]\n', "")
    assert [(line, sentence in said) for line, said in problems(text)] == [(line_of("release", text), True)]
    assert parse(text.replace(NOISY, "")).closing_events() == ()


def test_group_columns_are_categorical_features() -> None:
    assert parse(TEXT + '[evaluation]\ngroups = ["sex"]\n').file.evaluation.groups == ("sex",)
    ((line, said),) = problems(TEXT + '[evaluation]\ngroups = ["mean age"]\n')
    assert "evaluation.groups has 'mean age', which is no categorical feature" in said and line is not None


# --- what is wrong is said at once, with line, value and remedy ---------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "at", "sentence"),
    [
        ('name = "heart"', 'name = "heart"\nronds = 3', "ronds", "unknown key 'study.ronds'; did you mean 'rounds'?"),
        ("[privacy]", "[privcy]\nx = 1\n[privacy]", "[privcy]", "unknown key 'privcy'; did you mean 'privacy'?"),
        (
            "max = 120,",
            "max = 120, mx = 3,",
            '"mean age"',
            "unknown key 'data.features.mean age.mx'; did you mean 'max'?",
        ),
        (
            '["F", "M"],',
            '["F", "M"], valuez = 1,',
            "sex",
            "unknown key 'data.features.sex.valuez'; did you mean 'values'?",
        ),
        (
            "epsilon = 3.0 ",
            "zzzzz = 1\nepsilon = 3.0",
            "zzzzz",
            "unknown key 'privacy.zzzzz'; allowed are accountant, clip_norm",
        ),
        (
            "min = 0, ",
            "",
            '"mean age"',
            "data.features.mean age.min is missing: a numeric feature needs public bounds; write min and max",
        ),
        (
            "max = 120, ",
            "",
            '"mean age"',
            "data.features.mean age.max is missing: a numeric feature needs public bounds",
        ),
        ("min = 0, ", "min = 200, ", '"mean age"', "data.features.mean age: min = 200 must be less than max = 120"),
        ('transform = "none"', 'transform = "log"', '"mean age"', "min = 0 must be above 0 with transform = 'log'"),
        ('type = "numeric", ', "", '"mean age"', "data.features.mean age has no type; write type = 'numeric'"),
        (
            '"numeric"',
            '"numerical"',
            '"mean age"',
            "data.features.mean age has type = 'numerical'; allowed are numeric and categorical",
        ),
        (
            '{ type = "categorical", values = ["F", "M"], missing = "refuse" }',
            "3",
            "sex",
            "data.features.sex = 3 is not allowed: it must be a table",
        ),
        ('["F", "M"]', '["F", "F"]', "sex", "data.features.sex: values must be distinct; remove the repeated one"),
        ('["F", "M"]', "[]", "sex", "data.features.sex.values = [] is not allowed: list should have at least 1 item"),
        ('["no", "yes"]', '["no", ["yes"], "so"]', "classes", "data.classes.1: ['yes'] is no category"),
        ('["no", "yes"]', '["no", nan, "so"]', "classes", "data.classes.1: nan is no category"),
        ('["no", "yes"]', '"no"', "classes", "data.classes = 'no' is not allowed: it should be a valid list"),
        (
            '"classification"',
            '"clasification"',
            "task",
            "study.task = 'clasification' is not allowed: it should be 'classification', 'regression'",
        ),
        ('"heart"', '"he art"', "name", "study.name = 'he art' is not allowed"),
        ('"heart"', '"h\\n"', "name", "study.name = 'h\\n' is not allowed"),
        (
            'name = "heart"',
            'name = "heart"\nrounds = 20.0',
            "rounds",
            "study.rounds = 20.0 is not allowed: it should be a valid integer",
        ),
        (
            'name = "heart"',
            'name = "heart"\nrounds = 0',
            "rounds",
            "study.rounds = 0 is not allowed: it should be greater than or equal to 1",
        ),
        (
            "epsilon = 3.0 ",
            "epsilon = true ",
            "epsilon",
            "privacy.epsilon = True is not allowed: it should be a valid number",
        ),
        (
            "epsilon = 3.0 ",
            'epsilon = "3" ',
            "epsilon",
            "privacy.epsilon = '3' is not allowed: it should be a valid number",
        ),
        (
            "epsilon = 3.0 ",
            "epsilon = inf ",
            "epsilon",
            "privacy.epsilon = inf is not allowed: it should be a finite number",
        ),
        (
            "epsilon = 3.0 ",
            "epsilon = -1 ",
            "epsilon",
            "privacy.epsilon = -1 is not allowed: it should be greater than 0",
        ),
        (
            "epsilon = 3.0 ",
            "delta = 1.0\nepsilon = 1 ",
            "delta",
            "privacy.delta = 1.0 is not allowed: it should be less than 1",
        ),
        (
            "epsilon = 3.0 ",
            "",
            "[privacy]",
            "exactly one of privacy.epsilon and privacy.noise_multiplier must be given with mechanism = 'dp-sgd'; add epsilon",
        ),
        (
            "epsilon = 3.0 ",
            "noise_multiplier = 1\nepsilon = 3 ",
            "[privacy]",
            "exactly one of privacy.epsilon and privacy.noise_multiplier must be given with mechanism = 'dp-sgd'; remove one",
        ),
        (
            "epsilon = 3.0 ",
            'epsilon = 1\nmechanism = "none" ',
            "mechanism",
            "have no meaning with mechanism = 'none'; remove them",
        ),
        ('name = "linear()"', "x = 1", "x", "unknown key 'model.x'; allowed are initial, initial_sha256, name"),
        (
            '"linear()"',
            '"linaer()"',
            'name = "linaer',
            "model.name = 'linaer()': there is no model 'linaer'; did you mean 'linear'?",
        ),
        ('"linear()"', '"linear(a=1)"', 'name = "linear', "linear takes no arguments, 'a' was given"),
        (
            "[privacy]",
            '[strategy]\nname = "fedprox(mu=-1)"\n[privacy]',
            'name = "fedprox',
            "fedprox.mu = -1.0 is not allowed: it must be a number of at least 0",
        ),
        (
            "[privacy]",
            '[training]\noptimizer = "sgt()"\n[privacy]',
            "optimizer",
            "there is no optimizer 'sgt'; did you mean 'sgd'?",
        ),
        (
            "[privacy]",
            "[training]\nsampling_rate = 0\n[privacy]",
            "sampling_rate",
            "training.sampling_rate = 0 is not allowed: it should be greater than 0",
        ),
        (
            "[privacy]",
            '[simulation]\npartition = "iid(1)"\n[privacy]',
            "partition",
            "is not of the form name(key=value, ...)",
        ),
        (
            "[privacy]",
            '[evaluation]\nmetrics = ["accuracy", "aurocs"]\n[privacy]',
            "metrics",
            "evaluation.metrics has 'aurocs', which task = 'classification' does not have; did you mean 'auroc'?",
        ),
        (
            "[privacy]",
            "[evaluation]\nmetrics = [1]\n[privacy]",
            "metrics",
            "evaluation.metrics.0 = 1 is not allowed: it should be a valid string",
        ),
        (
            "[privacy]",
            '[evaluation]\nrelease = "masked"\n[privacy]',
            "release",
            "evaluation.release = 'masked' needs secure aggregation; write secagg.enabled = true or release = 'none'",
        ),
        (
            "[privacy]",
            '[evaluation]\nrelease = "noisy"\n[privacy]',
            "release",
            "evaluation.noise_multiplier is missing: with release = 'noisy' the metric counts of every round are noised",
        ),
        (
            "[privacy]",
            "[evaluation]\nnoise_multiplier = 20.0\n[privacy]",
            "noise_multiplier",
            "evaluation.noise_multiplier has a meaning only with evaluation.release = 'noisy'",
        ),
        (
            "[privacy]",
            "[secagg]\nenabled = true\n[cohort]\nmin_silos = 2\n[privacy]",
            "min_silos",
            "cohort.min_silos = 2 is not allowed with secagg.max_colluding = 1: a sum hides a silo among at least 3",
        ),
        (
            "[data]",
            '[secagg]\nenabled = true\n[evaluation]\nrelease = "masked"\n[data]\ntest_share = 0',
            "release",
            "evaluation.release = 'masked' needs records to evaluate on and data.test_share = 0 holds none out",
        ),
        ('target = "ill"\n', "", "[data]", "data.target is missing; name the column to predict"),
        (
            'target = "ill"',
            'target = "sex"',
            "sex",
            "data.target = 'sex' is also a feature; remove it from data.features",
        ),
        ('unit = "person"', 'unit = "sex"', "sex", "data.unit = 'sex' is also a feature; remove it from data.features"),
        (
            'unit = "person"',
            "max_records_per_unit = 3",
            "max_records_per_unit",
            "data.max_records_per_unit needs data.unit",
        ),
        (
            'task = "classification"   # of what',
            'task = "regression"',
            "classes",
            "data.classes has no meaning with task = 'regression'; remove it",
        ),
    ],
    ids=lambda item: item[:40],
)
def test_each_problem_names_line_setting_and_remedy(old: str, new: str, at: str, sentence: str) -> None:
    text = changed(old, new)
    found = problems(text)
    numbers = [n for n, line in enumerate(text.splitlines(), start=1) if line.startswith(at)]
    assert [line for line, said in found if sentence in said] == [numbers[0] if at == "name" else numbers[-1]], found


def test_all_problems_are_said_at_once_in_the_order_of_the_file() -> None:
    text = (
        TEXT.replace('"classification"   # of what', '"sorting"')
        .replace("min = 0, ", "")
        .replace("linear", "liner")
        .replace("epsilon = 3.0 ", "epsilom = 3\nclip_norm = 0 ")
    )
    found = problems(text)
    expected = [
        ("task", "study.task"),
        ('"mean age"', "mean age.min is missing"),
        ('name = "liner', "no model 'liner'"),
        ("epsilom", "did you mean 'epsilon'?"),
        ("clip_norm", "privacy.clip_norm = 0"),
    ]
    assert [line for line, _ in found] == [line_of(beginning, text) for beginning, _ in expected]
    assert all(part in sentence for (_, part), (_, sentence) in zip(expected, found, strict=True))


def test_checks_across_sections_are_said_at_once_too() -> None:
    text = (
        changed("epsilon = 3.0 ", "")
        + '[secagg]\nenabled = true\n[cohort]\nmin_silos = 1\n[evaluation]\nmetrics = ["rmse"]\nrelease = "noisy"\n'
    )
    assert [line for line, _ in problems(text)] == [
        line_of(start, text) for start in ("[privacy]", "min_silos", "metrics", "release")
    ]


def test_missing_sections_are_named() -> None:
    assert problems("") == [
        (None, f"the section [{name}] is missing; add it") for name in ("study", "data", "model", "privacy")
    ]
    assert (1, "study.name is missing; add it to [study]") in problems("[study]\n")


def test_a_table_without_features_is_refused() -> None:
    text = "\n".join(line for line in LINES if not line.startswith(('"mean age"', "sex")))
    ((line, sentence),) = problems(text)
    assert line == line_of("[data]", text)
    assert "data.features is empty" in sentence


def test_another_kind_of_data_needs_no_features() -> None:
    text = "\n".join(line for line in LINES if not line.startswith(('"mean age"', "sex", "target")))
    assert parse(text.replace('"tabular"', '"images"')).file.data.input_width == 0


def test_texts_over_many_lines_move_no_line() -> None:
    text = changed('target = "ill"', 'target = """\n! = 3\nepsilon = 2"""').replace("epsilon = 3.0 ", "epsilon = -1 ")
    assert [line for line, _ in problems(text)] == [len(text.splitlines())]


def test_a_feature_may_have_any_name() -> None:
    text = changed(
        "[data.features]",
        '[data.features]\nnumeric = { type = "numeric", min = 0 }\n"a.b" = { type = "numeric", max = 0 }',
    )
    assert problems(text) == [
        (
            line_of("numeric", text),
            "data.features.numeric.max is missing: a numeric feature needs public bounds; write min and max",
        ),
        (
            line_of('"a.b"', text),
            "data.features.a.b.min is missing: a numeric feature needs public bounds; write min and max",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[", 1),
        ("x = ", 1),
        ("a = 1\nb = = 2", 2),
        ("a = 1\na = 2", 2),
        ("[a]\nx = 1\nx = 2\n[b]\ny = 1", 3),
        ("\n\nx = 'open", 3),
        ("x = 2020-13-45", 1),
        ("\0", 1),
        ("\nx = " + "[" * 50_000, 2),
        ("x = " + "[" * 9_000 + "]" * 9_000, 1),
    ],
    ids=lambda item: repr(item)[:20],
)
def test_a_text_that_is_no_toml_names_its_line(text: str, line: int | None) -> None:
    ((at, sentence),) = problems(text)
    assert at == line
    assert sentence.startswith("this is no valid TOML")


@pytest.mark.parametrize("section", ["study", "data", "model", "privacy", "strategy", "training", "simulation"])
@pytest.mark.parametrize("value", ["3", "'x'", "[1]", "[[1]]", "2020-01-01"])
def test_a_section_that_is_no_table_is_refused(section: str, value: str) -> None:
    document = {name: f"{name} = {{}}" for name in ("study", "data", "model", "privacy")} | {
        section: f"{section} = {value}"
    }
    assert any(
        sentence.startswith(f"{section} = ") and "must be a table" in sentence
        for _, sentence in problems("\n".join(document.values()))
    )


@given(st.text(max_size=40), st.integers(0, len(TEXT)))
def test_no_text_raises_anything_but_study_error(noise: str, at: int) -> None:
    for text in (noise, TEXT[:at] + noise + TEXT[at:], TEXT[:at]):
        try:
            parse(text)
        except StudyError as error:
            assert error.problems


def test_long_values_are_shortened() -> None:
    ((_, sentence),) = problems(changed('"classification"', f'"{"x" * 500}"'))
    assert len(sentence) < 250


# --- registries ---------------------------------------------------------------------------------------------

EACH = """
from dataclasses import dataclass
from strategies.base import PerSiloStrategy
@dataclass(frozen=True, kw_only=True)
class Middle(PerSiloStrategy):
    trim: float = 0.1
"""


def test_a_new_file_is_a_strategy_and_one_that_needs_each_update_refuses_masking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT + '[strategy]\nname = "middle(trim=0.2)"\n'
    assert any("there is no strategy 'middle'" in sentence for _, sentence in problems(text))
    (tmp_path / "middle.py").write_text(EACH, encoding="utf-8")
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    assert "middle" in STRATEGIES.names()
    assert parse(text).strategy.trim == 0.2
    masked = text + "[secagg]\nenabled = true\n"
    at, sentence = problems(masked)[0]
    assert at == line_of('name = "middle', masked)
    assert "needs each silo's update by itself, which secure aggregation hides" in sentence
    assert "such as fedavg()" in sentence
    assert parse(masked.replace("middle(trim=0.2)", "fedavg()")).masked


@pytest.mark.parametrize(
    ("dataset", "known"),
    [("table()", True), ("records.csv", True), ("other()", False), ("table(a=1)", False), ("table", True)],
)
def test_a_reader_that_owns_the_data_sets_checks_their_names(dataset: str, known: bool) -> None:
    text = TEXT + f'[simulation]\ndataset = "{dataset}"\npartition = "linear()"\n'
    assert parse(text).file.simulation.dataset == dataset, "a silo only checks the form"
    if known:
        assert parse(text, ALL).file.simulation.dataset == dataset
    else:
        assert [line for line, _ in problems(text, ALL)] == [line_of("dataset", text)]


# --- overrides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"), [("privacy.epsilon", 1.5), ("study.name", "x"), ("data.unit", "c"), ("data.classes", ["a", "b"])]
)
def test_an_override_changes_one_line_and_keeps_comments(key: str, value: Any) -> None:
    text = override(TEXT, {key: value})
    section, name = key.split(".")
    assert tomllib.loads(text)[section][name] == value
    differing = [old for old, new in zip(LINES, text.splitlines(), strict=True) if old != new]
    assert len(differing) == 1
    assert text.count("#") == TEXT.count("#")


@pytest.mark.parametrize("key", ["training.steps", "study.rounds", "secagg.max_colluding"])
def test_an_override_adds_what_is_not_there(key: str) -> None:
    study = parse(TEXT).with_values({key: 5}, OWN)
    section, name = key.split(".")
    assert getattr(getattr(study.file, section), name) == 5
    assert study.digest == hashlib.sha256(study.text.encode()).hexdigest() != parse(TEXT).digest
    assert parse(TEXT).with_values({}, OWN).text == TEXT


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("epsilon", "'epsilon' is no section.key"),
        ("a.b.c", "'a.b.c' is no section.key"),
        ("privacy.", "is no section.key"),
        (".epsilon", "is no section.key"),
        ("plain.x", "'plain' is a plain value in this file; write it as a section [plain]"),
    ],
)
def test_an_override_without_a_place_is_refused(key: str, sentence: str) -> None:
    with pytest.raises(StudyError, match="--set") as caught:
        override("plain = 3\n" + TEXT, {key: 1})
    assert sentence in str(caught.value)


def test_an_unknown_overridden_key_is_refused_like_any_other() -> None:
    with pytest.raises(StudyError, match=r"unknown key 'privacy\.epsilonn'; did you mean 'epsilon'"):
        parse(TEXT).with_values({"privacy.epsilonn": 1}, OWN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("privacy.epsilon=1", ("privacy.epsilon", 1)),
        ("a.b = 1e-5", ("a.b", 1e-5)),
        ("a.b=true", ("a.b", True)),
        ('a.b="x"', ("a.b", "x")),
        ("a.b=[1, 2]", ("a.b", [1, 2])),
        ("a.b=word", ("a.b", "word")),
        ("a.b=", ("a.b", "")),
        ("a.b=fedprox(mu=0.1)", ("a.b", "fedprox(mu=0.1)")),
        ("a.b=2020-13-45", ("a.b", "2020-13-45")),
        ("a.b=" + "[" * 50_000, ("a.b", "[" * 50_000)),
    ],
    ids=lambda item: repr(item)[:30],
)
def test_an_overrides_value_is_toml_or_a_bare_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected
    assert type(parse_override(text)[1]) is type(expected[1])


@pytest.mark.parametrize("text", ["", "privacy.epsilon", "=1", " = 1"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"section\.key=value"):
        parse_override(text)


def test_every_section_of_the_interface_is_there() -> None:
    assert set(File.model_fields) == {
        "study",
        "data",
        "model",
        "strategy",
        "training",
        "privacy",
        "secagg",
        "cohort",
        "evaluation",
        "simulation",
    }
