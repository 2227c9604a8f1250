"""For MkDocs: pages and files outside docs/, links to them, and formulas as MathML, which needs no script."""

import html
import os
import re
from pathlib import Path
from urllib.parse import unquote

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# pages that are not in docs/
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/**/*.md")
LINK = re.compile(r'(\]\(|src=")([^)#"\s:]+)')  # a relative path, up to its anchor
NAMED_FILE = re.compile(r'\s(?:src|href)="([^":#?]+)[#?"]')  # of a built page, without other sites' addresses
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
NAMED = r"\\(?:exp|ln|log|max|min|sinh|tanh)(?:[_^]\w)?"
LATEX = (  # what TeX does and latex2mathml does not: braces, and spaces around named functions and tags
    (r"\\mathbb (\w)", r"\\mathbb{\1}"),
    (rf"({NAMED}) ", r"\1\\,"),
    (rf"(?<=[\w)\]]) (?={NAMED})", r"\\,"),
    (r"\\tag", r"\\qquad\\tag"),
)


def address(path: Path) -> str:
    """Where a file of the repository lies in the site: those of docs/ at its root."""
    docs = ROOT / "docs"
    return path.relative_to(docs if path.is_relative_to(docs) else ROOT).as_posix()


def add(files, path: Path, config) -> None:
    """Adds a file of the repository to the site, once."""
    if files.get_file_from_path(address(path)) is None:
        files.append(File.generated(config, address(path), abs_src_path=str(path)))


def on_config(config):
    """Lists the algorithms under their titles, after the page on all of them."""
    paths = sorted(
        (ROOT / "docs" / "algorithms").glob("*.md"), key=lambda path: (path.stem != "family", path.stem)
    )
    titles = [path.read_text().splitlines()[0].removeprefix("# ").partition(" (`")[0] for path in paths]
    pages = [{title: address(path)} for title, path in zip(titles, paths, strict=True)]
    next(entry for entry in config.nav if "Algorithms" in entry)["Algorithms"] = pages
    return config


def on_files(files, *, config):
    """Adds the pages that are not in docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            add(files, path, config)
    return files


def on_page_markdown(markdown, *, page, config, files):
    """Points links and pictures at the site's addresses, and adds the files that they name."""
    here = Path(page.file.abs_src_path).parent

    def point(match: re.Match) -> str:
        target = (here / match[2]).resolve()
        if target.is_dir():
            target /= "README.md"
        if not target.is_file():
            return match[0]
        add(files, target, config)
        return match[1] + os.path.relpath(address(target), os.path.dirname(page.file.src_uri))

    return LINK.sub(point, markdown)


def on_page_content(content, **_):
    """Formulas, which arithmatex leaves as LaTeX, as MathML."""

    def formula(match: re.Match) -> str:
        latex = html.unescape(match[2])
        for pattern, replacement in LATEX:
            latex = re.sub(pattern, replacement, latex)
        return convert(latex, display="inline" if match[1] == "span" else "block")

    return FORMULA.sub(formula, content)


def on_post_build(*, config):
    """Raises PluginError if a page names a file that the site lacks."""
    for page in Path(config.site_dir).rglob("*.html"):
        if page.name == "404.html":  # whose links are from the root, wherever the site will be
            continue
        for target in NAMED_FILE.findall(page.read_text()):
            if not (page.parent / unquote(target)).exists():
                raise PluginError(f"{page.relative_to(config.site_dir)} names {target}, which does not exist")
