"""What was measured, as tables for a terminal and as a picture."""

from benchmarking.measure import STAGES, vit_operations
from clearclip import windows
from clearclip.images import resized_shape
from clearclip.paths import atomic_write


def as_table(rows):
    """The rows of one case for a terminal."""
    lines = [("", "reference", "engine", "ratio", "memory, reference", "engine")]
    for row in rows:
        lines.append(
            (
                row["stage"],
                *(in_seconds(row[f"{side}_s"], row[f"{side}_spread_s"]) for side in ("reference", "engine")),
                f"{row['ratio']:.1f}x" if row["ratio"] else "-",
                *(in_mib(row[f"{side}_peak_bytes"]) for side in ("reference", "engine")),
            )
        )
    return as_columns(lines)


def as_columns(lines):
    """Lines of cells, as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def in_seconds(median, spread):
    return "-" if median is None else f"{median:.4f} ± {spread:.4f} s"


def in_mib(count):
    return "-" if count is None else f"{count / 2**20:,.1f} MiB"


def summary(rows, segmenter, case, rate):
    """Images a second, the rate of the ViT beside that of a matrix product, and the share of all else."""
    vit, image = (next(row for row in rows if row["stage"] == stage) for stage in ("ViT", "image"))
    resized = resized_shape(case.height, case.width, segmenter.short_side, segmenter.long_side)
    plan = windows.plan(*resized, segmenter.crop, segmenter.stride, segmenter.backbone.patch_size)
    reached = vit_operations(segmenter.backbone, len(plan), *plan.window_shape, case.classes) / vit["engine_s"]
    rates = [f"{1 / image[side]:.3f}" if image[side] else "-" for side in ("reference_s", "engine_s")]
    return (
        f"images a second: {rates[0]}, engine {rates[1]}; engine's ViT: {reached / 1e9:,.0f} GFLOP/s, "
        f"{reached / rate:.0%} of the rate of a large matrix product; all but the ViT: "
        f"{1 - vit['engine_s'] / image['engine_s']:.1%} of an image"
    )


def draw(rows, growth, path):
    """Stages of each case on both sides, and below how the cost grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"reference": "#b3b3b3", "engine": "#1f6fb4"}
    cases = list(dict.fromkeys(row["case"] for row in rows if row["stage"] in STAGES))
    wide = 4 if len(cases) > 3 else 3
    high = -(-len(cases) // wide)
    figure, axes = plt.subplots(
        high + 1, wide, figsize=(3.7 * wide, 3.7 * (high + 1)), squeeze=False, layout="constrained"
    )
    for axis in [*axes[:-1].flat[len(cases) :], *axes[-1, len(growth) :]]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases):
        mine = [row for row in rows if row["case"] == case]
        for offset, side in ((-0.2, "reference"), (0.2, "engine")):
            values = [row[f"{side}_s"] or 0 for row in mine]
            axis.bar([i + offset for i in range(len(mine))], values, 0.4, label=side, color=colours[side])
        for i, row in enumerate(mine):
            if row["ratio"]:
                top = max(row["reference_s"], row["engine_s"])
                axis.annotate(f"{row['ratio']:.1f}x", (i, top), ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(mine)), [row["stage"] for row in mine], rotation=45, ha="right")
        axis.set(yscale="log", ylabel="seconds", title=case)
        axis.margins(y=0.15)
        axis.legend(fontsize=8)
    titles = {
        "images": "images in one call, engine",
        "windows": "windows of one image, engine",
        "classes": "classes: stitch+decode, 512 x 512",
    }
    for axis, (what, points) in zip(axes[-1], growth.items()):
        counts, engine, reference = zip(*points)
        axis.plot(counts, [engine[-1] * n / counts[-1] for n in counts], ":", color="#555555", label="proportional")
        axis.plot(counts, engine, "o-", color=colours["engine"], label="engine")
        if all(reference):
            axis.plot(counts, reference, "o-", color=colours["reference"], label="reference")
            axis.set(xscale="log", yscale="log")
            axis.minorticks_off()
        else:
            axis.set(xlim=(0, None), ylim=(0, None))
        axis.set_xticks(counts, map(str, counts))
        axis.set(xlabel=what, ylabel="seconds", title=titles[what])
        axis.legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)
