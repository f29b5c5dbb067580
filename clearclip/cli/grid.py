"""A grid of a method's options, and what it gives as a pivot table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from clearclip.errors import UserError
from clearclip.registry import split

if TYPE_CHECKING:
    from clearclip.evaluation.results import Result

# What tells two pivot tables of one grid apart.
APART = ("dataset", "protocol", "backbone", "pretrained", "precision")


@dataclass(frozen=True)
class Grid:
    """All combinations of some options of a method.

    Grid.parse("ClearCLIP:attention=qq|kk,residual=0|1").methods
    # ["ClearCLIP:attention=qq,residual=0", "ClearCLIP:attention=qq,residual=1", "ClearCLIP:attention=kk,residual=0", …]

    Attributes:
        method: its name.
        axes: the values of each option, as written.
    """

    method: str
    axes: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> "Grid":
        """Read the written form. Raises UserError for a grid of one cell, and for an option without values."""
        name, colon, rest = text.partition(":")
        axes: dict[str, tuple[str, ...]] = {}
        for option in split(rest, ","):
            key, equals, values = (part.strip() for part in option.partition("="))
            parts = tuple(value.strip() for value in values.split("|"))
            if not (colon and key and equals) or not all(parts) or key in axes or len({*parts}) < len(parts):
                raise UserError(f"--grid {text!r} must be METHOD:option=value|value,…, each option and value once")
            axes[key] = parts
        if all(len(values) == 1 for values in axes.values()):
            raise UserError(f"--grid {text!r} must give options several values, such as ClearCLIP:attention=qq|kk")
        return cls(name.strip(), axes)

    @property
    def methods(self) -> list[str]:
        """A method for each cell."""
        return [self._cell(values) for values in product(*self.axes.values())]

    def _cell(self, values: Iterable[str]) -> str:
        return f"{self.method}:{','.join(f'{key}={value}' for key, value in zip(self.axes, values))}"

    def pivots(self, results: Iterable["Result"]) -> list["Pivot"]:
        """A pivot table for each data set, protocol and backbone: the option of most values down, the others across.

        Options of one value stand in no head.
        """
        from clearclip.spec import Spec

        groups: dict[tuple, dict[str, Result]] = {}
        for result in results:
            groups.setdefault(tuple(result.get(name) for name in APART), {})[result["method"]] = result
        varied = [key for key, values in self.axes.items() if len(values) > 1]
        down = max(varied, key=lambda key: len(self.axes[key]))
        across = [key for key in varied if key != down]
        found = []
        for place, group in groups.items():
            cells: list[list[Result | None]] = []
            for value in self.axes[down]:
                columns = product(*(self.axes[key] for key in across))
                chosen = [{down: value, **dict(zip(across, column))} for column in columns]
                names = [self._cell(one.get(key, self.axes[key][0]) for key in self.axes) for one in chosen]
                cells.append([group.get(str(Spec.parse(name))) for name in names])
            heads = [list(column) for column in zip(*product(*(self.axes[key] for key in across)))]
            found.append(
                Pivot(f"{self.method}, {', '.join(map(str, place))}", down, self.axes[down], across, heads, cells)
            )
        return found


@dataclass(frozen=True)
class Pivot:
    """mIoU of a grid's cells.

    Attributes:
        title: of the table.
        down, values: the option whose values name the rows.
        across, heads: the other options, and for each its value in every column.
        cells: results, row by row; None where there is none.
    """

    title: str
    down: str
    values: tuple[str, ...]
    across: list[str]
    heads: list[list[str]]
    cells: list[list["Result | None"]]

    def lines(self, best: str = "{} *") -> list[list[str]]:
        """A line for the head of each option across, then one for each row; the best cell in the format `best`."""
        scores = [cell["mIoU"] for row in self.cells for cell in row if cell and cell["mIoU"] is not None]
        top = max(scores, default=None)
        head = [[name, *values] for name, values in zip(self.across, self.heads)] or [["", "mIoU"]]
        rows = [[f"{self.down}={value}", *(_shown(cell, top, best) for cell in row)]
                for value, row in zip(self.values, self.cells)]  # fmt: skip
        return [*head, *rows]

    def text(self) -> str:
        """For a terminal, columns aligned; the best has a star."""
        lines = self.lines()
        widths = [max(map(len, column)) for column in zip(*lines)]
        shown = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *shown])

    def markdown(self) -> str:
        """As Markdown; the best is bold."""
        first, *rest = self.lines(best="**{}**")
        lines = [first, ["---"] + ["---:"] * (len(first) - 1), *rest]
        shown = ["| " + " | ".join(re.sub(r"([\\|<`])", r"\\\1", text) for text in line) + " |" for line in lines]
        return "\n".join([self.title, "", *shown])


def _shown(cell: "Result | None", top: float | None, best: str) -> str:
    if cell is None or cell["mIoU"] is None:
        return ""
    half = cell.get("interval")
    text = f"{cell['mIoU']:.2f}" + ("" if half is None else f" ± {half:.2f}")
    return best.format(text) if cell["mIoU"] == top else text
