"""What the site has beside the pages of this folder: README, notebooks, the files that pages link to, fronts, formulas.

The documents are written to be read in the repository, too. So their links lead to files; here a link to something
outside this folder becomes one to its copy in the site.
"""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"""(\]\(|<img src=")([^)#\s"]+)((?:#[^)\s]*)?[)"])""")
_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_FRONT = re.compile(r'<img [^>]*src="[^"]*?(\w+)/fronts\.png"[^>]*>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere, what any page links to, and what draws interactive fronts."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_notebook(text) if source.endswith(".ipynb") else text))
    for page in files.documentation_pages():
        for linked in _linked(page):
            if linked.is_file() and files.get_file_from_path(_in_site(linked)) is None:
                files.append(File.generated(config, _in_site(linked), abs_src_path=str(linked)))
    sys.path.insert(0, str(ROOT / "results" / "make"))
    from curves import drawn, networks

    for network in networks():
        chart = json.dumps(drawn(network))
        files.append(File.generated(config, f"assets/fronts/{network}.json", content=chart))
    library = Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js"  # type: ignore[union-attr, arg-type]
    files.append(File.generated(config, "assets/plotly.min.js", abs_src_path=str(library)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Leads each link to where its target lies in the site; one to a folder leads into the repository."""
    folder = _source(page.file).parent

    def there(found: re.Match[str]) -> str:
        target = found[2]
        if ":" in target:
            return found[0]
        path = ROOT / normpath(folder / target)
        if path.is_dir():
            address = f"{config.repo_url or ''}/tree/main/{path.relative_to(ROOT).as_posix()}"
            return f"{found[1]}{address}{found[3]}" if config.repo_url else f"{found[1]}#{found[3][-1]}"
        return f"{found[1]}{relpath(_in_site(path), Path(page.file.src_uri).parent.as_posix())}{found[3]}"

    return "".join(part if part.startswith("`") else _LINK.sub(there, part) for part in _CODE.split(markdown))


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Writes formulas as MathML, which browsers draw by themselves, and puts interactive fronts beside still ones."""
    html = _MATHS.sub(_formula, html)
    root = "../" * page.url.count("/")
    files = f'data-chart="{root}assets/fronts/{{}}.json" data-library="{root}assets/plotly.min.js"'
    chart = f'<div class="front" {files}></div>'
    return _FRONT.sub(lambda found: chart.format(found[1]) + found[0], html)


def _source(file: File) -> Path:
    """Where a page's text lies, from the root of the repository."""
    return Path(SOURCES.get(file.src_uri, f"docs/{file.src_uri}"))


def _in_site(path: Path) -> str:
    inside = path.relative_to(ROOT).as_posix()
    return PAGES.get(inside, inside.removeprefix("docs/"))


def _linked(file: File) -> set[Path]:
    folder, text = _source(file).parent, _CODE.sub("", file.content_string)
    targets = (found[2] for found in _LINK.finditer(text) if ":" not in found[2])
    return {ROOT / normpath(folder / target) for target in targets}


def _table(html: str) -> str:
    """A table of pandas in the site's own style."""
    plain = re.sub(r"<style.*?</style>|\n\s*", "", html, flags=re.DOTALL).replace(' border="1" class="dataframe"', "")
    return plain.replace("<div>", '<div class="wide">', 1)


def _formula(found: re.Match[str]) -> str:
    if found[1] == "span":
        return convert(_plain(found[2]))
    return f'<div class="wide">{convert(_plain(found[2]), display="block")}</div>'


def _plain(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()


def _notebook(text: str) -> str:
    """A notebook with its outputs as a page."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="" src="data:image/png;base64,{image}">')
            elif "text/html" in data:
                parts.append(_table("".join(data["text/html"])))
            else:
                shown = "".join(data["text/plain"])
                parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts)
