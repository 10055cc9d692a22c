"""Style sheets of the report page and its plot. On paper both are always light: dark is for screens alone."""

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"

PAGE = f"""
:root {{ --ink:#1b2027; --muted:#5c6674; --line:#dfe3e8; --paper:#fff; --wash:#f5f7f9;
  --pick:#c2410c; --pick-wash:#fff5ee; }}
@media screen and (prefers-color-scheme:dark) {{ :root {{ --ink:#e8ebef; --muted:#9aa5b4; --line:#2b323c;
  --paper:#14181d; --wash:#1b2027; --pick:#ff9b5c; --pick-wash:#2a2019; }} }}
* {{ box-sizing:border-box; }}
body {{ margin:0 auto; padding:2.2rem 1.25rem 3rem; max-width:64rem; background:var(--paper);
  color:var(--ink); font:16px/1.55 {FONT}; }}
h1 {{ font-size:1.05rem; font-weight:600; color:var(--muted); margin:0 0 .5rem; }}
h2 {{ font-size:1.1rem; margin:2.6rem 0 .7rem; }}
p, ul {{ margin:.5rem 0; max-width:46rem; }}
ul {{ padding-left:1.2rem; }}
.headline {{ font-size:clamp(1.5rem,4.5vw,2.15rem); line-height:1.2; font-weight:680; letter-spacing:-.015em;
  margin:0; text-wrap:balance; }}
.detail {{ color:var(--muted); }}
.scroll {{ overflow-x:auto; }}
table {{ border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }}
th, td {{ padding:.55rem .7rem; text-align:right; vertical-align:top; border-bottom:1px solid var(--line);
  white-space:nowrap; }}
thead th {{ font-size:.82rem; font-weight:600; color:var(--muted); vertical-align:bottom;
  border-bottom:2px solid var(--line); }}
th:first-child {{ text-align:left; position:sticky; left:0; background:var(--paper); white-space:normal;
  min-width:8.5rem; padding-left:0; }}
tbody th {{ font-weight:600; }}
small {{ display:block; font-size:.8rem; font-weight:400; color:var(--muted); line-height:1.4; }}
.tag {{ display:inline-block; color:var(--pick); font-size:.78rem; font-weight:600; }}
.pick td, .pick th:first-child {{ background:var(--pick-wash); }}
.pick th:first-child {{ box-shadow:inset 3px 0 var(--pick); padding-left:.7rem; }}
.narrow {{ display:none; }}
figure {{ margin:1.2rem 0; }}
figcaption {{ color:var(--muted); font-size:.88rem; margin-top:.35rem; max-width:46rem; }}
.picture {{ background:#fff; border:1px solid var(--line); border-radius:6px; padding:10px; width:fit-content;
  max-width:100%; }}
.picture img {{ display:block; max-width:100%; height:auto; }}
dl {{ display:grid; grid-template-columns:minmax(9rem,max-content) 1fr; gap:.3rem 1.4rem; margin:0; }}
dt {{ color:var(--muted); }}
dd {{ margin:0; overflow-wrap:anywhere; }}
pre {{ background:var(--wash); border:1px solid var(--line); border-radius:6px; padding:.9rem 1rem;
  overflow-x:auto; font:.86rem/1.6 {MONO}; margin:0; }}
footer {{ margin-top:3rem; color:var(--muted); font-size:.85rem; }}
@media screen and (max-width:40rem) {{
  body {{ padding-top:1.4rem; }}
  .wide {{ display:none; }}
  .narrow {{ display:block; }}
  .picture img {{ max-width:none; min-width:100%; }}
  dl {{ grid-template-columns:minmax(6rem,38%) 1fr; gap:.3rem .8rem; }}
  table, tbody {{ display:block; }}
  thead {{ display:none; }}
  tbody tr {{ display:grid; grid-template-columns:1.3fr .8fr 1fr 1.3fr; gap:.45rem .5rem; padding:.8rem 0;
    border-bottom:1px solid var(--line); }}
  tbody tr.pick {{ background:var(--pick-wash); box-shadow:inset 3px 0 var(--pick); padding-left:.8rem; }}
  tbody th, tbody td, .pick th:first-child {{ border:0; padding:0; text-align:left; box-shadow:none;
    white-space:nowrap; }}
  tbody th small {{ white-space:normal; overflow-wrap:anywhere; }}
  tbody th:first-child {{ grid-column:1/-1; position:static; background:none; }}
  td::before {{ content:attr(data-label); display:block; font-size:.72rem; color:var(--muted); }}
  td small {{ font-size:.72rem; }}
}}
@media print {{
  body {{ padding:0; max-width:none; font-size:10.5pt; }}
  h2 {{ break-after:avoid; }}
  figure, tr, pre {{ break-inside:avoid; }}
  .scroll {{ overflow:visible; }}
  .ev-plot {{ max-height:7.5cm; }}
  .picture img {{ max-height:10cm; width:auto; }}
  th, td {{ padding:.35rem .4rem; font-size:9pt; }}
  th:first-child {{ position:static; }}
  pre {{ white-space:pre-wrap; overflow-wrap:anywhere; }}
}}
"""

PLOT = f"""
.ev-plot {{ --ev-ink:#1b2027; --ev-muted:#5c6674; --ev-grid:#e3e7ec; --ev-paper:#fff; --ev-mark:#2563c9;
  --ev-pick:#c2410c; font:12.5px {FONT}; max-width:100%; height:auto; }}
@media screen and (prefers-color-scheme:dark) {{ .ev-plot {{ --ev-ink:#e8ebef; --ev-muted:#9aa5b4;
  --ev-grid:#2b323c; --ev-paper:#14181d; --ev-mark:#7db0ff; --ev-pick:#ff9b5c; }} }}
.ev-plot .ev-back {{ fill:var(--ev-paper); }}
.ev-plot text {{ fill:var(--ev-muted); }}
.ev-plot .ev-grid {{ stroke:var(--ev-grid); }}
.ev-plot .ev-guide {{ stroke:var(--ev-muted); stroke-dasharray:3 4; opacity:.75; }}
.ev-plot .ev-bar {{ stroke:var(--ev-mark); stroke-width:1.5; opacity:.5; fill:none; }}
.ev-plot .ev-box {{ fill:var(--ev-mark); opacity:.22; }}
.ev-plot .ev-round {{ fill:var(--ev-mark); stroke:var(--ev-paper); stroke-width:.8; }}
.ev-plot .ev-median {{ stroke:var(--ev-mark); stroke-width:2; }}
.ev-plot .ev-base .ev-box, .ev-plot .ev-base .ev-round {{ fill:var(--ev-ink); }}
.ev-plot .ev-base .ev-median {{ stroke:var(--ev-ink); }}
.ev-plot .ev-marker {{ fill:var(--ev-mark); stroke:var(--ev-paper); stroke-width:1.5; }}
.ev-plot .ev-base .ev-marker {{ fill:var(--ev-paper); stroke:var(--ev-ink); stroke-width:2; }}
.ev-plot .ev-base .ev-bar {{ stroke:var(--ev-ink); }}
.ev-plot .ev-pick .ev-marker {{ fill:var(--ev-pick); }}
.ev-plot .ev-pick .ev-bar {{ stroke:var(--ev-pick); }}
.ev-plot .ev-leader {{ stroke:var(--ev-muted); stroke-width:.8; }}
.ev-plot .ev-label {{ fill:var(--ev-ink); paint-order:stroke; stroke:var(--ev-paper); stroke-width:3.5px;
  stroke-linejoin:round; }}
.ev-plot .ev-strong {{ font-weight:600; }}
"""
