"""The directive ``{paper-scale}``: what each chapter's run at its document's scale takes."""

import sys
from html import escape
from itertools import groupby
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import gpu_hours  # noqa: E402

HEADINGS = ("Network", "Samples", "PFLOP", "GPU hours", "Memory (GB)", "Known from")


class PaperScale(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        for name in ("scale", "gpu_throughput"):
            self.env.note_dependency(str(gpu_hours.ROOT / "book" / "results" / f"{name}.json"))
        costs, fit, device = gpu_hours.read()
        return [nodes.raw("", page(costs, fit, device), format="html")]


def page(costs: list[gpu_hours.Cost], fit: gpu_hours.Fit, device: str) -> str:
    parts = []
    for chapter, group in groupby(costs, key=lambda each: each.chapter):
        runs = list(group)
        commands = list(dict.fromkeys(run.command for run in runs if run.command))
        code = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in commands)
        hours = sum(run.hours for run in runs)
        parts.append(
            f'<tbody><tr class="chapter"><th scope="rowgroup" colspan="3">Chapter {chapter}</th>'
            f"<td>{number(hours)}</td><td></td><td></td></tr>"
            f"{''.join(map(line, runs))}"
            f'<tr><td colspan="6">{code}</td></tr></tbody>'
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in HEADINGS)
    total = sum(each.hours for each in costs)
    return (
        f"<p>One {escape(device)}, single precision; {number(total)} hours in all. The two numbers "
        f"of the fit: {1e-12 / fit.flop:.0f} TFLOP a second, and {1e6 * fit.call:.0f} µs for each "
        f"call of an operator; on the {fit.n} networks that were measured it gives "
        f"{fit.least:.1f} to {fit.most:.1f} times the measured time.</p>"
        '<div class="pst-scrollable-table-container" tabindex="0"><table class="paper-scale">'
        f"<thead><tr>{head}</tr></thead>{''.join(parts)}</table></div>"
    )


def line(run: gpu_hours.Cost) -> str:
    known = "measured" if run.measured else "operations"
    cells = (
        f"{escape(run.name)}, batch {run.batch:,}",
        f"{run.samples / 1e6:,.1f} M" if run.samples >= 1e5 else f"{run.samples:,}",
        number(run.petaflop), number(run.hours),
        number(run.gigabytes) if run.gigabytes else "–", known,
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def number(value: float) -> str:
    """Two digits, as more would be a pretence."""
    if value >= 10:
        return f"{value:,.0f}"
    if value < 0.01:
        return "&lt; 0.01"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("paper-scale", PaperScale)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
