"""The site is built without a warning, and whatever a page of it links to or shows is there."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.cli import ROOT

pytest.importorskip("mkdocs", reason="the site needs: pip install -e '.[docs]'")
pytest.importorskip("material", reason="the site needs: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert outcome.returncode == 0, outcome.stderr
    assert "WARNING" not in outcome.stderr
    return folder


def test_links_and_pictures_lead_somewhere(site: Path) -> None:
    pages = {page: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    assert len(pages) > 25
    for page, text in pages.items():
        for link in map(unescape, re.findall(r'\b(?:href|src|data-chart|data-library)="([^"]+)"', text)):
            if re.match(r"[a-z]+:|//", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (page.relative_to(site), link)
            assert not anchor or anchor in anchors.get(target, {anchor}), (page.relative_to(site), link)


def test_formulas_are_drawn(site: Path) -> None:
    text = (site / "method" / "index.html").read_text()
    assert text.count("<math") > 50 and "arithmatex" not in text


def test_a_front_has_the_measured_points(site: Path) -> None:
    chart = json.loads((site / "assets" / "fronts" / "vgg11_bn.json").read_text())
    names = [curve["name"] for curve in chart["data"]]
    assert {"the paper's tests, searched", "optimal, each input's order", "oracle"} <= set(names)
    assert all(len(curve["x"]) == len(curve["y"]) == len(curve["text"]) > 0 for curve in chart["data"])
    assert (
        'data-chart="../../assets/fronts/vgg11_bn.json"'
        in (site / "results" / "within_a_drop" / "index.html").read_text()
    )


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import exprune
    import exprune.core

    for package, page in ((exprune, "exprune"), (exprune.core, "core")):
        text = (site / "api" / page / "index.html").read_text()
        missing = [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in text]
        assert missing == []
