"""Sections on how good the features are: headline, accuracy against labels, all numbers."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from sslops.training.evaluate.verdict import verdict
from sslops.training.report.page import cell_table, figure, missing, section
from sslops.training.report.run_folder import CONTROLS, Run
from sslops.training.report.svg import Line, Rule, line_chart

__all__ = ["arm_style", "headline", "label_curve", "numbers"]

CARDS = 6  # two rows

Get = Callable[[Mapping[str, Any]], float | None]

NAMES = {
    "random-init": "untrained",
    "pixels": "raw pixels",
    "simclr": "SimCLR",
    "identity": "first masks, copied",
}


def arm_style(run: Run, arm: str) -> str:
    """CSS class of an arm, the same in all charts."""
    if arm == run.method:
        return "method"
    return arm if arm in CONTROLS else "other"


def arm_name(arm: str) -> str:
    """How an arm is called in charts and tables."""
    return NAMES.get(arm, arm)


def headline(run: Run) -> str:
    """A sentence and a card for each measure, every control beside the method."""
    sentence = verdict(
        run.results,
        run.method,
        run.samples,
        loss=run.last("loss"),
        chance=run.last("chance"),
        outputs=run.last("feature_spread"),
    )
    said = f'<p class="verdict">{escape(sentence)}</p>' if sentence else ""
    cards = _labelled_cards(run) if run.labelled else _plain_cards(run)
    shown = "".join(card for card in cards if card)
    return f'{said}<div class="cards">{shown}</div>' if shown else said


def _labelled_cards(run: Run) -> list[str]:
    arms = run.arms
    counts = _label_counts(arms)
    cards: list[tuple[str, Get, bool]] = [
        (f"{n} label{'s' * (n > 1)} a class", _few(n), True) for n in _ends(counts)
    ]
    cards += [
        ("Linear probe, all labels", _key("linear"), True),
        ("Linear probe, best stage", _best_stage(arms), True),
        ("Nearest neighbours", _key("knn"), True),
        ("Clusters against classes, NMI", _key("nmi"), False),
        ("Clusters against classes, ARI", _key("ari"), False),
    ]
    return [text for card in cards if (text := _card(run, *card))][:CARDS]


def _plain_cards(run: Run) -> list[str]:
    """What needs no labels."""
    loss, chance = run.last("loss"), run.last("chance")
    first = ""
    if run.arms and loss is not None and chance is not None and chance > 0:
        title, values = "Loss, and at chance", {run.method: loss, "chance": chance}
        first = _bars(run, title, values, "{:.3f}", max(loss, chance))
    ranks = {arm: row["rank"] for arm, row in run.arms.items() if "rank" in row}
    return [
        first,
        _card(run, "Spread of the features, 1 is even", _key("feature_spread"), percent=False),
        _bars(run, "Effective rank", ranks, "{:.1f}", max(ranks.values(), default=1.0)),
        _card(run, "Neighbours as before training", _key("neighbours_kept"), percent=True),
    ]


def label_curve(run: Run) -> str:
    """Accuracy against labels a class on a log axis."""
    arms, counts = run.arms, _label_counts(run.arms)
    title = "Accuracy against number of labels"
    if not run.labelled:
        return ""
    if not counts:
        sentence = f"Too few labelled {run.samples} of a class for such a curve."
        return section(title, missing(sentence))
    draws = run.protocol.get("few", {}).get("draws", "several")
    charts = [
        figure(
            "Test accuracy",
            _curves_chart(run, counts, None),
            f"Logistic regression on frozen features: mean and standard deviation of {draws} draws "
            f"of the labelled {run.samples}, the same ones for every arm.",
        )
    ]
    base = next((arm for arm in ("pixels", "log-mel") if arm in arms), None)
    if base is not None and len(arms) > 1:
        charts.append(
            figure(
                f"Points gained over {arm_name(base)}",
                _curves_chart(run, counts, base),
                f"The same means, less those of {arm_name(base)}: what the features add to it.",
            )
        )
    return section(
        title,
        f'<div class="charts">{"".join(charts)}</div>',
        lead="Representations are worth most where labels are few. All arms use the same "
        "classifier on features that are not trained any further.",
    )


def _curves_chart(run: Run, counts: list[int], base: str | None) -> str:
    """Mean accuracy of each arm in percent, or the difference from the arm `base`."""
    lines = []
    for arm, result in reversed(list(run.arms.items())):  # the method is drawn last, on top
        few = result.get("few", {})
        zero = {} if base is None else run.arms[base].get("few", {})
        have = [n for n in counts if str(n) in few and (base is None or str(n) in zero)]
        if not have or arm == base:
            continue
        less = {n: zero[str(n)]["mean"] if base else 0.0 for n in have}
        lines.append(
            Line(
                [(n, 100 * (few[str(n)]["mean"] - less[n])) for n in have],
                arm_style(run, arm),
                label=arm_name(arm),
                deviations=() if base else [100 * few[str(n)]["sd"] for n in have],
                markers=True,
            )
        )
    if not lines:
        return missing("There is nothing to compare.")
    return line_chart(
        lines,
        title="Accuracy in percent against labels a class"
        + (f", less {arm_name(base)}" if base else ""),
        x_label=f"labelled {run.samples} a class",
        log_x=True,
        x_ticks=counts,
        y_format="{:+g}" if base else "{:g} %",
        rules=[Rule(0.0, arm_name(base), style="zero", left=True)] if base else (),
    )


def numbers(run: Run) -> str:
    """The table of everything."""
    arms = run.arms
    if not arms:
        return section(
            "All numbers",
            missing("This run was not evaluated. `sslops eval` with its folder does it."),
        )
    counts = _label_counts(arms)
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        *((f"{n} label{'s' * (n > 1)}", _few_cell(n)) for n in counts),
        ("kNN", _percent_cell("knn", "k = {:g}", "knn_k")),
        ("linear", _percent_cell("linear", "C = {:g}", "linear_C")),
        ("NMI", _plain_cell("nmi")),
        ("ARI", _plain_cell("ari")),
        ("cluster acc.", _percent_cell("cluster_accuracy")),
        ("eff. rank", _plain_cell("rank", "{:.1f}")),
    ]
    if not run.labelled:
        columns = [
            ("spread", _plain_cell("feature_spread")),
            ("eff. rank", _plain_cell("rank", "{:.1f}")),
            ("neighbours kept", _percent_cell("neighbours_kept")),
        ]
    columns = [column for column in columns if any(column[1](arm) for arm in arms.values())]
    rows = [
        [_row_head(name, arm), *(cell(arm) or "&ndash;" for _, cell in columns)]
        for name, arm in arms.items()
    ]
    failed = [name for name, arm in arms.items() if "failed" in arm]
    notes = [missing(f"{name}: {arms[name]['failed']}.", warn=True) for name in failed]
    return section(
        "All numbers", cell_table(["", *(name for name, _ in columns)], rows), *notes,
        lead=_numbers_lead(run, [name for name, _ in columns]),
    )  # fmt: skip


def _numbers_lead(run: Run, columns: Sequence[str]) -> str:
    """What the numbers are, of those that are there."""
    what = {
        "spread": "Spread: standard deviation of unit-length features, 1 where they are even.",
        "NMI": "NMI and ARI: 1 where clusters are the classes.",
        "eff. rank": "Effective rank: directions that the features fill, of as many as there are.",
        "neighbours kept": f"Neighbours kept: percent of the nearest training {run.samples} that "
        "are those of the untrained network, too.",
    }
    said = [text for name, text in what.items() if name in columns]
    if run.labelled:
        said.insert(
            0,
            f"Accuracies in percent on test {run.samples}. k and C were chosen on training labels.",
        )
    return " ".join(said)


def _row_head(name: str, arm: Mapping[str, Any]) -> str:
    return f"{escape(arm_name(name))}<small class=under>{arm['dim']:,} features</small>"


def _card(run: Run, title: str, get: Get, percent: bool) -> str:
    values = {arm: get(result) for arm, result in run.arms.items()}
    known = {arm: value for arm, value in values.items() if value is not None}
    if percent:
        shares = {arm: 100 * value for arm, value in known.items()}
        return _bars(run, title, shares, "{:.1f}", 100.0, "<small> %</small>")
    return _bars(run, title, known, "{:.3f}", 1.0)


def _bars(
    run: Run, title: str, values: Mapping[str, float], form: str, full: float, unit: str = ""
) -> str:
    """A card: the method's number large, and a bar for each arm, whole where it is `full`."""
    if run.method not in values:
        return ""
    bars = []
    for arm, value in values.items():
        width = 100 * min(max(value / full, 0.0), 1.0)
        first = " first" if arm == run.method else ""
        bars.append(
            f'<div class="bar{first}"><span>{escape(arm_name(arm))}</span>'
            f'<i><b class="fill {arm_style(run, arm)}" style="width:{width:.1f}%"></b></i>'
            f"<em>{form.format(value)}</em></div>"
        )
    big = form.format(values[run.method]) + unit
    return (
        f'<div class="card"><h3>{escape(title)}</h3><div class="big">{big}</div>'
        f'<div class="bars">{"".join(bars)}</div></div>'
    )


def _label_counts(arms: Mapping[str, Mapping[str, Any]]) -> list[int]:
    return sorted({int(n) for arm in arms.values() for n in arm.get("few", {})})


def _ends(counts: list[int]) -> list[int]:
    """The fewest labels, and ten or what comes next to it."""
    if len(counts) < 2:
        return counts
    return [counts[0], min(counts[1:], key=lambda n: abs(n - 10))]


def _best_stage(arms: Mapping[str, Mapping[str, Any]]) -> Get:
    """Of the best stage of each arm; no card where that is the last one of all."""
    last = all(arm["best_stage"] == arm["stages"][-1]["stage"] for arm in arms.values()
               if arm.get("stages"))  # fmt: skip
    return lambda arm: None if last else arm.get("best_stage_linear")


def _key(name: str) -> Get:
    return lambda arm: arm.get(name)


def _few(n: int) -> Get:
    return lambda arm: arm.get("few", {}).get(str(n), {}).get("mean")


def _few_cell(n: int) -> Callable[[Mapping[str, Any]], str]:
    def cell(arm: Mapping[str, Any]) -> str:
        value = arm.get("few", {}).get(str(n))
        if value is None:
            return ""
        return f"{100 * value['mean']:.1f} <small>± {100 * value['sd']:.1f}</small>"

    return cell


def _percent_cell(name: str, choice: str = "", key: str = "") -> Callable[[Mapping[str, Any]], str]:
    def cell(arm: Mapping[str, Any]) -> str:
        if arm.get(name) is None:
            return ""
        chosen = (
            f"<small class=under>{choice.format(arm[key])}</small>"
            if arm.get(key) is not None
            else ""
        )
        return f"{100 * arm[name]:.1f}{chosen}"

    return cell


def _plain_cell(name: str, form: str = "{:.3f}") -> Callable[[Mapping[str, Any]], str]:
    return lambda arm: "" if arm.get(name) is None else form.format(arm[name])
