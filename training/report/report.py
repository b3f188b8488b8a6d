"""One report.html from a run folder."""

import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from sslops import __version__
from sslops.training.loggers.progress import working
from sslops.training.loggers.words import BATCHED, amount, count, listed
from sslops.training.report.charts import method_charts
from sslops.training.report.factors import factor_numbers
from sslops.training.report.page import definitions, missing, page, section
from sslops.training.report.results import headline, label_curve, numbers
from sslops.training.report.rotnet import rotnet_curve
from sslops.training.report.run_folder import Run, read_run
from sslops.training.report.stages import pretext_scores, stage_section
from sslops.training.report.tracking import followed, tracking_scores
from sslops.training.report.training_curves import cost, curves, setting_entries
from sslops.training.report.views import feature_space, method_pictures, neighbours

__all__ = ["render", "write_report"]

CONTROLS = {
    "pixels": "raw pixels",
    "log-mel": "log-mel spectra",
    "random-init": "the same network untrained (same architecture and pooling)",
    "supervised": "the same network trained with labels",
    "simclr": "the same network trained by SimCLR",
    "identity": "the first frame's masks, copied",
}
SCALE_TEXT = (
    "These numbers are not comparable with published ones: those come from other data, larger "
    "networks and longer training. Compare arms of this page, and runs with the same protocol."
)


@working("writing the report")
def write_report(run_dir: str | Path) -> Path:
    """Write report.html into a run folder, from whatever the folder holds.

    Returns:
        Path of the file, which loads nothing else.

    Raises:
        FileNotFoundError: `run_dir` is no run folder.
    """
    run = read_run(Path(run_dir))
    path = run.folder / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(render(run), encoding="utf-8")
    os.replace(partial, path)
    return path


def render(run: Run) -> str:
    """The report as HTML."""
    return page(
        f"{run.method} on {run.data}",
        [
            _head(run),
            headline(run),
            *(_on_video(run) if run.video else _on_images(run)),
            curves(run),
            pretext_scores(run),
            method_charts(run),
            method_pictures(run),
            cost(run),
            _protocol(run),
            _settings(run),
            _footer(run),
        ],
    )


def _on_images(run: Run) -> list[str]:
    plain = run.arms and not run.labelled  # what can be looked at is all there is
    return [
        neighbours(run) if plain else "",
        label_curve(run) if run.arms else "",
        numbers(run),
        stage_section(run),
        rotnet_curve(run),
        factor_numbers(run),
        feature_space(run),
        "" if plain else neighbours(run),
    ]


def _on_video(run: Run) -> list[str]:
    return [tracking_scores(run), followed(run)]


def _head(run: Run) -> str:
    config, env = run.config, run.env
    parts = [*_data_facts(run)]
    encoder = str(config.get("arch", ""))
    if encoder:
        dim = run.encoder.get("dim")
        parts.append(f"{encoder}, {count(dim, 'features')}" if dim else encoder)
    parts += _training_facts(run)
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    version = env.get("sslops", __version__)
    lines = [" · ".join(parts), f"{_date(run)} · sslops {version}"]
    if env.get("device_name"):
        lines[1] += f" · {env['device_name']}"
    facts = "".join(f'<p class="facts">{escape(line)}</p>' for line in lines if line)
    title = f"{escape(run.method)} <span>on</span> {escape(run.data)}"
    return f"<header><h1>{title}</h1>{facts}</header>{_state(run)}"


def _data_facts(run: Run) -> list[str]:
    """How many samples were trained on, and how many were used to say what came of it."""
    facts = []
    trained = run.cost.get("train_images")
    if trained is not None:
        facts.append(f"trained on {count(trained, run.samples)}")
    probes, tests = (
        run.protocol.get(f"{part}_images", run.protocol.get(f"{video}_videos"))
        for part, video in (("probe", "train"), ("test", "test"))
    )
    if run.labelled and not run.video and probes is not None:
        facts.append(f"probes fitted on {probes:,}")
    if tests is not None:
        facts.append(f"{tests:,} test {count(tests, run.samples).split()[1]}")
    return facts


def _training_facts(run: Run) -> list[str]:
    """As far as it went."""
    steps = run.cost.get("steps", run.last("step"))
    epochs = run.cost.get("epochs", run.last("epoch"))
    facts = []
    if steps is not None:
        took = "" if epochs is None else f" in {amount(epochs)} epoch{'s' * (epochs != 1)}"
        facts.append(count(int(steps), "steps") + took)
    if run.config.get("batch") is not None:
        facts.append(f"{count(run.config['batch'], BATCHED[run.kind])} a step")
    return facts


def _state(run: Run) -> str:
    """A sentence where a run has not come to its end."""
    if run.arms:
        return ""
    if run.cost:
        return missing("Training is complete; the features have not been evaluated.")
    step = run.last("step")
    if step is None:
        return missing("This run has not logged a step yet.", warn=True)
    sentence = f"This run has not finished: the last record is of step {step:,.0f}."
    if run.resumable:
        sentence += f" Go on with: sslops train {run.method} --out {run.folder} --resume"
    return missing(sentence, warn=True)


def _date(run: Run) -> str:
    for name in ("metrics.jsonl", "config.json"):
        path = run.folder / name
        if path.is_file():
            when = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc)
            return f"{when.day} {when:%B %Y, %H:%M} UTC"
    return ""


def _protocol(run: Run) -> str:
    controls = [text for arm, text in CONTROLS.items() if arm in run.arms and arm != run.method]
    others = [arm for arm in run.arms if arm not in CONTROLS and arm != run.method]
    controls += [f"{arm} (trained with those labels)" for arm in others]
    beside = ""
    if controls:
        beside = (
            f"{'Controls' if len(controls) > 1 else 'Control'}: {listed(controls)}. Every arm is "
            f"measured by the same rules on the same {run.samples}. "
        )
    content = f'<p class="lead">{escape(beside + SCALE_TEXT)}</p>'
    if not run.protocol:
        return section("Protocol", content)
    names = {"cluster": "clustering", "few": "few labels", "linear": "linear probe", "knn": "kNN"}
    entries: dict[str, str] = {}
    for key, value in run.protocol.items():
        if key == "class_names":
            if value:
                entries["class names"] = ", ".join(str(name) for name in value)
        elif isinstance(value, Mapping):
            entries[names.get(key, key.replace("_", " "))] = "; ".join(
                _worded(run, f"{name.replace('_', ' ')}: {text}")
                for name, text in setting_entries(_readable(value)).items()
            )
        else:
            plain = isinstance(value, int) and key != "seed"
            entries[_of_kind(run, key)] = f"{value:,}" if plain else _worded(run, str(value))
    return section("Protocol", content, definitions(entries, long=True))


def _worded(run: Run, text: str) -> str:
    """The rules are the same for all kinds of data, and written for images."""
    one = count(1, run.samples).removeprefix("1 ")
    return re.sub(r"\bimage\b", one, re.sub(r"\bimages\b", run.samples, text))


def _of_kind(run: Run, key: str) -> str:
    return key.replace("_images", f" {run.samples}").replace("_", " ")


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: ("yes" if value else "no") if isinstance(value, bool) else value
        for name, value in values.items()
        if value != []
    }


def _settings(run: Run) -> str:
    parts = []
    if run.config:
        parts.append(section("Configuration", definitions(setting_entries(run.config))))
    if run.env:
        env = dict(run.env)
        command = env.pop("command", None)
        if isinstance(command, list):
            env["command"] = " ".join(str(word) for word in command)
        parts.append(section("Environment", definitions(setting_entries(env))))
    return "".join(parts)


def _footer(run: Run) -> str:
    return (
        "<footer>Load the encoder: <code>from sslops.training import load_encoder; "
        f"encoder = load_encoder({escape(repr(str(run.folder)))})</code></footer>"
    )
