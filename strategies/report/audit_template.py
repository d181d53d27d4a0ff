"""The text of an audit's page; it stands in a .py file because a Flower app bundle carries no .html."""

from __future__ import annotations

AUDIT = """\
{% from "parts" import top, alarmed, told, limits, figure, pairs, lines, grid, sign %}
{% call top("Privacy audit: " ~ study, "Privacy audit", study, [], style) %}
<li>Verdict: <strong>{{ verdict }}</strong></li>
<li>Finished <strong>{{ finished }}</strong></li>
<li>Checks: <strong>{{ conformance.rows|length }}</strong></li>
<li>Canaries: <strong>{{ canaries }}</strong></li>
{% endcall %}
{% if alarm %}
{{ alarmed(alarm) }}
{% else %}
<section class="claim" id="claim" aria-labelledby="h-claim">
<h2 id="h-claim">No contradiction</h2>
<dl class="key">
<div><dt>Claimed, at most</dt><dd class="big">ε = {{ claimed }}</dd>
<dd class="small">at δ = {{ delta }}, per {{ unit }}, by the steps of one silo</dd></div>
<div><dt>Shown by the attack, at least</dt><dd class="big">ε = {{ bound }}</dd>
<dd class="small">at 95 % confidence, whatever the mechanism</dd></div>
<div><dt>For a Gaussian curve</dt><dd class="big">ε = {{ gaussian }}</dd>
<dd class="small">could have shown {{ ceiling }} at most</dd></div>
<div><dt>Noise measured</dt><dd class="big">{{ noise }}</dd>
<dd class="small">{{ noise_note }}</dd></div>
</dl>
{{ told(sentences) }}
</section>
{% endif %}
{{ limits(not_covered, []) }}

<section id="conformance" aria-labelledby="h-conformance">
<h2 id="h-conformance">Is the mechanism the one that is accounted?</h2>
<div id="table-checks">{{ grid(conformance) }}</div>
{{ lines(questions) }}
</section>

<section id="attacks" aria-labelledby="h-attacks">
<h2 id="h-attacks">What attacks found</h2>
<div id="table-attacks">{{ grid(attacks) }}</div>
<div class="two">
{{ figure(charts.roc, "attacks") }}
{{ figure(charts.noise, "checks") }}
</div>
</section>

<section id="audited" aria-labelledby="h-audited">
<h2 id="h-audited">What was audited</h2>
{{ pairs(audited, "The study's training, at one silo.", "pair") }}
</section>

<section id="reading" aria-labelledby="h-reading">
<h2 id="h-reading">How to read this page</h2>
{{ lines(reading) }}
{{ sign() }}
</section>
</main>
<footer>
<p>Study {{ digest }}. An audit finds faults; it never proves a claim.</p>
</footer>
</body>
</html>
"""
