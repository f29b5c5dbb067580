"""Figures of an `Inspection`, and of mIoU against the residual's weight. They need Matplotlib: the extra `analysis`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from clearclip.analysis import ATTENTIONS, FEED_FORWARDS, KNOWN, RESIDUALS, TERMS, WRITTEN, Inspection
from clearclip.paths import atomic_write
from clearclip.visualize import palette

BLUE, ORANGE, GREEN, INK = "#0072b2", "#e69f00", "#009e73", "#1e1e1e"  # of Okabe and Ito: apart for the colour-blind


def streams(inspection: Inspection) -> Figure:
    """By layer: how long the streams are (median over patches, band from 10 to 90 %), and how spread attention is."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    lengths, spread = figure.subplots(1, 2)
    layers = [layer + 1 for layer in inspection.layers]
    for values, name, colour in (
        (inspection.residual_norm, "residual stream, entering", BLUE),
        (inspection.attention_norm, "attention output", ORANGE),
        (inspection.feed_forward_norm, "feed-forward output", GREEN),
    ):
        low, middle, high = np.quantile(values.reshape(len(layers), -1), (0.1, 0.5, 0.9), axis=1)
        lengths.plot(layers, middle, "o-", color=colour, label=name, markersize=4)
        lengths.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    _by_layer(lengths, "norm of patch tokens")
    heads = inspection.entropy.mean(axis=(2, 3))  # [L, heads]
    spread.plot(layers, heads, color=ORANGE, alpha=0.25, linewidth=1)
    spread.plot(layers, heads.mean(axis=1), "o-", color=ORANGE, label="attention, mean of heads", markersize=4)
    spread.plot(layers, inspection.stream_entropy, "s--", color=BLUE, label="residual stream", markersize=4)
    _by_layer(spread, "entropy, share of the largest")
    spread.set_ylim(0, 1.02)
    return figure


def maps(inspection: Inspection, pixels: np.ndarray, layer: int = -1) -> Figure:
    """Attention and cosine maps of the chosen patch by term, in one of the layers, beside the window [H, W, 3]."""
    figure = Figure(figsize=(12.5, 5.2 * pixels.shape[0] / pixels.shape[1] + 1.4), layout="constrained")
    rows = figure.subplots(2, 1 + len(TERMS))
    extent = (0, inspection.place.grid[1], inspection.place.grid[0], 0)
    rows[0, 0].imshow(pixels, extent=extent, aspect="auto")
    rows[0, 0].set_title("the patch", fontsize=10)
    rows[1, 0].axis("off")
    for term, top, bottom in zip(TERMS, rows[0, 1:], rows[1, 1:]):
        attention, cosine = inspection.attention[term][layer], inspection.cosine[term][layer]
        top.imshow(attention, extent=extent, cmap="magma", vmin=0, vmax=np.quantile(attention, 0.995), aspect="auto")
        top.set_title(f"{WRITTEN[term]}: attention", fontsize=10)
        low, high = np.quantile(cosine, (0.005, 0.995))
        bottom.imshow(cosine, extent=extent, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        bottom.set_title(f"cosine, {low:.2f} to {high:.2f}", fontsize=10)
    for axes in rows.flat:
        _bare(axes)
        if axes.axison:
            _mark(axes, inspection)
    figure.suptitle(f"layer {inspection.layers[layer] + 1}", fontsize=11)
    return figure


def cells(inspection: Inspection, pixels: np.ndarray) -> Figure:
    """Labels of all patches by every re-wiring of the last block; the class of the chosen patch is each one's title."""
    count = len(RESIDUALS) * len(FEED_FORWARDS)
    ratio = pixels.shape[0] / pixels.shape[1]
    figure = Figure(figsize=(2.5 * count + 0.6, (2.5 * ratio + 0.32) * len(ATTENTIONS) + 0.7), layout="constrained")
    rows = figure.subplots(len(ATTENTIONS), count, squeeze=False)
    colours = palette(len(inspection.names)) / 255
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2) / 255
    extent = (0, inspection.place.grid[1], inspection.place.grid[0], 0)
    columns = [(residual, forward) for residual in RESIDUALS for forward in FEED_FORWARDS]
    for attention, line in zip(ATTENTIONS, rows):
        for (residual, forward), axes in zip(columns, line):
            labels = inspection.labels[attention, residual, forward]
            axes.imshow(grey, extent=extent, aspect="auto")
            axes.imshow(
                labels, extent=extent, aspect="auto", alpha=0.65, interpolation="nearest",
                cmap=ListedColormap(list(map(tuple, colours))), vmin=-0.5, vmax=len(colours) - 0.5,
            )  # fmt: skip
            known = KNOWN.get((attention, residual, forward))
            name = inspection.names[labels[inspection.place.patch]]
            axes.set_title(f"{name}{f' ({known})' if known else ''}", fontsize=9, pad=3)
            _bare(axes)
            _mark(axes, inspection)
        line[0].set_ylabel(WRITTEN[attention], fontsize=10)
    for (residual, forward), axes in zip(columns, rows[-1]):
        axes.set_xlabel(f"residual {residual:g}, feed-forward {'on' if forward else 'off'}", fontsize=10)
    present = np.unique(np.stack(list(inspection.labels.values())))
    handles = [Rectangle((0, 0), 1, 1, color=colours[index]) for index in present]
    figure.legend(
        handles, [inspection.names[index] for index in present], loc="outside upper center", ncols=8, frameon=False
    )
    return figure


def residual(curves: Mapping[str, Sequence[tuple[float, float, float | None]]], title: str) -> Figure:
    """mIoU against the residual's weight: by name, (weight, mIoU, half the width of its 95 % interval or None)."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), (BLUE, ORANGE, GREEN, INK)):
        weights, scores, halves = zip(*sorted(points))
        axes.plot(weights, scores, "o-", color=colour, label=name, markersize=4)
        known = np.array([0 if half is None else half for half in halves])
        axes.fill_between(weights, scores - known, scores + known, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("weight of the residual stream in the last block")
    axes.set_ylabel("mIoU")
    axes.set_title(title, fontsize=10)
    _quiet(axes)
    return figure


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write a figure as `name`.png, .pdf and so on; the paths."""
    paths = [folder / f"{name}.{kind}" for kind in formats]
    for path in paths:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=120)
    return paths


def _by_layer(axes: Axes, label: str) -> None:
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False, fontsize=9)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(axes: Axes, inspection: Inspection) -> None:
    row, column = inspection.place.patch
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 2, 2, fill=False, edgecolor="black", linewidth=2.4))
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 2, 2, fill=False, edgecolor="white", linewidth=1.2))
