"""What `make docs` adds to the pages in docs/: those that lie where a reader of the sources looks for them.

A hook of MkDocs. Links are written for the files as they lie in the repository; here they are turned into links between
pages, and a link to a file that is no page, such as a module, becomes its name alone.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "extending.md",
    "CHANGELOG.md": "changelog.md",
    "configs/README.md": "configs.md",
    "datasets/README.md": "datasets.md",
    "datasets/sanity/README.md": "sanity.md",
    "clearclip/offline/assets/text_student.md": "text-student.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]*)(#[^)\s]*)?\)")  # not those with a scheme, nor anchors alone


def on_files(files, config):
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    here = {page: source for source, page in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda match: relink(here, *match.groups(default="")), markdown)


def relink(here: str, picture: str, text: str, target: str, anchor: str) -> str:
    """A link of the file `here` as the site has it; paths are relative to the repository."""
    path = os.path.normpath(os.path.join(os.path.dirname(here), target)).replace(os.sep, "/")
    page = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page is None and (ROOT / path).exists():
        return text
    return f"{picture}[{text}]({page or target}{anchor})"
