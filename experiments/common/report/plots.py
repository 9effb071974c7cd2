"""Pictures of results; written without a display."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
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
    _save(figure, file)


def _bars(
    axis, heights: Mapping[str, tuple[float, float]], colors: Mapping[str, str]
) -> None:
    names: Sequence[str] = list(heights)
    values, errors = zip(*heights.values(), strict=True)
    best = max(values)
    shades = [colors.get(n, "#4c78a8") for n in names]
    drawn = axis.bar(names, values, yerr=errors, capsize=3, color=shades)
    labels = [f"{v:.0f}" if abs(v) >= 10 else f"{v:.1f}" for v in values]
    axis.bar_label(drawn, labels, padding=2, fontsize=8)
    for bar, value in zip(drawn, values, strict=True):
        if value == best:
            bar.set_edgecolor("black")
            bar.set_linewidth(1.5)
    axis.tick_params(axis="x", rotation=45)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.12)


def curves(
    lines: Mapping[str, Mapping[str, tuple]],
    file: Path,
    *,
    xlabel: str,
    ylabel: str = "test accuracy (%)",
    log: bool | str = False,
) -> None:
    """Draws `{panel: {line: (x, y) or (x, y, error)}}`, a panel beside the other, to a
    PNG; `log` is for the x axis, `both` for both axes."""
    figure = Figure(figsize=(1.2 + 3.4 * len(lines), 3.4), layout="constrained")
    axes = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for drawn in lines.values() for name in drawn))
    shown = {}  # a line of each name, for the legend of all panels
    for axis, (panel, drawn) in zip(axes, lines.items(), strict=True):
        for name, (x, y, *error) in drawn.items():
            style = {"color": f"C{names.index(name)}", "capsize": 3}
            style["marker"] = "o" if len(x) < 20 else None
            shown[name] = axis.errorbar(x, y, *error, **style)
        for name in "xy" if log == "both" else "x" * log:
            axis.set(**{f"{name}scale": "log"})
            getattr(axis, f"{name}axis").set_major_formatter("{x:g}")
        axis.set_title(panel, fontsize=10)
        axis.set_xlabel(xlabel)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    axes[0].legend([shown[name] for name in names], names, fontsize=8)
    _save(figure, file)


def planes(
    lines: Mapping[str, Mapping[str, tuple]], file: Path, xlabel: str, ylabel: str
) -> None:
    """Draws the way of each method through a plane, `{panel: {line: (x, y)}}`, to a PNG: a
    dot for each recorded step, a star at the end, and an arrow to where both are high."""
    figure = Figure(figsize=(2.2 + 3.6 * len(lines), 3.8), layout="constrained")
    axes = figure.subplots(1, len(lines), squeeze=False)[0]
    names = list(dict.fromkeys(name for drawn in lines.values() for name in drawn))
    shown = {}  # a line of each name, for the legend of all panels
    for axis, (panel, drawn) in zip(axes, lines.items(), strict=True):
        for name, (x, y) in drawn.items():
            style = {"color": f"C{names.index(name)}"}
            (shown[name],) = axis.plot(x, y, ".-", linewidth=1, **style)
            axis.plot(x[-1], y[-1], "*", markersize=13, markeredgecolor="w", **style)
        arrow = {"arrowstyle": "->", "color": "0.4"}
        place = {"xycoords": "axes fraction", "ha": "right", "color": "0.4"}
        axis.annotate("better", (1, 1.04), (0.9, 0.97), arrowprops=arrow, **place)
        axis.margins(0.08, 0.12)
        axis.set_title(panel, fontsize=10, loc="left")
        axis.set_xlabel(xlabel)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    legend = {"title": "dot: a step\nstar: the end", "title_fontsize": 8, "fontsize": 8}
    figure.legend([shown[n] for n in names], names, loc="outside right upper", **legend)
    _save(figure, file)


def scattered(
    points: Mapping[str, tuple[float, float]], file: Path, xlabel: str, ylabel: str
) -> None:
    """Draws `{name: (x, y)}` as named points, to a PNG."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, (x, y) in points.items():
        axis.plot(x, y, "o", color="C0")
        axis.annotate(
            name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8
        )
    axis.margins(x=0.2)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def heat_maps(maps: Mapping[str, Mapping[tuple[str, str], float]], file: Path) -> None:
    """Draws `{panel: {(line, column): value}}`, two panels beside each other, to a PNG;
    each line is scaled to 0..1 and shows its values."""
    most = max(len({line for line, _ in cells}) for cells in maps.values())
    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    size = (5.5 * columns, rows * (0.8 + 0.4 * most))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    for axis, (panel, cells) in zip(axes, maps.items(), strict=False):
        _heat_map(axis, cells)
        axis.set_title(panel, fontsize=10)
    _save(figure, file)


def _heat_map(axis, cells: Mapping[tuple[str, str], float]) -> None:
    lines, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    values = np.array([[cells.get((ln, c), np.nan) for c in columns] for ln in lines])
    low, high = (f(values, axis=1, keepdims=True) for f in (np.nanmin, np.nanmax))
    scaled = (values - low) / np.where(high > low, high - low, 1)
    axis.imshow(scaled, cmap="Blues", aspect="auto", vmin=0, vmax=1.4)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(lines)), lines, fontsize=8)
    if len(columns) > 12:
        axis.tick_params(axis="x", rotation=90)
        return
    for (i, j), value in np.ndenumerate(values):
        axis.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8)


def surfaces(panels: Mapping[str, tuple], file: Path, xlabel: str, ylabel: str) -> None:
    """Draws `{panel: (xs, ys, values [ys, xs], {point: (x, y)})}`, two panels beside each
    other, to a PNG: darker is lower, and the points are marked by name."""
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10.0, 4.0 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis, (title, (xs, ys, values, points)) in zip(
        axes, panels.items(), strict=False
    ):
        # Losses rise steeply at the rim: on a logarithmic scale the valley shows.
        values = np.ma.masked_invalid(
            np.maximum(values, 1e-4)
        )  # what diverged is blank
        levels = np.geomspace(np.min(values), np.max(values) * 1.001, 20)
        drawn = axis.contourf(xs, ys, values, levels=levels, norm=LogNorm())
        ticks = [f"{level:.2g}" for level in levels[::4]]
        bar = figure.colorbar(drawn, ax=axis, label="loss", ticks=levels[::4])
        bar.ax.set_yticklabels(ticks)
        bar.ax.minorticks_off()
        for name, (x, y) in points.items():
            right = x > np.mean(xs)  # where the name has room
            place = {"xytext": (-6 if right else 6, 6), "textcoords": "offset points"}
            side = "right" if right else "left"
            axis.plot(x, y, "o", color="white", markeredgecolor="black")
            axis.annotate(name, (x, y), color="white", ha=side, **place)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(file)
