"""SMILES strings as texts, and as tokens of a BERT for molecules."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from exprune.core.errors import SettingError
from exprune.files import named
from exprune.lab.data.hub import in_folder
from exprune.lab.examples.language.own_tokens import OwnTokens
from exprune.lab.examples.language.stdlib import Corpus
from exprune.lab.examples.molecules.smiles import Molecules


def smiles_tokens(name: str | None) -> OwnTokens:
    """The tokens of a BERT for molecules, listed in its ``vocab.txt``: atoms, bonds, rings and branches of SMILES.

    Raises:
        SettingError: If there is no such list, or if it is not a text file.
    """
    path = Path(in_folder(name)) / "vocab.txt"
    if not path.is_file():
        raise SettingError(f"model.pretrained={name}: no vocab.txt, which lists the tokens of SMILES strings")
    tokens = named(path, lambda path: path.read_text("utf-8").split())
    number = {token: index for index, token in enumerate(tokens)}
    if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in number]:
        raise SettingError(f"{path}: no token {missing[0]}")

    def ids(texts: list[str]) -> list[list[int]]:
        return [[number.get(token, number["[UNK]"]) for token in _SMILES.findall(text)] for text in texts]

    return OwnTokens(ids, (number["[CLS]"],), (number["[SEP]"],), number["[PAD]"], number["[MASK]"])


_SMILES = re.compile(r"\[[^\]]*\]|Br|Cl|%[0-9]{2}|.")  # an atom in brackets, a two-letter atom, a two-digit ring


def molecule_texts(read: Callable[[Path, Path], Molecules]) -> Callable[[Path, Path], Corpus]:
    """A function that returns SMILES strings as texts, randomly split: a tenth each for validation and test."""

    def texts(data_dir: Path, cache_dir: Path) -> Corpus:
        molecules = read(data_dir, cache_dir)
        order = torch.randperm(len(molecules.smiles), generator=torch.Generator().manual_seed(0)).tolist()
        tenth = len(order) // 10
        cut = {"valid": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
        parts = {part: {str(k): molecules.smiles[k] for k in chosen} for part, chosen in cut.items()}
        return Corpus(molecules.source, parts)

    return texts
