"""Importance: the variance of each term of a neuron, and the gradient of the loss at each neuron.

Both are measured on calibration inputs, in passes that store no activations (docs/method.md, section 8).
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.context import Calibration
from exprune.core.calibration.lines import undefined
from exprune.core.calibration.recorder import blocks
from exprune.core.discovery.sites import Site, with_wholes
from exprune.core.errors import SettingError
from exprune.core.partial_sums.rows import data_rows
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.known import KnownSites


class _Means:
    """Means over all rows of values per channel, and of their squares, for each site that is reached."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._undefined: Counter[str] = Counter()  # rows with NaN or infinity

    def add(self, name: str, values: Tensor, dim: int, rows: Tensor | None) -> None:
        """Add values (..., channels at ``dim``, ...); only rows that are data count."""
        values = data_rows(values, dim, rows)
        for some in blocks(values):
            some = some.to(torch.promote_types(some.dtype, torch.float32))
            both = torch.stack([some.sum(0), (some * some).sum(0)]).double()
            if not both.isfinite().all():
                self._undefined[name] += int((~(some * some).isfinite()).any(1).sum())
            self._sums[name] = self._sums.get(name, 0) + both
        self._counts[name] = self._counts.get(name, 0) + len(values)

    def by_site(self) -> dict[str, Tensor]:
        """The means of the values and of their squares (2, channels), float64, by site.

        Raises:
            SettingError: If some values were NaN, infinite or too large to be squared.
        """
        for name, rows in self._undefined.items():
            raise undefined(rows, self._counts[name], name)
        return {name: sums / self._counts[name] for name, sums in self._sums.items()}


class InputVariances(Calibration):
    """Measure the variance of every input channel of the sites, over all that passes through inside the context.

    Args:
        sites: The layers, from `find_sites`.

    Attributes:
        rows: Which rows of the current batch are data; see `ExPrune`.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__(KnownSites(with_wholes(sites)))
        self._means = _Means()

    def variances(self) -> dict[str, Tensor]:
        """The variances (terms,), float64, by site.

        Raises:
            SettingError: If some inputs were NaN, infinite or too large to be squared.
        """
        return {name: (squares - mean**2).clamp(min=0) for name, (mean, squares) in self._means.by_site().items()}

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        self._means.add(chain.name, chain.call.input.detach(), chain.call.channel_dim, self.rows)


class SquaredGradients(Calibration):
    """Measure mean squared gradients at the outputs of the sites' activations, over all backward passes in the context.

    Sum the losses over the inputs, do not average them: then each gradient is that of its own input's loss. Freezing
    the parameters (``model.requires_grad_(False)``) halves the cost, because the graph then begins at the first site.

    Args:
        sites: The layers, from `find_sites`.

    Attributes:
        rows: Which rows of the current batch are data; see `ExPrune`.

    Example:
        ```python
        with SquaredGradients(sites) as gradients:
            cross_entropy(model(x), y, reduction="sum").backward()
        gradients.mean()["layer1.conv1"]  # one number per output channel
        ```
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__(KnownSites(with_wholes(sites)))
        self._means = _Means()
        self._outputs: dict[str, int] = {}  # number of outputs of the sites that were called
        self._with_gradients: set[str] = set()

    def mean(self) -> dict[str, Tensor]:
        """The mean squared gradients (outputs,), float64, by site; 0 if the losses do not depend on a site.

        If a model disables gradients in some calls of a layer (such as all but the last steps of a recurrence), only
        the other calls are measured.

        Raises:
            SettingError: If gradients at a site were NaN, infinite or too large to be squared, or if they were disabled
                in all its calls.
        """
        if without := [name for name in self._outputs if name not in self._with_gradients]:
            raise SettingError(
                f"gradients: {', '.join(without[:3])}{', ...' if without[3:] else ''} called with gradients disabled "
                "in every call; use torch.enable_grad(), or leave out what the model runs under torch.no_grad()"
            )
        means = self._means.by_site()
        unheeded = {name: torch.zeros(size, dtype=torch.float64) for name, size in self._outputs.items()}
        return unheeded | {name: squares for name, (_, squares) in means.items()}

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        name, dim = chain.name, chain.call.channel_dim
        self._outputs[name] = out.shape[dim]
        if not torch.is_grad_enabled():
            return
        self._with_gradients.add(name)
        if not out.requires_grad:
            out.requires_grad_()
        out.register_hook(lambda gradient: self._means.add(name, gradient, dim, self.rows))


ORDERS = ("model", "layer", "neuron", BY_INPUT)


def term_order(site: Site, variances: Tensor, kind: str) -> Tensor | str | None:
    """An order of evaluation in which the terms with the largest variance come first, as they are the most informative.

    The variance of a term is estimated as that of its input channel times the squared norm of its weights.

    Args:
        site: The layer.
        variances: The variances of its input channels (N,), from `InputVariances`.
        kind: ``"layer"`` is one order for all neurons, by the mean share of a neuron's variance. ``"neuron"`` is one
            order per neuron. ``"model"`` is the model's own order. ``"input"`` means that each row starts with its
            largest terms.

    Returns:
        A permutation (N,) for ``"layer"`` or (outputs, N) for ``"neuron"``; None for ``"model"``; ``"input"`` itself.

    Raises:
        SettingError: If ``kind`` is none of these.
    """
    if kind not in ORDERS:
        raise SettingError(f"order={kind!r}: must be one of {', '.join(ORDERS)}")
    if kind == BY_INPUT:
        return BY_INPUT
    if kind == "model":
        return None
    assert site.weight is not None  # measured sites have one
    weight = site.weight.detach().double()
    energy = weight.square().flatten(2).sum(2) if weight.dim() > 2 else weight.square()
    energy = energy * variances.to(weight.device)
    if kind == "layer":
        energy = (energy / energy.sum(1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)).mean(0)
    return energy.argsort(dim=-1, descending=True, stable=True).cpu()
