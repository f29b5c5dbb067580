"""A page of HTML on runs: `write_report(find(["work_dirs"]), "report.html")`."""

from collections.abc import Callable
from pathlib import Path

from clearclip.errors import UserError
from clearclip.evaluation.report.gather import Report, Sources, find, gather
from clearclip.paths import atomic_write, check_writable

__all__ = ["LIMIT", "Report", "Sources", "find", "gather", "write_report"]

LIMIT = 20 * 2**20  # bytes that a mail or an issue still takes


def write_report(
    sources: Sources,
    path: str | Path,
    against: str | None = None,
    pictures: int = 3,
    title: str = "Segmentation results",
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Write a page on the results and records of `sources` to `path`; `say` hears how things go.

    Every run is compared with that of the method `against` on the same images. `pictures` images are shown at either
    end of each data set's best run, segmented once more; 0 shows none. Raises UserError where there is nothing to
    show, for a method that no run has, and where the page cannot be written or would pass `LIMIT`.

        write_report(find(["work_dirs"], "work_dirs/records"), "report.html", against="CLIP")
    """
    from clearclip.evaluation.report.page import page
    from clearclip.evaluation.report.pictures import albums

    check_writable(path)
    report = gather(sources, against, pictures, say)
    text = page(report, albums(report, say) if pictures else {}, title).encode()
    if len(text) > LIMIT:
        raise UserError(
            f"{path} would have {len(text) / 2**20:.0f} MiB, of {LIMIT / 2**20:.0f} that it may have: show fewer runs, "
            "or fewer --pictures"
        )
    with atomic_write(path) as temporary:
        temporary.write_bytes(text)
    return report
