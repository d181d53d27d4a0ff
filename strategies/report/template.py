"""The frame of every page of a report, and how it is filled.

A page is one file that needs nothing else: no script, no font, no picture from outside, and a content security policy
that forbids them. Templates stand in .py files because a Flower app bundle carries no .html.

Guarantees: autoescape is on and every value passes through it; the one exception is the body of a drawing, whose
texts matplotlib has escaped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from strategies.report.audit_template import AUDIT
from strategies.report.budget_template import BUDGET
from strategies.report.numbers import NOTHING
from strategies.report.run_template import RUN
from strategies.report.style import STYLE


def fill(page: str, values: dict[str, Any]) -> str:
    """Return a page.

    Args:
        page: "run", "budget" or "audit".
        values: what its template names.
    """
    return _environment().get_template(page).render(style=STYLE, nothing=NOTHING, **values) + "\n"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    pages = {"parts": PARTS, "run": RUN, "budget": BUDGET, "audit": AUDIT}
    return Environment(
        loader=DictLoader(pages), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


PARTS = """\
{% macro head(title, style) %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
</head>
{% endmacro %}
{% macro top(title, kind, name, notes, style) %}
{{ head(title, style) }}
<body>
<a class="skip" href="#claim">Skip to the claim</a>
<header>
<p class="over">{{ kind }}</p>
<h1>{{ name }}</h1>
<ul class="facts">
{{ caller() }}
</ul>
</header>
<main>
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% endmacro %}
{% macro alarmed(alarm) %}
<section class="alarm" id="claim" aria-labelledby="h-claim">
<h2 id="h-claim">{{ alarm.title }}</h2>
{% for sentence in alarm.sentences %}
<p>{{ sentence }}</p>
{% endfor %}
</section>
{% endmacro %}
{% macro unclaimed(why) %}
<section class="claim" id="claim" aria-labelledby="h-claim">
<h2 id="h-claim">No claim</h2>
<p>{{ why }}</p>
</section>
{% endmacro %}
{% macro told(sentences) %}
{% for sentence in sentences %}
<p{% if loop.first %} class="plain"{% endif %}>{{ sentence }}</p>
{% endfor %}
{% endmacro %}
{% macro limits(not_covered, void) %}
<div class="cols">
<div>
<h2 class="minor">What is not covered</h2>
{{ lines(not_covered) }}
</div>
{% if void %}
<div>
<h2 class="minor">What would void the claim</h2>
{{ lines(void) }}
</div>
{% endif %}
</div>
{% endmacro %}
{% macro number(cell) %}<td class="num">{{ cell }}</td>{% endmacro %}
{% macro figure(chart, where, called="") %}
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
<span class="screen">Numbers: <a href="#table-{{ where }}">table of {{ called or where }}</a>.</span>\
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
{% macro lines(items) %}
<ul>
{% for line in items %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endmacro %}
{% macro grid(table) %}
<div class="scroll" role="region" tabindex="0" aria-label="{{ table.label }}">
<table{% if table.id %} id="{{ table.id }}"{% endif %}>
<caption><span>{{ table.caption }}</span></caption>
<thead><tr>{% for name, small in table.columns %}<th scope="col"{% if not loop.first %} class="num"{% endif %}>\
{{ name }}{% if small %}<small>{{ small }}</small>{% endif %}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}{{ number(cell) }}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro sign() %}
<table class="sign">
<caption><span>Read by the data-protection officer</span></caption>
<thead><tr><th scope="col">Name</th><th scope="col">Date</th><th scope="col">Signature</th></tr></thead>
<tbody><tr><td></td><td></td><td></td></tr></tbody>
</table>
{% endmacro %}
"""
