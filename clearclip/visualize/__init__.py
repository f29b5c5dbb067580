"""Pictures of what a model saw, in one look for all programs.

The photograph goes grey and lets the colours speak; these are soft, differ in lightness and stay apart for
colour-blind eyes (`colours`). Names stand on their regions (`names`), a legend has the areas (`legend`), scores are a
heat map with their range (`heat`), and several pictures make a sheet of at most three columns (`sheet`).

Text is sized for a picture, or the sheet that it is to be part of, shown 1,200 pixels wide: give functions the number
of `columns` of that sheet. `max_side` draws at the size at which the picture is shown, which for large photographs
is many times faster.

    from clearclip.visualize import overlay, save_picture

    save_picture(overlay("cat.jpg", result.labels, result.names, max_side=1600), "cat_overlay.png")
"""

from clearclip.visualize.canvas import encode_picture, save_picture
from clearclip.visualize.colours import INFERNO, VIRIDIS, hexadecimal, palette, simulate
from clearclip.visualize.errors import error_map
from clearclip.visualize.heat import heat_map
from clearclip.visualize.labels import areas, ignored, read_legend, save_label_map
from clearclip.visualize.legend import legend_panel
from clearclip.visualize.overlay import overlay
from clearclip.visualize.sheet import compare, comparison, sheet

__all__ = [
    "INFERNO", "VIRIDIS", "areas", "compare", "comparison", "encode_picture", "error_map", "heat_map", "hexadecimal",
    "ignored", "legend_panel", "overlay", "palette", "read_legend", "save_label_map", "save_picture", "sheet",
    "simulate",
]  # fmt: skip
