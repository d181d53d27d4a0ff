"""Laws of specs: the text names one member, its arguments are literals, nothing that a text says is run.

Oracle: round trips, and plain Python literals.
"""

from __future__ import annotations

import keyword
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import SettingError, nearest
from strategies.optimizers import OPTIMIZERS, Adam, AdamW, Sgd
from strategies.spec import Registry, Spec, names_of, parse_spec, require


@dataclass(frozen=True, kw_only=True)
class Bare:
    """Takes nothing."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """Takes one argument of each type."""

    column: str
    hidden: tuple[int, ...] = (64, 32)
    activation: Literal["relu", "tanh"] = "relu"
    bias: bool = True
    rate: float = 0.5


THINGS = Registry(kind="thing", classes=(Bare, Net))

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
scalars = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=8),
    st.none(),
)
literals = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@given(names, st.dictionaries(names, literals, max_size=4))
def test_a_spec_survives_its_text(name: str, arguments: dict[str, Any]) -> None:
    spec = Spec(name=name, arguments=tuple(arguments.items()))
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("logistic", "logistic", ()),
        ("logistic()", "logistic", ()),
        ("  mlp( hidden = [64, 32] ) ", "mlp", (("hidden", [64, 32]),)),
        ("f(a=b)", "f", (("a", "b"),)),
        ('f(a="b")', "f", (("a", "b"),)),
        ("f(a=true)", "f", (("a", "true"),)),
        ("f(a=-1.5e-3, b=True)", "f", (("a", -0.0015), ("b", True))),
    ],
)
def test_specs_that_are_read(text: str, name: str, arguments: tuple[Any, ...]) -> None:
    assert parse_spec(text) == Spec(name=name, arguments=arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "f(1)",
        "f(*a)",
        "f(**a)",
        "f(a=1, a=2)",
        "f(a=1",
        "f.g()",
        "f()()",
        "f[0]",
        "f; g",
        "f\ng",
        "a=1",
        "f(class=1)",
        "[f]",
        "'f'",
        "None",
        "f\0()",
        "f(a={[]: 1})",
        "f(a={**b})",
        "f(a=-'x')",
        f"f(a={'9' * 5000})",
    ],
)
def test_texts_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(SettingError):
        parse_spec(text)


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').mkdir('{path}')",
        "f(a=__import__('os').mkdir('{path}'))",
        "f(a=(lambda: open('{path}', 'w'))())",
        "f(a=[open('{path}', 'w') for x in [1]])",
        "lambda: open('{path}', 'w')",
        "f(a=open('{path}', 'w'))",
        "f(a=f\"{{open('{path}', 'w')}}\")",
        "(f := open('{path}', 'w'))",
        "f(a=b.c)",
        "f(a=9**9**9)",
        "f(a=[b][0])",
    ],
)
def test_hostile_specs_run_nothing(hostile: str, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    for read in (parse_spec, THINGS.resolve):
        with pytest.raises(SettingError):
            read(hostile.format(path=target))
    assert not target.exists()


@pytest.mark.parametrize(
    "nested",
    [
        "f(a=" + "[" * 50_000,
        "f(a=" + "[" * 150 + "]" * 150 + ")",
        "f(a=" + "-" * 50_000 + "1)",
        "f(a=" + "1+" * 20_000 + "1)",
        "f" * 10 + "(a=" + "f(a=" * 5_000,
        "(" * 50_000,
    ],
    ids=["open", "lists", "signs", "sums", "calls", "brackets"],
)
def test_deep_nesting_is_refused_or_read_but_never_breaks_the_reader(nested: str) -> None:
    try:
        parse_spec(nested)
    except SettingError:
        return
    assert nested.startswith("f(a=[["), "only a literal may be read"


def test_arguments_become_the_members_fields() -> None:
    assert THINGS.resolve("net(column=a, hidden=[1, 2], activation=tanh, bias=false, rate=1)") == Net(
        column="a", hidden=(1, 2), activation="tanh", bias=False, rate=1.0
    )
    assert THINGS.resolve("net(column=b)") == THINGS.resolve('net(column="b")') == Net(column="b")
    assert THINGS.resolve("bare") == THINGS.resolve("bare()") == Bare()
    assert THINGS.names() == ("bare", "net")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nett(column=a)", "there is no thing 'nett'; did you mean 'net'?"),
        ("zzz()", "there is no thing 'zzz'; allowed are bare, net"),
        ("net(colum=a)", "net has no argument 'colum'; did you mean 'column'?"),
        ("bare(a=1)", "bare takes no arguments, 'a' was given"),
        ("net()", "net needs the argument 'column'; write net(column=...)"),
        ("net(column=a, hidden=['x'])", "net: hidden = ['x']: input should be a valid integer"),
        ("net(column=a, rate=fast)", "net: rate = 'fast': input should be a valid number"),
        ("net(column=a, activation=sin)", "net: activation = 'sin': input should be 'relu' or 'tanh'"),
        ("net(column=1)", "net: column = 1: input should be a valid string"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        THINGS.resolve(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgd()", Sgd()),
        ("sgd(lr=0.2, momentum=0.9)", Sgd(lr=0.2, momentum=0.9)),
        ("adam", Adam()),
        ("adamw()", AdamW()),
    ],
)
def test_optimizers_are_found_by_name(text: str, expected: Any) -> None:
    assert OPTIMIZERS.resolve(text) == expected


OUT_OF_RANGE = {
    "lr": ("0", "-1", "1e999"),
    "momentum": ("1", "-0.1"),
    "beta1": ("1.0", "-0.1"),
    "beta2": ("1.0", "-0.1"),
    "weight_decay": ("-1", "1e999"),
}


@pytest.mark.parametrize(
    ("optimizer", "key", "value"),
    [
        (name, field.name, value)
        for name in OPTIMIZERS.names()
        for field in fields(OPTIMIZERS.member(name))
        for value in OUT_OF_RANGE[field.name]
    ],
)
def test_optimizers_refuse_values_out_of_range(optimizer: str, key: str, value: str) -> None:
    with pytest.raises(SettingError, match=rf"^{optimizer}\.{key} = .* is not allowed"):
        OPTIMIZERS.resolve(f"{optimizer}({key}={value})")


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> Registry:
    root = folder / "zoo"
    root.mkdir()
    for name, text in ({"__init__": ""} | files).items():
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "zoo"]:
        monkeypatch.delitem(sys.modules, name)
    return Registry(kind="animal", package="zoo", bases=("Animal",))


CAT = """
from dataclasses import dataclass
class Animal: ...
class Helper: ...
@dataclass(frozen=True, kw_only=True)
class Cat(Animal):
    lives: int = 9
"""


def test_adding_a_file_registers_it_and_listing_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = package(
        tmp_path, monkeypatch, cat=CAT, _hidden=CAT, stone="x = 1", bomb="class Bomb(Animal): ...\nraise SystemExit"
    )
    assert zoo.names() == ("bomb", "cat")
    assert zoo.resolve("cat(lives=7)").lives == 7
    (tmp_path / "zoo" / "lion.py").write_text(CAT.replace("Cat", "Lion"), encoding="utf-8")
    assert zoo.names() == ("bomb", "cat", "lion")
    assert zoo.resolve("lion").lives == 9
    (tmp_path / "zoo" / "lion.py").write_text("y = 2", encoding="utf-8")
    os.utime(tmp_path / "zoo" / "lion.py", ns=(0, 0))  # a clock may be too coarse to tell two writes apart
    assert zoo.names() == ("bomb", "cat")
    with pytest.raises(SettingError, match="there is no animal '_hidden'"):
        zoo.resolve("_hidden()")


def test_require_names_setting_value_and_what_is_allowed() -> None:
    require(True, "a.b", 3, "anything")
    with pytest.raises(SettingError, match=r"^a\.b = 3 is not allowed: it must be even$"):
        require(False, "a.b", 3, "even")


@pytest.mark.parametrize(("members", "text"), [(["a"], "a"), (["a", "b"], "a and b"), ([1, 2, 3], "1, 2 and 3")])
def test_names_in_a_sentence(members: list[object], text: str) -> None:
    assert names_of(members) == text


def test_nearest_offers_one_name_or_all() -> None:
    assert nearest("epsilonn", ["delta", "epsilon"]) == "did you mean 'epsilon'?"
    assert nearest("xyz", ["delta", "epsilon"]) == "allowed are delta, epsilon"
