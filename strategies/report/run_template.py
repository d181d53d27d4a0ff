"""The text of a run's report.html; it stands in a .py file because a Flower app bundle carries no .html."""

from __future__ import annotations

RUN = """\
{% from "parts" import top, alarmed, unclaimed, told, limits, number, figure, pairs, lines, grid, sign %}
{% call top("Privacy report: " ~ run.study, "Privacy report", run.study, notes, style) %}
<li>Status: <strong>{{ run.status }}</strong></li>
<li>Finished: <strong><time datetime="{{ run.finished }}">{{ finished }}</time></strong></li>
<li>Rounds: <strong>{{ run.rounds_done }} of {{ run.rounds_planned }}</strong></li>
<li>Silos: <strong>{{ silos|length }}</strong></li>
{% if simulation %}<li><strong>Simulation</strong></li>{% endif %}
{% endcall %}
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
{{ told(claim.sentences) }}
</section>
{% elif alarm %}
{{ alarmed(alarm) }}
{% else %}
{{ unclaimed("No round was finished, so there is nothing yet that a claim could speak of.") }}
{% endif %}
{{ limits(not_covered, void) }}
<nav aria-label="Sections of this page"><ul>
<li><a href="#silos">Silos</a></li><li><a href="#rounds">Rounds</a></li><li><a href="#attack">What it allows</a></li>
<li><a href="#mechanism">Mechanism</a></li>
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
<h3>Ledger evidence</h3>
{% if ledgers.rows %}{{ grid(ledgers) }}{% else %}
<p>None: the statements of the silos carry no position of their ledgers. Each silo's own budget report does.</p>
{% endif %}
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

<section id="attack" aria-labelledby="h-attack">
<h2 id="h-attack">What the releases allow</h2>
{% if numbers %}
<div id="table-numbers">{{ pairs(numbers, "The worst silo's releases of this run, in every number.", "pair") }}</div>
{% endif %}
<div class="two">
{{ figure(charts.profile, "numbers") }}
{{ figure(charts.roc, "numbers") }}
{{ figure(charts.ways, "numbers") }}
{{ figure(charts.steps, "numbers") }}
</div>
</section>

<section id="mechanism" aria-labelledby="h-mechanism">
<h2 id="h-mechanism">Mechanism</h2>
{{ pairs(mechanism, mechanism_caption, "pair") }}
{{ pairs(secure_aggregation, "Masks.", "pair") }}
{% if composition %}{{ pairs(composition, "How losses compose.", "pair") }}{% endif %}
<h3>Who sees what, and who is trusted</h3>
<table class="pair">
<caption><span>Setting and trust.</span></caption>
<thead hidden><tr><th scope="col">Who</th><th scope="col">What</th></tr></thead>
<tbody>
{% for who, what in trust %}
<tr><th scope="row">{{ who }}</th><td>{{ what }}</td></tr>
{% endfor %}
</tbody>
</table>
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
<h3>What is unprotected</h3>
{{ lines(unprotected) }}
<h3>Choices made with the records</h3>
<p>{{ tuning }}</p>
<h3>Audit</h3>
<p>{{ audit.status|capitalize }}: {{ audit.reason }}.</p>
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
{{ figure(charts.utility, "rounds") }}
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
{{ lines(reading) }}
{{ sign() }}
</section>
</main>
<footer>
<p>Fedsilo {{ run.code }}, run {{ run.id }}. {{ support }}</p>
</footer>
</body>
</html>
"""
