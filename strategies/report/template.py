"""The text and the look of report.html, and how numbers are written on it.

The page is one file that needs nothing else: no script, no font, no picture from outside, and a content security
policy that forbids them. Light and dark share one set of named colours, which the charts use too; paper gets the
light ones. It stands in a .py file because a Flower app bundle carries no .html.

Guarantees: autoescape is on and every value passes through it; the one exception is the body of a drawing, whose
texts matplotlib has escaped. A privacy number is never written smaller than it is.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal
from typing import Any

from jinja2 import Environment, StrictUndefined

NOTHING = "–"


def privacy(value: float | None) -> str:
    """Return a privacy number with up to 4 decimals, rounded up where it has more; None is "unbounded"."""
    if value is None or not math.isfinite(value):
        return "unbounded"
    return _plain(Decimal(repr(float(value))).quantize(Decimal("0.0001"), ROUND_CEILING))


def floor(left: float) -> str:
    """Return what is left of a budget with up to 4 decimals, rounded down; a step of 1e-10 is the arithmetic's."""
    return plain(math.floor(left * 10**4 + 1e-6) / 10**4)


def plain(value: float) -> str:
    """Return a setting with up to 4 decimals."""
    return _plain(Decimal(f"{value:.4f}"))


def metric(value: float | None) -> str:
    """Return a metric with 4 decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def percent(share: float) -> str:
    """Return a share as a percentage with up to 2 decimals, rounded up."""
    return f"{_plain((Decimal(repr(float(share))) * 100).quantize(Decimal('0.01'), ROUND_CEILING))} %"


def delta_text(delta: float) -> str:
    """Return delta as it was set, such as 1e-05."""
    return repr(float(delta))


def one_in(delta: float) -> str:
    """Return delta as a chance, the larger one where it does not come out even."""
    return f"1\u00a0in\u00a0{math.floor(1 / delta + 1e-6):,}"


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def fill(values: dict[str, Any]) -> str:
    """Return the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(style=STYLE, nothing=NOTHING, **values) + "\n"


LIGHT = {
    "bg": "#ffffff",
    "surface": "#f4f6f8",
    "ink": "#1a2027",
    "muted": "#55606c",
    "rule": "#cfd6dd",
    "accent": "#0b5a8a",
    "link": "#0b5a8a",
    "strong": "#1b6b3a",
    "reasonable": "#0b5a8a",
    "weak": "#9a3a00",
    "alarm": "#a3160f",
    "on-alarm": "#ffffff",
    "note": "#fff4dc",
    "one": "#0067a3",
    "two": "#c24a00",
    "three": "#8a4a7a",
    "track": "#e3e8ed",
}
DARK = {
    "bg": "#11161b",
    "surface": "#1a2128",
    "ink": "#e7ebef",
    "muted": "#a7b2bd",
    "rule": "#39444f",
    "accent": "#6cb8ea",
    "link": "#7cc2f0",
    "strong": "#7fd19b",
    "reasonable": "#7cc2f0",
    "weak": "#ffb27a",
    "alarm": "#8f1711",
    "on-alarm": "#ffffff",
    "note": "#3a2f14",
    "one": "#5ab4ee",
    "two": "#ffa04d",
    "three": "#dba0cb",
    "track": "#2c3640",
}


def _colours(named: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in named.items())


STYLE = (
    ":root{color-scheme:light dark;"
    + _colours(LIGHT)
    + """}
@media screen and (prefers-color-scheme:dark){:root{"""
    + _colours(DARK)
    + """}}
*{box-sizing:border-box}
html{background:var(--bg);color:var(--ink);-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  overflow-wrap:break-word}
header,main,footer{max-width:58rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.5rem}
h1{font-size:clamp(1.6rem,1.2rem + 2vw,2.3rem);line-height:1.15;margin:.2rem 0 .8rem;letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.25;margin:0 0 .8rem;letter-spacing:-.005em}
h3{font-size:1.02rem;margin:1.8rem 0 .5rem}
p,ul{margin:0 0 .9rem;max-width:46rem}
ul{padding-left:1.2rem}li{margin:.3rem 0}
a{color:var(--link);text-underline-offset:.15em}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:2px}
section{margin:0 0 1rem;padding:2rem 0 .6rem;border-top:1px solid var(--rule)}
.over{font-size:.82rem;letter-spacing:.08em;text-transform:uppercase;color:var(--muted);margin:0}
.facts{display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;margin:0 0 1.4rem;padding:0;list-style:none;color:var(--muted);
  max-width:none}
.facts li{margin:0}.facts strong{color:var(--ink)}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--bg);padding:.5rem 1rem;z-index:1}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:0;padding:.8rem 0;font-size:.92rem;
  border-top:1px solid var(--rule);max-width:none}nav li{margin:0}
.claim{border:1px solid var(--rule);border-left:6px solid var(--accent);border-radius:6px;background:var(--surface);
  padding:1.5rem;margin:0 0 1.5rem}
.claim>:last-child{margin-bottom:0}
.claim .plain{font-size:1.14rem;line-height:1.5}
.alarm{background:var(--alarm);color:var(--on-alarm);border:0;border-radius:6px;padding:1.5rem;margin:0 0 1.5rem}
.alarm h2{font-size:1.6rem}.alarm>:last-child{margin-bottom:0}
.note{background:var(--note);border-left:6px solid var(--weak);border-radius:6px;padding:.9rem 1.2rem;margin:0 0 1rem;
  max-width:none}
.key{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,10rem),1fr));gap:1.1rem 1.5rem;
  margin:0 0 1.4rem}
.key div{display:flex;flex-direction:column}
.key dt{font-size:.86rem;color:var(--muted)}
.key dd{margin:0}
.key .big{font-size:1.75rem;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums;letter-spacing:-.01em;
  overflow-wrap:anywhere}
.key .small{font-size:.86rem;color:var(--muted)}
.tier-strong{color:var(--strong)}.tier-reasonable{color:var(--reasonable)}.tier-weak{color:var(--weak)}
.scroll{overflow-x:auto;margin:0 0 1rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--muted);font-size:.88rem;padding:0 0 .5rem}
caption span{display:block;max-width:min(52rem,100vw - 2.5rem)}table+table{margin-top:1.6rem}
th,td{text-align:left;vertical-align:top;padding:.45rem 1rem .45rem 0;border-bottom:1px solid var(--rule)}
thead th{font-weight:600;vertical-align:bottom;border-bottom:2px solid var(--ink)}
tbody th{font-weight:600;white-space:nowrap}
tbody tr:last-child>*{border-bottom:0}
th small,td small{display:block;font-weight:400;color:var(--muted);font-size:.86em}
.num{text-align:right}td.num{white-space:nowrap}
.pair tbody th{width:17rem;white-space:normal}
.wide table{min-width:44rem}
.silos tbody th{white-space:normal;min-width:7.5rem;overflow-wrap:anywhere}.silos thead .num{min-width:5.4rem}
.left table{min-width:36rem}
.even th,.even td{width:25%}
code{font:.92em ui-monospace,"SFMono-Regular",Menlo,"Liberation Mono",monospace;overflow-wrap:anywhere}
.id tbody th{width:11rem}
figure{margin:1.2rem 0 1.6rem}
figcaption,.absent{font-size:.92rem;color:var(--muted);max-width:46rem}
.title{font-weight:600;color:var(--ink);margin:0 0 .4rem}
.absent{border:1px dashed var(--rule);border-radius:6px;padding:.8rem 1rem;max-width:none}
.absent strong{color:var(--ink)}
svg{display:block;width:100%;min-width:34rem;height:auto;font-family:inherit;stroke-linejoin:round}
details{margin:0 0 1rem}summary{cursor:pointer;color:var(--link);padding:.2rem 0}
.cols{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 2.5rem}
.cols h3{margin-top:0}
.sign tbody tr:last-child>td{height:3.2rem;width:33%;border-bottom:1px solid var(--ink)}
footer{padding-bottom:3rem;color:var(--muted);font-size:.9rem}
@media (max-width:40rem){.pair tbody tr,.id tbody tr{display:block;border-bottom:1px solid var(--rule);padding:.4rem 0}
  .pair tbody th,.pair tbody td,.id tbody th,.id tbody td{display:block;width:auto;border:0;padding:.05rem 0}
  .claim,.alarm{padding:1.1rem}}
@page{margin:16mm 14mm}
@media print{html{color-scheme:light;font-size:9pt}body{line-height:1.4}header,main,footer{max-width:none;padding:0}
  header{padding-top:0}nav,.skip,.screen,details:not([open]){display:none}section{padding:1rem 0 0;margin:0 0 .6rem}
  h1,h2,h3,caption,.title{break-after:avoid}.pair,.id,tr,figure,.claim,.alarm,.note,.key div,li{break-inside:avoid}
  thead:not([hidden]){display:table-header-group}.scroll{overflow:visible}.scroll table,svg{min-width:0}
  caption span{max-width:none}svg{max-width:14cm}
  .claim,.note{border:1px solid var(--ink);border-left-width:4px;background:none}a{color:inherit;text-decoration:none}
  .alarm{border:3px solid var(--alarm);-webkit-print-color-adjust:exact;print-color-adjust:exact}
  p,li{orphans:3;widows:3}}
"""
)

PAGE = """\
{% macro number(cell) %}<td class="num">{{ cell }}</td>{% endmacro %}
{% macro figure(chart, where) %}
{% if chart.body %}
<figure>
<p class="title" id="chart-{{ chart.key }}">{{ chart.title }}</p>
<div class="scroll" role="region" tabindex="0" aria-labelledby="chart-{{ chart.key }}">
<svg viewBox="0 0 {{ chart.width }} {{ chart.height }}" role="img" \
aria-labelledby="{{ chart.key }}-title {{ chart.key }}-desc">
<title id="{{ chart.key }}-title">{{ chart.title }}</title>
<desc id="{{ chart.key }}-desc">{{ chart.text }}</desc>
{{ chart.body|safe }}
</svg>
</div>
<figcaption>{{ chart.text }}
<span class="screen">Numbers: <a href="#table-{{ where }}">table of {{ where }}</a>.</span>\
</figcaption>
</figure>
{% else %}
<p class="absent"><strong>Chart not shown: {{ chart.title }}.</strong> {{ chart.reason }}</p>
{% endif %}
{% endmacro %}
{% macro pairs(rows, caption, kind) %}
<table class="{{ kind }}">
<caption><span>{{ caption }}</span></caption>
<thead hidden><tr><th scope="col">What</th><th scope="col">Value</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.name }}</th><td>\
{% if kind == "id" %}<code>{{ row.value }}</code>{% else %}{{ row.value }}{% endif %}\
{% if row.note %}<small>{{ row.note }}</small>{% endif %}</td></tr>
{% endfor %}
</tbody>
</table>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>Privacy report: {{ run.study }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<a class="skip" href="#claim">Skip to the claim</a>
<header>
<p class="over">Privacy report</p>
<h1>{{ run.study }}</h1>
<ul class="facts">
<li>Status: <strong>{{ run.status }}</strong></li>
<li>Finished: <strong><time datetime="{{ run.finished }}">{{ finished }}</time></strong></li>
<li>Rounds: <strong>{{ run.rounds_done }} of {{ run.rounds_planned }}</strong></li>
<li>Silos: <strong>{{ silos|length }}</strong></li>
{% if simulation %}<li><strong>Simulation</strong></li>{% endif %}
</ul>
</header>
<main>
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% if claim %}
<section class="claim" id="claim" aria-labelledby="h-claim">
<h2 id="h-claim">The claim</h2>
<dl class="key">
<div><dt>Privacy loss, at most</dt><dd class="big">ε = {{ claim.epsilon }}</dd>
<dd class="small">at δ = {{ claim.delta }} ({{ claim.one_in }}), per {{ unit }}</dd></div>
<div><dt>Unit of privacy</dt><dd class="big">{{ unit }}</dd>
<dd class="small">neighbouring: {{ claim.neighbouring }}</dd></div>
<div><dt>A 50:50 guess, at most</dt><dd class="big">{{ claim.odds }}</dd>
<dd class="small">in the worst silo, {{ claim.silo }}</dd></div>
<div><dt>Tier</dt><dd class="big tier-{{ claim.tier }}">{{ claim.tier }}</dd>
<dd class="small">{{ claim.range }}</dd></div>
</dl>
{% for sentence in claim.sentences %}
<p{% if loop.first %} class="plain"{% endif %}>{{ sentence }}</p>
{% endfor %}
</section>
{% elif alarm %}
<section class="alarm" id="claim" aria-labelledby="h-claim">
<h2 id="h-claim">{{ alarm.title }}</h2>
{% for sentence in alarm.sentences %}
<p>{{ sentence }}</p>
{% endfor %}
</section>
{% else %}
<section class="claim" id="claim" aria-labelledby="h-claim">
<h2 id="h-claim">No claim</h2>
<p>No round was finished, so there is nothing yet that a claim could speak of.</p>
</section>
{% endif %}
<nav aria-label="Sections of this page"><ul>
<li><a href="#silos">Silos</a></li><li><a href="#rounds">Rounds</a></li><li><a href="#mechanism">Mechanism</a></li>
<li><a href="#left">What left each silo</a></li><li><a href="#limits">Limits</a></li>
<li><a href="#utility">Usefulness</a></li>{% if simulation %}<li><a href="#simulation">Simulation</a></li>{% endif %}
<li><a href="#identity">Identity</a></li><li><a href="#reading">How to read this</a></li>
</ul></nav>

<section id="silos" aria-labelledby="h-silos">
<h2 id="h-silos">Silos</h2>
{% if silos %}
<div class="scroll wide" role="region" tabindex="0" aria-label="Table of silos">
<table id="table-silos" class="silos">
<caption><span>{{ silo_caption }}</span></caption>
<thead><tr><th scope="col">Silo</th><th scope="col" class="num">Rounds</th>
{% for name, small in silo_columns %}
<th scope="col" class="num">{{ name }}<small>{{ small }}</small></th>
{% endfor %}
<th scope="col">Refusal</th></tr></thead>
<tbody>
{% for silo in silos %}
<tr><th scope="row">{{ silo.name }}</th>{{ number(silo.rounds) }}
{% for cell in silo.cells %}
<td class="num">{{ cell.value }}{% if cell.note %}<small>{{ cell.note }}</small>{% endif %}</td>
{% endfor %}
<td>{{ silo.refusal }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p>No silo joined this run.</p>
{% endif %}
{% for line in silo_notes %}
<p>{{ line }}</p>
{% endfor %}
<h3>Nodes that never joined</h3>
<p>{{ never_joined }}</p>
{% if codes %}
<ul>
{% for code in codes %}
<li><code>{{ code.name }}</code>: {{ code.value }}</li>
{% endfor %}
</ul>
{% endif %}
{{ figure(charts.budget, "silos") }}
</section>

<section id="rounds" aria-labelledby="h-rounds">
<h2 id="h-rounds">Rounds</h2>
{{ figure(charts.epsilon, "rounds") }}
{{ figure(charts.participation, "rounds") }}
{% if rounds.rows %}
<details id="table-rounds">
<summary>Table of rounds</summary>
<div class="scroll" role="region" tabindex="0" aria-label="Table of rounds">
<table>
<caption><span>{{ rounds.caption }}</span></caption>
<thead><tr><th scope="col">Round</th>
{% for name in rounds.columns %}
<th scope="col" class="num">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rounds.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}{{ number(cell) }}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% endif %}
</section>

<section id="mechanism" aria-labelledby="h-mechanism">
<h2 id="h-mechanism">Mechanism</h2>
{{ pairs(mechanism, mechanism_caption, "pair") }}
</section>

<section id="left" aria-labelledby="h-left">
<h2 id="h-left">What left each silo</h2>
<div class="scroll left" role="region" tabindex="0" aria-label="Table of what left each silo">
<table>
<caption><span>Every field of every message that a silo sends, with the two marks that the code gives it.</span>
</caption>
<thead><tr><th scope="col">Field</th><th scope="col">What it is</th><th scope="col">Seen by the server</th>
<th scope="col">Protection</th></tr></thead>
<tbody>
{% for row in releases %}
<tr><th scope="row"><code>{{ row.field }}</code></th><td>{{ row.what }}</td><td>{{ row.seen }}</td>
<td>{{ row.privacy }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<p>Seen: <em>clear</em>, the server sees the value itself; <em>masked</em>, it sees only a sum over silos. Protection:
<em>public</em>, from settings and not from records; <em>released</em>,
{{ "noised, and counted in the silo's ledger" if noised else "sent as it is: without a mechanism there is no noise" }};
<em>exact</em>, from records and unprotected.</p>
</section>

<section id="limits" aria-labelledby="h-limits">
<h2 id="h-limits">Limits</h2>
<div class="cols">
<div>
<h3>What is unprotected</h3>
<ul>
{% for line in unprotected %}
<li>{{ line }}</li>
{% endfor %}
</ul>
</div>
<div>
<h3>What is not covered</h3>
<ul>
{% for line in not_covered %}
<li>{{ line }}</li>
{% endfor %}
</ul>
</div>
</div>
</section>

<section id="utility" aria-labelledby="h-utility">
<h2 id="h-utility">Usefulness of the model</h2>
{% if utility.rows %}
<p>{{ utility.text }}</p>
<div class="scroll" role="region" tabindex="0" aria-label="Table of final metrics">
<table class="even">
<caption><span>{{ utility.caption }}</span></caption>
<thead><tr><th scope="col">Metric</th>{% for name, small in utility.columns %}<th scope="col" class="num">{{ name }}\
<small>{{ small }}</small></th>{% endfor %}</tr></thead>
<tbody>
{% for row in utility.rows %}
<tr><th scope="row">{{ row.name }}<small>{{ row.note }}</small></th>{% for cell in row.cells %}{{ number(cell) }}\
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% for table in groups %}
<div class="scroll" role="region" tabindex="0" aria-label="Metrics by {{ table.name }}">
<table class="even">
<caption><span>{{ table.caption }}</span></caption>
<thead><tr><th scope="col">{{ table.name }}</th>{% for name in table.columns %}\
<th scope="col" class="num">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row.name }}</th>{% for cell in row.cells %}{{ number(cell) }}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
{{ figure(charts.metrics, "rounds") }}
</section>

{% if simulation %}
<section id="simulation" aria-labelledby="h-simulation">
<h2 id="h-simulation">Simulation</h2>
<p>All silos ran on one machine, as folders. Records did not have to leave an organisation for this run, and no
organisation has agreed to it.</p>
{{ pairs(simulation.rows, "How the silos were made.", "pair") }}
<h3>Read off the data, and so not private</h3>
{% if simulation.notes %}
<ul>
{% for line in simulation.notes %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% else %}
<p>Nothing: the study file itself named every shape, class and batch size.</p>
{% endif %}
</section>
{% endif %}

<section id="identity" aria-labelledby="h-identity">
<h2 id="h-identity">Identity of the run</h2>
{{ pairs(identity, "What this page speaks of. The same facts, for machines, stand in report.json.", "id") }}
{{ pairs(trained, "What was trained.", "pair") }}
</section>

<section id="reading" aria-labelledby="h-reading">
<h2 id="h-reading">How to read this page</h2>
<ul>
{% for line in reading %}
<li>{{ line }}</li>
{% endfor %}
</ul>
<table class="sign">
<caption><span>Read by the data-protection officer</span></caption>
<thead><tr><th scope="col">Name</th><th scope="col">Date</th><th scope="col">Signature</th></tr></thead>
<tbody><tr><td></td><td></td><td></td></tr></tbody>
</table>
</section>
</main>
<footer>
<p>Fedsilo {{ run.code }}, run {{ run.id }}. This page supports a data-protection impact assessment; it does not replace
one.</p>
</footer>
</body>
</html>
"""
