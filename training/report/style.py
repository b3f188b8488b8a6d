"""The style sheet: layout, type, and one colour an arm and a class, light and dark."""

__all__ = ["STYLE"]

_ARMS = {
    # style -> light, dark
    "method": ("#2b59d9", "#86a5ff"),
    "random-init": ("#8b929d", "#8d96a3"),
    "pixels": ("#b96f00", "#e2a53a"),
    "log-mel": ("#b96f00", "#e2a53a"),  # what pixels are to images
    "supervised": ("#0b8457", "#4cc38f"),
    "simclr": ("#00798c", "#4fc3d6"),
    "other": ("#a03fa5", "#d58ad9"),
}
_CLASSES = (
    "#4e79a7 #f28e2b #e15759 #57b0ab #59a14f #d9b021 #b07aa1 #ff8fa0 #9c755f #8f959e "
    "#1f9bcf #c65d00 #a8325e #2f7d78 #8cbf3f #9a8500 #6b4fa3 #d65db1 #6e4b2a #4d5663"
).split()

_LAYOUT = """
:root{--bg:#f7f7f5;--card:#fff;--ink:#1a1c20;--soft:#626973;--edge:#e3e4e7;--grid:#ececee;
--bad:#c92a2a;--good:#2f9e44}
@media screen and (prefers-color-scheme:dark){:root{--bg:#111316;--card:#191c21;--ink:#e9ebee;
--soft:#9aa2ad;--edge:#2b3037;--grid:#262a31;--bad:#ff8787;--good:#69db7c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1060px;margin:0 auto;padding:44px 24px 60px}
h1{font-size:2.1rem;line-height:1.15;letter-spacing:-.02em;margin:0 0 6px;font-weight:680}
h1 span{color:var(--soft);font-weight:400}
h2{font-size:1.22rem;letter-spacing:-.01em;margin:52px 0 6px;font-weight:650}
h3{font-size:.95rem;margin:0 0 2px;font-weight:620}
p{margin:0 0 12px;max-width:76ch;text-wrap:pretty}
.facts,.lead,figcaption,.note-text{color:var(--soft)}
.facts{font-size:.93rem;margin:0;max-width:none}
.verdict{font-size:1.14rem;line-height:1.5;margin:26px 0 22px;max-width:66ch;text-wrap:pretty}
.lead{margin-bottom:16px;font-size:.95rem}
.missing{color:var(--soft);border-left:3px solid var(--edge);padding:4px 0 4px 14px}
header+.missing{margin-top:22px}
.warn{border-left-color:var(--bad);color:var(--ink)}
.cards,.charts{display:grid;gap:14px}
.cards{grid-template-columns:repeat(3,minmax(0,1fr))}
.charts{grid-template-columns:repeat(2,minmax(0,1fr))}
.card,figure{background:var(--card);border:1px solid var(--edge);border-radius:12px;
padding:16px 18px;margin:0;min-width:0;break-inside:avoid}
figure.wide{grid-column:1/-1}
.card .big{font-size:2.15rem;font-weight:660;letter-spacing:-.03em;line-height:1.15;
font-variant-numeric:tabular-nums}
.card .big small{font-size:.9rem;font-weight:400;letter-spacing:0;color:var(--soft)}
.bars{margin-top:10px;font-size:.82rem}
.bar{display:grid;grid-template-columns:88px 1fr 44px;gap:8px;align-items:center;margin-top:5px}
.bar i{display:block;height:8px;border-radius:4px;background:var(--grid);overflow:hidden}
.bar i b{display:block;height:100%;border-radius:4px;print-color-adjust:exact;
-webkit-print-color-adjust:exact}
.bar span{color:var(--soft);white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.bar em{font-style:normal;text-align:right;font-variant-numeric:tabular-nums}
.bar.first span,.bar.first em{color:var(--ink);font-weight:620}
figcaption{font-size:.86rem;margin-top:8px;line-height:1.45}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.86rem;color:var(--soft);
margin:2px 0 6px}
.legend i{display:inline-block;width:16px;height:4px;border-radius:2px;margin-right:6px;
vertical-align:middle;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.legend.dotted i{width:10px;height:10px;border-radius:50%}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12.5px;fill:var(--soft);font-family:inherit}
svg .name{font-weight:620}
svg .axis-name{font-size:12px}
svg .centre{font-size:15px;font-weight:700;fill:var(--ink);paint-order:stroke;
stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
svg path{fill:none}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft);stroke-opacity:.55}
.rule{stroke-dasharray:5 4;stroke-width:1.4}
.chance{stroke:var(--bad)}svg text.chance{fill:var(--bad);stroke:none}
.zero{stroke:#b96f00}svg text.zero{fill:var(--soft);stroke:none}
.even{stroke:var(--good)}svg text.even{fill:var(--good);stroke:none}
.line{stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.marks{stroke-width:7;stroke-linecap:round}.whisker{stroke-width:1.5;stroke-opacity:.55}
.dots{stroke-linecap:round;stroke-opacity:.78}
svg text.name{stroke:none}
.scroll{overflow-x:auto;margin:14px 0 0;border:1px solid var(--edge);border-radius:12px;
background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 10px;vertical-align:top;text-align:right;white-space:nowrap;
border-top:1px solid var(--edge)}
thead th{border-top:0;color:var(--soft);font-weight:500;font-size:.84rem}
th:first-child,td:first-child{text-align:left}
tbody th{font-weight:500}
tr.first td,tr.first th{font-weight:650}
tbody th small{font-size:.8rem}
td small,th small{color:var(--soft);font-weight:400}
td .under,th .under{display:block;line-height:1.2}
img{display:block;max-width:100%;height:auto;margin-top:8px;image-rendering:pixelated}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:10px 24px;margin:0}
dl.long{grid-template-columns:1fr}
dl.long div{display:grid;grid-template-columns:170px 1fr;gap:4px 16px}
dt{color:var(--soft);font-size:.82rem}dd{margin:0;font-size:.93rem;overflow-wrap:anywhere}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
footer{margin-top:56px;padding-top:16px;border-top:1px solid var(--edge);color:var(--soft);
font-size:.86rem}
@media(max-width:760px){main{padding:26px 16px 40px}h1{font-size:1.65rem}
.cards{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}.charts{grid-template-columns:1fr}
.card,figure{padding:13px 14px}.card .big{font-size:1.7rem}h2{margin-top:40px}
.bar{grid-template-columns:74px 1fr 38px;gap:6px}.bars{font-size:.78rem}
dl{grid-template-columns:repeat(auto-fill,minmax(136px,1fr));gap:10px 16px}
dl.long,dl.long div{grid-template-columns:1fr}th,td{padding:8px 11px}
svg text{font-size:14.5px}svg .name{font-size:13.5px}svg .axis-name{font-size:14px}}
@media(max-width:430px){.cards{grid-template-columns:1fr}}
@media print{body{background:#fff;font-size:11pt}main{padding:0;max-width:none}
h2{break-after:avoid;margin-top:26px}.scroll{overflow:visible}th,td{padding:4px 6px}
table{font-size:8.5pt}}
"""


def _colours() -> str:
    def rules(name: str, colour: str) -> str:
        return (
            f"path.{name}{{stroke:{colour}}}text.{name}{{fill:{colour}}}"
            f".fill.{name}{{background:{colour}}}"
        )

    light = "".join(rules(name, pair[0]) for name, pair in _ARMS.items())
    dark = "".join(rules(name, pair[1]) for name, pair in _ARMS.items())
    classes = "".join(rules(f"c{i}", colour) for i, colour in enumerate(_CLASSES))
    return f"{light}{classes}@media screen and (prefers-color-scheme:dark){{{dark}}}"


STYLE = _LAYOUT + _colours()
