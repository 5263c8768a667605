"""Probabilities as bars that grow into place, in plain HTML that screen readers can read as a table."""

from html import escape

from exp_tools.serving.predictor import Prediction, is_malignant, name_of

STYLE = """
<style>
.probabilities { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.probabilities caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
.probabilities th { text-align: left; font-weight: 400; padding: .3rem .7rem .3rem 0; width: 42%; border: 0; }
.probabilities tr.first th, .probabilities tr.first td { font-weight: 650; }
.probabilities td { padding: .3rem 0; border: 0; }
.probabilities td.number { text-align: right; width: 4.2rem; }
.probabilities small { display: block; opacity: .75; font-weight: 400; }
.probabilities .track { display: block; height: .95rem; border-radius: .3rem; overflow: hidden;
  background: color-mix(in srgb, currentColor 12%, transparent); }
.probabilities .bar { display: block; height: 100%; border-radius: .3rem; background: #2C86B8;
  transform-origin: left; animation: grow .8s cubic-bezier(.2, .7, .2, 1) both; }
.probabilities .bar.malignant { background: #D55E00; }
@keyframes grow { from { transform: scaleX(0); } }
@media (prefers-reduced-motion: reduce) { .probabilities .bar { animation: none; } }
</style>
"""


def probability_bars(prediction: Prediction) -> str:
    """A table of every class, the most probable first: name, bar, percentage; malignant ones are named and orange."""
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    rows = "".join(_row(code, share, code == prediction.diagnosis) for code, share in ranked)
    return f"{STYLE}<table class='probabilities'><caption>Probability of each class</caption>{rows}</table>"


def percent(share: float) -> str:
    """A share of 0 to 1 in words that never round to certainty."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def _row(code: str, share: float, first: bool) -> str:
    malignant = is_malignant(code)
    note = "<small>malignant or pre-malignant</small>" if malignant else ""
    colour = "bar malignant" if malignant else "bar"
    return (
        f"<tr{' class=first' if first else ''}><th scope='row'>{escape(name_of(code))}{note}</th>"
        f"<td><span class='track'><span class='{colour}' style='width:{100 * share:.2f}%'>"
        f"</span></span></td><td class='number'>{percent(share)}</td></tr>"
    )
