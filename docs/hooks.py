"""Makes pages of the site from Markdown files at the root, and adapts the links of all pages to the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_PICTURE = re.compile(r"!\[([^\]]*)\]\(docs/")


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - mkdocs' own type is private
    """Add the root's files under the names that the navigation uses."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Point links at pages of the site; of a link to another file of the repository, keep the text."""
    folder = ROOT if page.file.src_uri in ROOT_PAGES.values() else ROOT / "docs"

    def adapt(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if not target or re.match(r"[a-z]+:", target):
            return link[0]
        path = (folder / target).resolve()
        if path.parent == ROOT and path.name in ROOT_PAGES:
            return f"[{text}]({ROOT_PAGES[path.name]}{anchor})"
        if path.suffix == ".md" and path.parent == ROOT / "docs":
            return f"[{text}]({path.name}{anchor})"
        return text

    return _PICTURE.sub(r"![\1](", _LINK.sub(adapt, markdown))
