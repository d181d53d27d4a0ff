"""The look of a report: named colours for light and dark, which the charts use too; paper gets the light ones."""

from __future__ import annotations

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
figure{margin:1.2rem 0 1.6rem}figure .scroll{margin:0 0 .3rem}
figcaption,.absent{font-size:.92rem;color:var(--muted);max-width:46rem}
.title{font-weight:600;color:var(--ink);margin:0 0 .4rem}
.absent{border:1px dashed var(--rule);border-radius:6px;padding:.8rem 1rem;max-width:none}
.absent strong{color:var(--ink)}
svg{display:block;width:100%;min-width:34rem;height:auto;font-family:inherit;stroke-linejoin:round}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 1.8rem;align-items:start}
.two svg{min-width:22rem}.two .absent{margin:1.2rem 0}
details{margin:0 0 1rem}summary{cursor:pointer;color:var(--link);padding:.2rem 0}
.cols{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 2.5rem}
.cols h3{margin-top:0}.minor{font-size:1.02rem;margin:.4rem 0 .5rem}
h2 small,h3 small{font-weight:400;color:var(--muted);font-size:.8em}
.sign tbody tr:last-child>td{height:3.2rem;width:33%;border-bottom:1px solid var(--ink)}
footer p{max-width:none}footer{padding-bottom:3rem;color:var(--muted);font-size:.9rem}
@media (max-width:40rem){.pair tbody tr,.id tbody tr{display:block;border-bottom:1px solid var(--rule);padding:.4rem 0}
  .pair tbody th,.pair tbody td,.id tbody th,.id tbody td{display:block;width:auto;border:0;padding:.05rem 0}
  .claim,.alarm{padding:1.1rem}}
@page{size:A4;margin:14mm 14mm}
@media print{html{color-scheme:light;font-size:9pt}body{line-height:1.4}header,main,footer{max-width:none;padding:0}
  header{padding-top:0}nav,.skip,.screen,details:not([open]){display:none}section{padding:1rem 0 0;margin:0 0 .6rem}
  h1,h2,h3,caption,.title{break-after:avoid}.sign,tr,figure,.claim,.alarm,.note,.key div,li{break-inside:avoid}
  .two{grid-template-columns:1fr 1fr}.two svg{max-width:none}
  th,td{padding:.22rem 1rem .22rem 0}figure{margin:.7rem 0 .8rem}h3{margin:1rem 0 .3rem}li{margin:.15rem 0}
  thead:not([hidden]){display:table-header-group}.scroll{overflow:visible}.scroll table,svg{min-width:0}
  caption span{max-width:none}svg{max-width:14cm}
  .claim,.note{border:1px solid var(--ink);border-left-width:4px;background:none}a{color:inherit;text-decoration:none}
  .alarm{border:3px solid var(--alarm);-webkit-print-color-adjust:exact;print-color-adjust:exact}
  p,li{orphans:3;widows:3}}
"""
)
