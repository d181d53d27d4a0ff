"""The page of a report: says what it must, claims nothing that it may not, needs nothing but itself."""

from __future__ import annotations

import copy
import functools
import html
import itertools
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from pages import numbers_of, numbers_on

from strategies.privacy.events import Gaussian
from strategies.report import numbers as template
from strategies.report import style
from strategies.report.guarantee import guarantee
from strategies.report.numbers import thin
from strategies.report.page import render

HOSTILE = '<script>alert("1")</script>&\'$x_1$'
NUMBERS = guarantee([Gaussian(noise_multiplier=1.2345, sampling_rate=0.125, steps=21)], 1e-5)
METRICS = {"accuracy": 0.9, "auroc": 0.95, "brier": 0.1}


def statement(**changes: Any) -> dict[str, Any]:
    budget = {"epsilon": 8.0, "delta": 1e-6, "gate": "rdp", "order": 3.0, "spent": 6.7001}
    return {
        "silo": "north",
        "run": "r",
        "unit": "patient",
        "neighbouring": "add-or-remove-one",
        "delta": 1e-5,
        "accountant": "pld",
        "epsilon": 2.4321,
        "budget": budget,
        "durability": "process",
        **changes,
    }


def silo(name: str, epsilon: float, odds: float, /, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "rounds": 3,
        "refusal": None,
        "unit": "patient",
        "delta": 1e-5,
        "epsilon": epsilon,
        "epsilon_rdp": 2.7777,
        "epsilon_without_amplification": 11.5,
        "odds": odds,
        "events": [],
        "statement": statement(epsilon=epsilon),
        **changes,
    }


def a_round(number: int) -> dict[str, Any]:
    return {
        "round": number,
        "metrics": dict(METRICS),
        "loss": 0.3,
        "cohort": 2,
        "dropped": number % 2,
        "aggregated": number != 1,
        "epsilon": {"north": number * 0.8107, "south": number * 0.5},
        "seconds": {},
    }


def facts(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "run": {
            "id": "a" * 32,
            "study": "heart",
            "study_digest": "b" * 64,
            "manifest_digest": "c" * 64,
            "status": "complete",
            "code": "0.1.0",
            "rounds_planned": 3,
            "rounds_done": 3,
            "started": "2026-01-02T03:04:05+00:00",
            "finished": "2026-01-02T04:05:06+00:00",
            "model_in": "d" * 64,
            "model_out": "e" * 64,
        },
        "study": {
            "task": "classification",
            "kind": "tabular",
            "target": "dead",
            "features": 4,
            "model": "logistic()",
            "parameters": 5,
            "strategy": "fedavg()",
            "weights": "uniform",
            "optimizer": "sgd(lr=1.0)",
        },
        "privacy": {
            "mechanism": "dp-sgd",
            "unit": "patient",
            "neighbouring": "add-or-remove-one",
            "delta": 1e-5,
            "target_epsilon": 2.5,
            "accountant": "pld",
            "noise_multiplier": 1.2345,
            "clip_norm": 0.75,
            "sampling_rate": 0.125,
            "steps_per_round": 7,
            "expected_batch_size": 16.0,
            "max_records_per_unit": 9,
            "epsilon_if_completed": 2.4999,
            "sampling": "Poisson from entropy",
            "noise": "Gaussian by entropy",
            "floating_point": "Gaussian on a grid",
            "secure_aggregation": False,
            "observer": ["sees everything that {silo} sent", "what each silo sent"],
            "silo_level": None,
        },
        "silos": [silo("north", 2.4321, 0.9194), silo("south", 1.5, 0.8176)],
        "never_joined": ["policy", "policy", "budget"],
        "rounds": [a_round(number) for number in (1, 2, 3)],
        "metrics": dict(METRICS),
        "loss": 0.3,
        "releases": [{"field": "Update.update", "what": "model update", "seen": "clear", "privacy": "released"}],
        "unprotected": ["that the silo took part"],
        "not_covered": ["The silo's own disk is trusted."],
        "numbers": NUMBERS,
        "steps": [
            {"name": "model updates", "from": 0.0, "to": 2.0001, "adds": 2.0001},
            {"name": "metric counts", "from": 2.0001, "to": 2.4321, "adds": 0.432},
        ],
        "trust": [["The server sees", "each silo's update by itself"]],
        "tuning": "Every run is charged.",
        "audit": {"status": "not run", "reason": "there is none yet"},
        "secure_aggregation": {"enabled": False, "evidence": "no masks", "min_silos": 3},
        "void": ["The silo runs other code."],
        "support": "This page supports an assessment.",
        "accuracy_interval": [0.7694, 0.9605],
        "baselines": {"pooled": {"accuracy": 0.97}, "best_local": {"accuracy": 0.88}, "best_silo": "south"},
        "simulation": {
            "dataset": "heart()",
            "partition": "iid",
            "silos": 2,
            "engine": "inline",
            "dropout": 0.1,
            "durability": "process",
            "read_off_the_data": ["training.expected_batch_size = 16"],
            "test_records": 40,
        },
    }
    return {**base, **changes}


def with_privacy(**changes: Any) -> dict[str, Any]:
    return {**facts()["privacy"], **changes}


def unprotected() -> dict[str, Any]:
    bare = {
        "epsilon": None,
        "epsilon_rdp": None,
        "epsilon_without_amplification": None,
        "odds": 1.0,
        "statement": statement(epsilon=None, budget={"epsilon": None, "delta": 1e-5, "spent": None}),
    }
    rounds = [{**a_round(number), "epsilon": {"north": None, "south": None}} for number in (1, 2, 3)]
    return facts(
        privacy=with_privacy(mechanism="none", noise_multiplier=None, target_epsilon=None, epsilon_if_completed=None),
        silos=[silo("north", 0, 0, **bare), silo("south", 0, 0, **bare)],
        rounds=rounds,
        numbers=None,
        steps=[],
        void=[],
    )


def interrupted() -> dict[str, Any]:
    none = {"rounds": 0, "epsilon_rdp": 0.0, "epsilon_without_amplification": 0.0, "statement": None}
    return facts(
        run={**facts()["run"], "status": "interrupted", "rounds_done": 0},
        rounds=[],
        metrics={},
        loss=None,
        numbers=None,
        steps=[],
        silos=[silo("north", 0.0, 0.5, **none), silo("south", 0.0, 0.5, **none)],
        baselines=None,
        simulation=None,
    )


def many() -> dict[str, Any]:
    silos = [
        silo(f"silo-{n:03d}", 2.0, 0.881, statement=statement(budget={**statement()["budget"], "spent": n / 10}))
        for n in range(100)
    ]
    rounds = [a_round(n) for n in range(1, 1001)]
    return facts(silos=silos, rounds=rounds, run={**facts()["run"], "rounds_planned": 1000, "rounds_done": 1000})


VARIANTS = {"private": facts, "none": unprotected, "interrupted": interrupted, "many": many}
variants = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def page_of(variant: str) -> str:
    return render(VARIANTS[variant]())


def text_of(page: str) -> str:
    """The visible words, one space between them."""
    bare = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).split())


class Outline(HTMLParser):
    """Checks that tags nest, and collects tags with their attributes."""

    VOID = ("meta", "br", "input", "link", "hr", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- what the page says ---------------------------------------------------------------------------------------


def test_the_claim_speaks_of_the_worst_silo_with_delta_and_unit() -> None:
    text = text_of(page_of("private"))
    assert "everything that north sent in this run" in text
    assert "a 50:50 guess about one patient (was it used, or not?) to at most 91.94 %" in text
    assert "except with a probability of about δ = 1e-05 (1 in 100,000)" in text
    assert "(ε, δ)-differentially private with ε at most 2.4321 at δ = 1e-05, for one 'patient'" in text
    assert "neighbouring: add or remove one patient" in text
    assert "Ponomareva et al. 2023" in text
    assert "complies" not in text and "comply" not in text


@pytest.mark.parametrize(
    ("value", "tier"),
    [(0.2, "strong"), (1.0, "strong"), (1.0001, "reasonable"), (10.0, "reasonable"), (10.0001, "weak")],
)
def test_the_tier_changes_right_above_1_and_10(value: float, tier: str) -> None:
    assert f'tier-{tier}">{tier}<' in render(facts(rounds=[], silos=[silo("north", value, 0.9, statement=None)]))


def test_the_numbers_of_every_part_are_there() -> None:
    text = text_of(page_of("private"))
    for value in (
        "2.7777",
        "11.5",
        "6.7001 of ε = 8, δ = 1e-06",
        "36.5 % spent",
        "Gaussian by entropy",
        "finds at most",
        "d" * 64,
        "e" * 64,
        "The silo runs other code.",
        "Every run is charged.",
        "Not run: there is none yet.",
        "each silo's update by itself",
        "This page supports an assessment.",
        "1.2345",
        "0.75",
        "0.125",
        "7 in each round",
        "21 in the 3 planned rounds",
        "9 at most",
        "Poisson from entropy",
        "Gaussian on a grid",
        "2.4999",
        "PLD",
        "3 nodes refused the invitation: 2 × policy, 1 × budget.",
        "Update.update",
        "released",
        "that the silo took part",
        "The silo's own disk is trusted.",
        "0.9700",
        "0.8800",
        "heart()",
        "training.expected_batch_size = 16",
        "a" * 32,
        "b" * 64,
        "c" * 64,
        "0.1.0",
        "2026-01-02 04:05 UTC",
    ):
        assert value in text, value


def test_privacy_numbers_are_never_written_smaller_than_they_are() -> None:
    assert [template.privacy(value) for value in (3.0, 0.1, 0.1001, 0.10001, 1e-9, None)] == [
        "3",
        "0.1",
        "0.1001",
        "0.1001",
        "0.0001",
        "unbounded",
    ]
    assert [template.percent(value) for value in (0.5, 0.9526, 0.95261, 1.0)] == ["50 %", "95.26 %", "95.27 %", "100 %"]
    assert template.one_in(3e-5) == "1\N{NO-BREAK SPACE}in\N{NO-BREAK SPACE}33,333"
    assert template.floor(8 - 5.5286) == "2.4714"
    assert template.floor(0.00019) == "0.0001"


def test_without_mechanism_there_is_a_warning_and_no_claim() -> None:
    page = page_of("none")
    text = text_of(page)
    assert 'class="alarm"' in page and "Warning: this run has no differential privacy" in text
    for claim in ("50:50", "tier-", "differentially private", "at most 91", "protected by its noise"):
        assert claim not in text.replace("The guess: from a 50:50", ""), claim
    assert "so no ε is bounded" in text
    assert "without a mechanism there is no noise" in text


def test_a_silo_without_bound_takes_the_claim_away() -> None:
    page = render(facts(rounds=[], silos=[silo("north", 1.0, 0.8), silo("south", 1.0, 1.0, epsilon=None)]))
    assert "Warning: no privacy claim can be made" in page and 'class="claim"' not in page


def test_an_interrupted_run_says_so_and_claims_nothing_of_no_rounds() -> None:
    page = page_of("interrupted")
    text = text_of(page)
    assert "Status: interrupted" in text and "0 of 3 rounds are in this report" in text
    assert "No claim" in text and "50:50 guess about" not in text and 'tier-strong">' not in page


def test_absent_charts_are_named_with_the_reason() -> None:
    text = text_of(page_of("interrupted"))
    assert "Chart not shown: Privacy loss ε over the rounds, worst silo (at δ = 1e-05, per patient). No round" in text
    assert "Chart not shown: Participation. No round was finished." in text
    assert "Chart not shown: Metrics over the rounds. No round was finished." in text
    assert "No silo has sent a statement of its ledger." in text
    assert "<svg" not in page_of("interrupted")


def test_metrics_that_are_not_defined_leave_no_chart_and_no_table() -> None:
    empty = [{**a_round(number), "metrics": {"auroc": None}, "loss": None} for number in (1, 2)]
    text = text_of(render(facts(rounds=empty, metrics={"auroc": None}, loss=None, baselines=None)))
    assert "Chart not shown: Metrics over the rounds. No metric was measured" in text
    partly = [{**a_round(1), "metrics": {"auroc": None}}, {**a_round(2), "metrics": {"auroc": 0.7}}]
    assert "AUROC 0.7000" in text_of(render(facts(rounds=partly, metrics={"auroc": 0.7})))


def test_regression_metrics_have_their_names() -> None:
    values = {"rmse": 12.5, "mae": 9.25, "r2": -0.5}
    text = text_of(render(facts(rounds=[{**a_round(1), "metrics": values}], metrics=values, baselines=None)))
    assert "RMSE lower is better 12.5000" in text and "R² higher is better -0.5000" in text


def test_a_silo_that_states_more_than_was_counted_is_named() -> None:
    text = text_of(render(facts(rounds=[], silos=[silo("north", 1.5, 0.82, statement=statement(epsilon=4.0))])))
    assert "north states more for this run than the coordinator counted: ε = 4 instead of 1.5" in text


@pytest.mark.parametrize(
    "value",
    [
        "text",
        [],
        5,
        {},
        {"delta": "x"},
        {"delta": 1e-5, "budget": []},
        {"delta": 1e-5, "budget": {"epsilon": float("nan"), "delta": True}},
    ],
)
def test_a_statement_of_another_form_is_unreadable_and_breaks_nothing(value: Any) -> None:
    assert "unreadable" in text_of(render(facts(rounds=[], silos=[silo("north", 1.5, 0.82, statement=value)])))


def test_many_silos_and_rounds_are_thinned_and_it_says_so() -> None:
    page = page_of("many")
    assert "The 20 silos that have spent most are shown, of 100." in text_of(page)
    assert "200 of 1000 rounds; all of them stand in report.json." in text_of(page)
    assert len(page) < 400_000


@pytest.mark.parametrize("count", [1, 2, 149, 150, 151, 1000, 99_999])
def test_thinning_keeps_order_the_last_and_the_limit(count: int) -> None:
    kept = thin(count)
    assert kept == sorted(set(kept)) and kept[-1] == count - 1 and len(kept) == min(count, 150)


SAID = {"50", "1", "10", "0", "2", "20", "100", "256", "2023", "80", "2303.00654", "35", "45", "164.514", "2012"}


def test_every_number_of_the_page_is_one_of_the_facts() -> None:
    """Or is made of them by one product or quotient: steps in all, and the share of the budget."""
    made = {str(7 * 3), "36.5"}
    found = numbers_on(page_of("private"))
    assert len(found) > 50 and found - numbers_of(facts()) - SAID - made == set()


# --- how the page is made -------------------------------------------------------------------------------------


def strings(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all strings inside a value."""
    if isinstance(value, str):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in strings(item, (*path, key))]


def test_every_text_is_escaped() -> None:
    hostile = copy.deepcopy(facts())
    paths = [path for path in strings(hostile) if path[-1] not in ("started", "finished")]  # those are parsed as times
    assert len(paths) > 50
    for number, path in enumerate(paths):
        value: Any = hostile
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = f"{number}{HOSTILE}"
    page = render(hostile)
    assert "<script" not in page.lower() and page.count("&lt;script&gt;") > 30
    Outline(page)


def test_hostile_names_of_metrics_and_silos_reach_no_drawing_as_code() -> None:
    lines = [{**a_round(1), "metrics": {HOSTILE: 0.5}, "epsilon": {HOSTILE: 1.0}}]
    page = render(
        facts(rounds=lines, metrics={HOSTILE: 0.5}, silos=[silo(HOSTILE, 1.0, 0.74), silo("診療所 🏥", 1.0, 0.74)])
    )
    assert "<script" not in page and "診療所 🏥" in page
    Outline(page)


@variants
def test_the_same_facts_give_the_same_bytes(variant: str) -> None:
    assert render(VARIANTS[variant]()) == page_of(variant)


@variants
def test_the_page_needs_nothing_but_itself(variant: str) -> None:
    page = page_of(variant)
    assert "http://" not in page and "https://" not in page and "@import" not in page and "<script" not in page
    assert not re.search(r"url\((?!#)", page)
    tags = Outline(page).tags
    links = [
        value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")
    ]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {f"#{name}" for name in ids}
    assert set(links) <= targets and set(re.findall(r"url\((#[^)]*)\)", page)) <= targets
    assert any(attributes.get("http-equiv") == "Content-Security-Policy" for _, attributes in tags)


@variants
def test_headings_landmarks_tables_and_drawings_are_accessible(variant: str) -> None:
    page = page_of(variant)
    tags = Outline(page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    names = [tag for tag, _ in tags]
    assert ("html", {"lang": "en"}) in tags and {"header", "main", "nav", "footer", "title"} <= set(names)
    assert names.count("caption") == names.count("table")
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    ids = {attributes.get("id") for _, attributes in tags}
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        labels = re.search(r'role="img" aria-labelledby="([^"]+)"', drawing)
        assert labels and set(labels[1].split()) <= ids
        assert re.search(r"<title [^>]*>[^<]+</title>\s*<desc [^>]*>[^<]+</desc>", drawing)


def test_drawings_take_the_colours_and_the_font_of_the_page() -> None:
    drawings = re.findall(r"<svg.*?</svg>", page_of("private"), flags=re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(?:id|href)="[^"]*"|url\([^)]*\)', "", drawing))
        assert "var(--" in drawing and "font-family" not in drawing and "DejaVu" not in drawing


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_text_has_a_contrast_of_at_least_4_5(theme: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)  # WCAG's own extreme
    pairs = [("ink", ground) for ground in ("bg", "surface", "note")]
    pairs += [
        (name, ground) for name in ("muted", "strong", "reasonable", "weak", "link") for ground in ("bg", "surface")
    ]
    pairs += [(name, "bg") for name in ("one", "two", "three")] + [("on-alarm", "alarm")]
    assert {
        pair: contrast(theme[pair[0]], theme[pair[1]])
        for pair in pairs
        if contrast(theme[pair[0]], theme[pair[1]]) < 4.5
    } == {}


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    render(facts())
    assert dict(mpl.rcParams) == before


def test_importing_the_page_loads_no_matplotlib() -> None:
    code = "import sys, strategies.report.page; sys.exit(any(m.startswith('matplotlib') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CHROMIUM = shutil.which("chromium")
FRAME = """<!DOCTYPE html><meta charset="utf-8"><iframe id="f" style="width:320px;height:900px;border:0" srcdoc="{page}">
</iframe><p id="r"></p><script>document.getElementById("f").onload = function () {{
var d = this.contentDocument, e = d.documentElement;
document.getElementById("r").textContent = [e.scrollWidth <= 320 ? "fits" : "wide", d.querySelectorAll("svg").length,
getComputedStyle(d.querySelector("h1")).display, d.querySelector("h1").textContent].join(" ")}}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium: not on PATH")
@variants
def test_a_browser_draws_the_page_within_320_pixels(variant: str, tmp_path: Any) -> None:
    page = page_of(variant)
    (tmp_path / "frame.html").write_text(FRAME.format(page=html.escape(page)), encoding="utf-8")
    shown = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    drawings = page.count("<svg")
    assert f'<p id="r">fits {drawings} block heart</p>' in shown.stdout, shown.stderr[-2000:]
