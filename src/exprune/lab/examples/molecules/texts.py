"""SMILES strings as texts, and as the tokens of a BERT of molecules."""

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
    """Those of a BERT of molecules that lists them in ``vocab.txt``: atoms, bonds, rings, branches of SMILES strings.

    Raises:
        SettingError: there is no such list, or it is no text.
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


_SMILES = re.compile(r"\[[^\]]*\]|Br|Cl|%[0-9]{2}|.")  # an atom in brackets, one of two letters, a ring of two digits


def molecule_texts(read: Callable[[Path, Path], Molecules]) -> Callable[[Path, Path], Corpus]:
    """Gives the SMILES strings of some molecules as texts: a tenth each to validate and to test, by chance."""

    def texts(data_dir: Path, cache_dir: Path) -> Corpus:
        molecules = read(data_dir, cache_dir)
        order = torch.randperm(len(molecules.smiles), generator=torch.Generator().manual_seed(0)).tolist()
        tenth = len(order) // 10
        cut = {"valid": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
        parts = {part: {str(k): molecules.smiles[k] for k in chosen} for part, chosen in cut.items()}
        return Corpus(molecules.source, parts)

    return texts
