"""Decision tables: where the neurons of a site stop, computed before the run (docs/method.md, section 8)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exprune.core.discovery.sites import Site
from exprune.files import load_tensors, save_tensors

_STEPS, _POWERS = 8, 4  # steps per power of 2; powers of 2 on either side of the usual width
WIDTHS = torch.cat([torch.zeros(1), 2.0 ** (torch.arange(-_POWERS * _STEPS, _POWERS * _STEPS + 1) / _STEPS)]).double()
NEGLIGIBLE = 1e-6  # relative width below which a row counts as known
_FORMAT = "exprune decision tables 1"


@dataclass(frozen=True)
class DecisionTable:
    """The rule of one site: after each stage, a neuron with the expected value m stops if m is below a bound.

    In an order that all inputs share, ``m = slope * s + offset + r``, with the sum s of the evaluated terms and the
    constant part r (bias, residual). In the order of each input, ``m = (1 + slope * rest / norm) * s + offset * rest +
    r``, with the norms of the row's remaining terms (rest) and of all its terms (norm). The bounds then depend on the
    row's width, ``rest / usual``, rounded to one of `WIDTHS`.

    A stopped neuron outputs 0, or the activation of m if the table ``predicts``.

    Attributes:
        stages: How many terms are evaluated before each test.
        slope: Slopes (stages, outputs).
        offset: Offsets (stages, outputs).
        below: Bounds on m (widths, stages, outputs). There is one width, or in the order of each input all of `WIDTHS`.
            None means that ``narrow`` applies.
        zero_below: Bounds of the same shape, below which a stopped neuron outputs 0 although the table predicts. None
            means that the activation decides.
        narrow: Bounds on the row's width (stages, outputs), in the order of each input: a neuron stops if the width is
            below, whatever its sum. With ``gate``, the width is multiplied by the gate's relative size.
        usual: The root mean square of ``rest`` (stages,); None in an order that all inputs share.
        gate: The root mean square of the gate that multiplies the outputs (outputs,); None without a gate.
        predicts: Whether stopped neurons output a prediction.
        order: The shared order of all terms (N,), or one per neuron (outputs, N). None means the model's own order, or
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
        """The table with the dtype and device of ``part``."""
        key = part.dtype, part.device
        if key not in self._moved:
            moved: Any = {name: None if value is None else value.to(part) for name, value in self.tensors().items()}
            self._moved[key] = replace(self, **moved)
        return self._moved[key]

    def tensors(self) -> dict[str, Tensor | None]:
        """The tensors of the table except the order, by the names of the attributes."""
        names = ("slope", "offset", "below", "zero_below", "narrow", "usual", "gate")
        return {name: getattr(self, name) for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_moved": {}}


def width_places(widths: Tensor) -> Tensor:
    """The indices into `WIDTHS` for rows of these widths, in units of the usual one."""
    places = torch.log2(widths).mul_(_STEPS).round_().add_(1 + _POWERS * _STEPS).clamp_(1, len(WIDTHS) - 1)
    return places.mul_(widths > NEGLIGIBLE).long()


def test_flops(site: Site, stage: int, by_input: bool, predicts: bool, gated: bool) -> int:
    """FLOPs of a table's test at a stage, per tested neuron (docs/method.md, section 8).

    Args:
        site: The site.
        stage: The index of the test.
        by_input: Whether terms are in the order of each input.
        predicts: Whether stopped neurons output a prediction.
        gated: Whether the gate that multiplies the outputs is known.
    """
    if not by_input:
        return 3 if site.residual else 1  # a comparison; a residual requires slope * s + r as well
    line = 2 + site.residual  # slope * s + r < bound; without a residual, r is part of the bound
    if site.before_activation:
        return line + predicts
    # The row's width decides, or the width times a neuron's gate: a product and a comparison.
    return 2 * gated + (line if stage == 0 else 0)  # the prediction is computed once, and charged to all


def save_tables(tables: Mapping[str, DecisionTable], path: Path | str) -> None:
    """Save decision tables in the safetensors format.

    Args:
        tables: The decision table of each site, by name; for example `ExPrune.tables`.
        path: The file to write.
    """
    tensors = {
        f"{name}/{of}": value
        for name, table in tables.items()
        for of, value in {**table.tensors(), "order": table.order}.items()
        if value is not None
    }
    about = {name: {"stages": table.stages, "predicts": table.predicts} for name, table in tables.items()}
    save_tensors(Path(path), tensors, {"format": _FORMAT, "tables": json.dumps(about)})


def load_tables(path: Path | str) -> dict[str, DecisionTable]:
    """Load decision tables that `save_tables` wrote. Loading executes no code.

    Args:
        path: The file to read.

    Returns:
        The decision table of each site, by name, for `FromTables`.

    Raises:
        SettingError: If the file does not exist or holds no decision tables.
    """
    tensors, metadata = load_tensors(Path(path), _FORMAT)
    tables = {}
    for name, about in json.loads(metadata["tables"]).items():
        own: dict[str, Any] = {
            key.rpartition("/")[2]: value for key, value in tensors.items() if key.rpartition("/")[0] == name
        }
        tables[name] = DecisionTable(tuple(about["stages"]), predicts=about["predicts"], **{"below": None, **own})
    return tables
