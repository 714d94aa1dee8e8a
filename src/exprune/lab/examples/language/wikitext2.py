"""WikiText-2, tokenised version: Wikipedia articles with rare words as ``<unk>`` and hyphens as `` @-@ ``."""

import re
from pathlib import Path

from exprune.core.errors import SettingError
from exprune.files import named
from exprune.lab.examples.language.stdlib import Corpus, read_stdlib

# A line of its own between empty lines. Sections have more equals signs, and formulas occur inside of a text.
_HEADING = re.compile(r"^ *\n = (?!= )(.*[^=\s]) = *\n(?= *$)", re.MULTILINE)


def read_wikitext2(data_dir: Path, cache_dir: Path) -> Corpus:
    """The articles of ``data_dir/wikitext2/valid.txt`` and ``test.txt``; the cache folder is unused.

    There is no training split. Every other article of the validation split is used for calibration (``train``), and the
    others are ``valid``, so no article is in both.

    Raises:
        SettingError: If a file is missing, or has fewer than two articles.
    """
    folder = data_dir / "wikitext2"
    if missing := [name for name in ("valid.txt", "test.txt") if not (folder / name).is_file()]:
        raise SettingError(
            f"{folder / missing[0]}: no such file; put WikiText-2's valid.txt and test.txt, the tokenised version, "
            f"into {folder} (EXPRUNE_DATA_DIR, or paths.data_dir, names the folder around it)"
        )
    held_out, test = (named(folder / name, _articles) for name in ("valid.txt", "test.txt"))
    halves = {"train": held_out[::2], "valid": held_out[1::2], "test": test}
    return Corpus("WikiText-2, tokenised", {part: dict(articles) for part, articles in halves.items()})


def _articles(file: Path) -> list[tuple[str, str]]:
    """The title of each article, with its number in the file, and its text including the title."""
    text = file.read_text("utf-8")
    starts = [(found.start(), found[1].strip()) for found in _HEADING.finditer(text)]
    if len(starts) < 2:
        raise ValueError(f"{len(starts)} articles: no lines ' = Title = ', as the tokenised version has them")
    ends = [start for start, _ in starts[1:]] + [len(text)]
    return [
        (f"{number} {title}", text[start:end])
        for number, ((start, title), end) in enumerate(zip(starts, ends, strict=True))
    ]


def wikitext2_or_stdlib(data_dir: Path, cache_dir: Path) -> Corpus:
    """WikiText-2 if it is in the data folder, otherwise Python's standard library."""
    there = (data_dir / "wikitext2" / "valid.txt").is_file()
    return (read_wikitext2 if there else read_stdlib)(data_dir, cache_dir)
