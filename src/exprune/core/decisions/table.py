"""Where the neurons of a site stop, solved before the run (docs/method.md, section 8)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exprune.core.discovery.sites import Site
from exprune.files import load_tensors, save_tensors

_STEPS, _POWERS = 8, 4  # steps to a power of 2; powers of 2 to either side of what is usual
WIDTHS = torch.cat([torch.zeros(1), 2.0 ** (torch.arange(-_POWERS * _STEPS, _POWERS * _STEPS + 1) / _STEPS)]).double()
NEGLIGIBLE = 1e-6  # of what is usual: below it a row is known
_FORMAT = "exprune decision tables 1"


@dataclass(frozen=True)
class DecisionTable:
    """After each stage a neuron is expected to be ``m``, and stops where that lies below a bound.

    In an order that all inputs share, ``m = slope * s + offset + r``, with the sum s of the terms evaluated so far and
    what is added to them in any case, r. In the order of each input ``m = (1 + slope * rest / norm) * s +
    offset * rest + r``, with the norms of what a row has left and of all of it; the bounds are those of its width,
    ``rest / usual``, rounded to one of :data:`WIDTHS`.

    What stops outputs 0; where the table ``predicts``, what the activation makes of m.

    Attributes:
        stages: terms evaluated before each test.
        slope, offset: (stages, outputs).
        below: (widths, stages, outputs): a neuron stops where m lies below. One width, or all of :data:`WIDTHS` in the
            order of each input. None: ``narrow`` says.
        zero_below: likewise, below which what stops outputs 0 though the table predicts; None: the activation says.
        narrow: (stages, outputs), in the order of each input: a neuron stops where its row's width lies below,
            whatever its sum; with ``gate`` where its own does, the row's times that of the gate.
        usual: (stages,), the root mean square of ``rest``; None: another order.
        gate: (outputs,), the root mean square of what multiplies the outputs; None: nothing does.
        predicts: whether what stops outputs a prediction.
        order: of all terms in a shared order, (N,) or one per neuron (outputs, N); None: the model's own, or
            that of each input.
    """

    stages: tuple[int, ...]
    slope: Tensor
    offset: Tensor
    below: Tensor | None
    zero_below: Tensor | None = None
    narrow: Tensor | None = None
    usual: Tensor | None = None
    gate: Tensor | None = None
    predicts: bool = False
    order: Tensor | None = None
    _moved: dict[tuple, "DecisionTable"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def like(self, part: Tensor) -> "DecisionTable":
        """The table in the type and on the device of some sums."""
        key = part.dtype, part.device
        if key not in self._moved:
            moved: Any = {name: None if value is None else value.to(part) for name, value in self.tensors().items()}
            self._moved[key] = replace(self, **moved)
        return self._moved[key]

    def tensors(self) -> dict[str, Tensor | None]:
        names = ("slope", "offset", "below", "zero_below", "narrow", "usual", "gate")
        return {name: getattr(self, name) for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_moved": {}}


def width_places(widths: Tensor) -> Tensor:
    """Where among :data:`WIDTHS` rows stand that have so many times as much left as is usual."""
    places = torch.log2(widths).mul_(_STEPS).round_().add_(1 + _POWERS * _STEPS).clamp_(1, len(WIDTHS) - 1)
    return places.mul_(widths > NEGLIGIBLE).long()


def test_flops(site: Site, stage: int, by_input: bool, predicts: bool, gated: bool) -> int:
    """FLOPs of a table's test at a stage, per neuron tested (docs/method.md, section 8).

    Args:
        gated: whether a gate is known that multiplies the outputs.
    """
    if not by_input:
        return 3 if site.residual else 1  # a comparison; with a residual slope * s + r is not known beforehand
    line = 2 + site.residual  # slope * s + r < bound; without a residual r stands in the bound
    if site.before_activation:
        return line + predicts
    # Its row alone tells which neurons stop, or its row and a neuron's gate, by a product and a comparison.
    return 2 * gated + (line if stage == 0 else 0)  # the prediction once, charged to all


def save_tables(tables: Mapping[str, DecisionTable], path: Path | str) -> None:
    """Write the tables of some sites, by name, as safetensors."""
    tensors = {
        f"{name}/{of}": value
        for name, table in tables.items()
        for of, value in {**table.tensors(), "order": table.order}.items()
        if value is not None
    }
    about = {name: {"stages": table.stages, "predicts": table.predicts} for name, table in tables.items()}
    save_tensors(Path(path), tensors, {"format": _FORMAT, "tables": json.dumps(about)})


def load_tables(path: Path | str) -> dict[str, DecisionTable]:
    """The tables that :func:`save_tables` wrote; executes no code.

    Raises:
        SettingError: there is no such file, or it holds none.
    """
    tensors, metadata = load_tensors(Path(path), _FORMAT)
    tables = {}
    for name, about in json.loads(metadata["tables"]).items():
        own: dict[str, Any] = {
            key.rpartition("/")[2]: value for key, value in tensors.items() if key.rpartition("/")[0] == name
        }
        tables[name] = DecisionTable(tuple(about["stages"]), predicts=about["predicts"], **{"below": None, **own})
    return tables
