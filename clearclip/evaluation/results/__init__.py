"""What a run leaves behind: `result.json` in its work dir, a line in `results.xlsx`, a cell of the table."""

from clearclip.evaluation.results.record import Result, read_result, write_result
from clearclip.evaluation.results.tables import AVERAGES, BENCHMARKS, NO_BACKGROUND, ROW, as_markdown, as_text, table
from clearclip.evaluation.results.workbook import append_results, check_workbook, rebuild

__all__ = [
    "AVERAGES", "BENCHMARKS", "NO_BACKGROUND", "ROW", "Result", "append_results", "as_markdown", "as_text",
    "check_workbook", "read_result", "rebuild", "table", "write_result",
]  # fmt: skip
