"""The text of a silo's privacy budget report; it stands in a .py file because a Flower app bundle carries no .html."""

from __future__ import annotations

BUDGET = """\
{% from "parts" import top, alarmed, unclaimed, told, limits, figure, pairs, lines, grid, sign %}
{% set named = silo or "a ledger that cannot be read" %}
{% call top("Privacy budget report: " ~ silo, "Privacy budget report", named, notes, style) %}
<li>Ledger: <strong>{{ "verified" if ledger.verified else "does not verify" }}</strong></li>
{% if as_of %}<li>As of entry <strong>{{ ledger.last }}</strong>, <strong>{{ as_of }}</strong></li>{% endif %}
<li>Data roots: <strong>{{ roots|length }}</strong></li>
<li>Runs: <strong>{{ runs }}</strong></li>
{% endcall %}
{% if alarm %}
{{ alarmed(alarm) }}
{% elif not claims %}
{{ unclaimed("No data root is registered, so nothing can have been released.") }}
{% endif %}
{% for claim in claims %}
<section class="claim"{% if loop.first %} id="claim"{% endif %} aria-labelledby="h-claim-{{ loop.index }}">
<h2 id="h-claim-{{ loop.index }}">The claim <small>data root {{ claim.root }}</small></h2>
<dl class="key">
<div><dt>Released to date, at most</dt><dd class="big">ε = {{ claim.epsilon }}</dd>
<dd class="small">at δ = {{ claim.delta }} ({{ claim.one_in }}), per {{ claim.unit }}</dd></div>
<div><dt>A 50:50 guess, at most</dt><dd class="big">{{ claim.odds }}</dd>
<dd class="small">by what was sent to date</dd></div>
<div><dt>Budget, for ever</dt><dd class="big">{{ claim.budget }}</dd>
<dd class="small">{{ claim.free }}</dd></div>
<div><dt>Tier</dt><dd class="big tier-{{ claim.tier }}">{{ claim.tier }}</dd>
<dd class="small">{{ claim.range }}</dd></div>
</dl>
{{ told(claim.sentences) }}
</section>
{% endfor %}
{{ limits(not_covered, void) }}
<nav aria-label="Sections of this page"><ul>
{% for root in roots %}<li><a href="#{{ root.id }}">{{ root.name }}</a></li>{% endfor %}
<li><a href="#ledger">Ledger</a></li><li><a href="#trust">Trust and mechanism</a></li>
<li><a href="#reading">How to read this</a></li>
</ul></nav>

{% for root in roots %}
<section id="{{ root.id }}" class="root" aria-labelledby="h-{{ root.id }}">
<h2 id="h-{{ root.id }}">Data root {{ root.name }}</h2>
{{ figure(root.charts.bar, root.id ~ "-numbers", "numbers") }}
<div id="table-{{ root.id }}-numbers">
{{ pairs(root.numbers, "Everything that was ever reserved on these records, in every number.", "pair") }}</div>
{{ figure(root.charts.growth, root.id ~ "-runs", "runs, their ends") }}
<div class="two">
{{ figure(root.charts.profile, root.id ~ "-numbers", "numbers") }}
{{ figure(root.charts.roc, root.id ~ "-numbers", "numbers") }}
{{ figure(root.charts.steps, root.id ~ "-runs", "runs") }}
{{ figure(root.charts.ways, root.id ~ "-numbers", "numbers") }}
</div>
{% if root.runs.rows %}{{ grid(root.runs) }}{% else %}<p>No run has reserved anything on these records.</p>{% endif %}
{% if root.mechanisms.rows %}{{ grid(root.mechanisms) }}{% endif %}
{{ pairs(root.registration, "Registration and gate.", "pair") }}
</section>
{% endfor %}

<section id="ledger" aria-labelledby="h-ledger">
<h2 id="h-ledger">Ledger</h2>
{{ pairs(evidence, "What this page rests on.", "id") }}
{{ pairs(state, "State of the ledger.", "pair") }}
{% if events.rows %}{{ grid(events) }}{% endif %}
</section>

<section id="trust" aria-labelledby="h-trust">
<h2 id="h-trust">Trust and mechanism</h2>
{{ pairs(trust, "Setting, trust, and how the noise is made.", "pair") }}
<h3>Choices made with the records</h3>
<p>{{ tuning }}</p>
<h3>What is unprotected</h3>
{{ lines(unprotected) }}
<h3>Audit</h3>
<p>{{ audit.status|capitalize }}: {{ audit.reason }}.</p>
</section>

<section id="reading" aria-labelledby="h-reading">
<h2 id="h-reading">How to read this page</h2>
{{ lines(reading) }}
{{ sign() }}
</section>
</main>
<footer>
<p>Fedsilo {{ code }}, ledger {{ ledger.id }}. {{ support }}</p>
</footer>
</body>
</html>
"""
