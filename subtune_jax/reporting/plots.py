"""Pictures of results; written without a display."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def grouped_bars(
    bars: Mapping[str, Mapping[str, tuple[float, float]]],
    file: Path,
    *,
    titles: Mapping[str, str] = {},
    colors: Mapping[str, str] = {},
    ylabel: str = "test accuracy (%)",
) -> None:
    """Draws `{panel: {bar: (height, error)}}`, a panel beside the other, to a PNG."""
    figure = Figure(figsize=(1.2 + 2.9 * len(bars), 3.4), layout="constrained")
    axes = figure.subplots(1, len(bars), sharey=True, squeeze=False)[0]
    for axis, (panel, heights) in zip(axes, bars.items(), strict=True):
        _bars(axis, heights, colors)
        axis.set_title(titles.get(panel, panel), fontsize=10)
    axes[0].set_ylabel(ylabel)
    FigureCanvasAgg(figure)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(file)


def _bars(
    axis, heights: Mapping[str, tuple[float, float]], colors: Mapping[str, str]
) -> None:
    names: Sequence[str] = list(heights)
    values, errors = zip(*heights.values(), strict=True)
    best = max(values)
    shades = [colors.get(n, "#4c78a8") for n in names]
    drawn = axis.bar(names, values, yerr=errors, capsize=3, color=shades)
    labels = [f"{v:.0f}" for v in values]
    axis.bar_label(drawn, labels, padding=2, fontsize=8)
    for bar, value in zip(drawn, values, strict=True):
        if value == best:
            bar.set_edgecolor("black")
            bar.set_linewidth(1.5)
    axis.tick_params(axis="x", rotation=45)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.12)
