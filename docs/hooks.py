"""What mkdocs is told beside mkdocs.yml: parts made from the code, and links that lead out of docs/.

Pages are written for the checkout, where `../README.md` and `../experiments/demo.yaml` are files. On the site the Markdown
files of the checkout's top are pages below `project/`, other linked files are copied below `files/`, and a link to a folder
becomes text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.structure.files import File, Files
from reference import ROOT, filled

DOCS = ROOT / "docs"
FETCHED = re.compile(r'<script src="https://[^"]*"></script>')
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
PROJECT = {name: f"project/{name}" for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of PROJECT and every file that a page links to outside docs/."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    sources = [*pages, *(ROOT / name for name in PROJECT)]
    linked = {target for source in sources for target, _ in _targets(source) if (ROOT / target).is_file()}
    for target in sorted(linked | set(PROJECT)):
        if (uri := _uri(target)) and files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in the parts that the page asks for, and lead its links to what the site has."""
    source = Path(page.file.abs_src_path)
    here = Path(page.file.src_uri).parent

    def led(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        if target is None or ((DOCS in source.parents) and target[0].startswith("docs/")):
            return found[0]
        uri = _uri(target[0]) if (ROOT / target[0]).is_file() else None
        if uri is None:
            return found[1]
        return f"[{found[1]}]({os.path.relpath(uri, here)}{target[1]})"

    return LINK.sub(led, filled(markdown))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme fetches a script that searches where pages are opened from a folder; the site has one of its own."""
    own = f'<script src="{os.path.relpath("assets/worker.js", Path(page.file.dest_uri).parent)}"></script>'
    return FETCHED.sub(own, output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """404.html is never opened from a folder."""
    return FETCHED.sub("", output)


def _targets(source: Path) -> list[tuple[str, str]]:
    text = source.read_text(encoding="utf-8")
    return [target for found in LINK.finditer(text) if (target := _target(source, found[2]))]


def _target(source: Path, link: str) -> tuple[str, str] | None:
    """Path from the checkout's top and anchor of a relative link; None for an address and an anchor alone."""
    path, hash_, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None
    return os.path.relpath(source.parent / unquote(path), ROOT), hash_ + anchor


def _uri(target: str) -> str | None:
    """Where the site has a file of the checkout; None for what lies outside it."""
    if target in PROJECT:
        return PROJECT[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return None if target.startswith("..") else f"files/{target}"
