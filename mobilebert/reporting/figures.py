"""Draw the loss curves of the records as SVG: the same bytes for the same records."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping

from mobilebert.jobs.record import Record

INK = "#808080"  # legible on a light and on a dark page
LARGEST = 1e30  # drawn values are below: matplotlib fails on the largest floats
LINES = ("-", "--", ":", "-.")  # the style changes after ten colours, so that all lines differ


def loss_curves(records: Mapping[str, Record]) -> dict[str, str]:
    """Return title -> SVG text of the figures that have curves.

    Pre-training and distillation share a figure; that of fine-tuning has a panel for each task.
    """
    found = {key: record.curves for key, record in records.items() if record.curves}
    trained = {key: _named(curves, "loss") for key, curves in found.items() if key.startswith(("pretrain/", "distill/"))}
    transferred = {key: _named(curves, "loss") for key, curves in found.items() if key.startswith("transfer/")}
    tuned: dict[str, dict[str, list]] = {}
    for key, curves in found.items():
        if key.startswith("finetune/"):
            _, model, task = key.split("/", 2)
            tuned.setdefault(task, {})[model] = _named(curves, "loss")
    figures = {
        "Pre-training and distillation": {"": trained},
        "Knowledge transfer": {"": transferred},
        "Fine-tuning": {task: tuned[task] for task in sorted(tuned)},
    }
    return {title: _draw(title, panels) for title, panels in figures.items() if any(any(p.values()) for p in panels.values())}


def _named(curves: Mapping[str, list], name: str) -> list[list[tuple[int, float]]]:
    """Return the finite points of each curve called `name` or ending so (`seed0_loss`, ...)."""
    lines = [points for key, points in sorted(curves.items()) if key == name or key.endswith(f"_{name}")]
    return [[point for point in points if _can_be_drawn(*point)] for points in lines]


def _can_be_drawn(step: int, value: float | None) -> bool:
    return value is not None and math.isfinite(value) and max(abs(step), abs(value)) < LARGEST


def _draw(title: str, panels: Mapping[str, Mapping[str, list]]) -> str:
    """Draw panels (name -> label -> curves) as SVG, four to a row; a label keeps its colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    style = {
        "svg.hashsalt": title,
        "svg.fonttype": "none",  # text stays text
        "text.parse_math": False,  # a name may hold a $
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):  # pyright: ignore[reportArgumentType]  (matplotlib names each key)
        size = (9, 4) if len(panels) == 1 else (9, 2.2 * rows + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        handles = {}
        for ax in axes:
            ax.set_visible(False)
        for ax, (name, panel) in zip(axes, panels.items()):
            ax.set_visible(True)
            ax.set_title(name)
            ax.set_xlabel("step")
            ax.set_ylabel("loss")
            for label, curves in panel.items():
                number = labels.index(label)
                for points in curves:
                    (handles[label],) = ax.plot(
                        [step for step, _ in points],
                        [value for _, value in points],
                        color=f"C{number % 10}",
                        linestyle=LINES[number // 10 % len(LINES)],
                        linewidth=1,
                    )
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Return the SVG for HTML: no prolog, metadata or name spaces; ids begin with the title."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
