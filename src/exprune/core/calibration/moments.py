"""How partial sums foretell a neuron's pre-activation, measured on calibration inputs (docs/method.md, section 8)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exprune.core.accounting.plan import checked, make_plan
from exprune.core.discovery.chain import Chain
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.sums.parts import StagedFollower
from exprune.core.sums.rows import check_rows
from exprune.core.sums.terms import Terms

_FEWEST = 100  # rows: the standard deviation of a residual is then known to 7 %
_POSITIONS = 64  # of an input that are enough
_BLOCK = 2**17  # numbers
_FLOOR = 0.01  # of the layer's median: what no standard deviation and no gradient is taken to lie below


@dataclass(frozen=True)
class SiteStatistics:
    """Of every neuron of a site the line from its partial sum s to the sum of all its terms, ``slope * s + offset``.

    Attributes:
        stages: the terms evaluated before each test, ascending.
        slope, offset: (stages, outputs) float64.
        sd: likewise, the standard deviation of what the line leaves unexplained.
        order: in which the terms are evaluated, (N,) or one per neuron (outputs, N); None: the model's own.
        gradient: (outputs,) float64, the mean squared gradient of the loss at the neuron's output; None: not measured.
    """

    stages: tuple[int, ...]
    slope: Tensor
    offset: Tensor
    sd: Tensor
    order: Tensor | None = None
    gradient: Tensor | None = None

    @classmethod
    def of(cls, moments: "Moments", stages: Sequence[int], name: str, order: Tensor | None) -> "SiteStatistics":
        """From the moments of the sums after these stages.

        Raises:
            SettingError: they are of too few rows, or some rows were NaN or inf.
        """
        if moments.undefined:
            raise undefined(moments.undefined, moments.undefined + moments.count, name)
        if moments.count < _FEWEST:
            raise SettingError(f"calibration: {moments.count} rows of {name}; at least {_FEWEST}, take more inputs")
        slope, offset, sd = moments.lines()
        return cls(tuple(stages), slope, offset, floored(sd), order)


class Recorder(StagedFollower):
    """Takes the moments of partial and full sums inside the context, keeping no activations.

    Of inputs with many positions (pixels, tokens) it looks at 64 or a few more, evenly spread.

    Run the model under it over the calibration inputs, then ask for :meth:`statistics`.

    Args:
        stages: terms evaluated before each test, ascending.
        orders: of evaluation, by site; sites without one keep the model's own.

    Attributes:
        rows: as of :class:`~exprune.core.ExPrune`: rows that are no data teach nothing. In the shape (inputs,
            positions) they also say which rows of a matrix are of one input.
    """

    def __init__(
        self, sites: Sequence[Site], stages: Sequence[int], orders: Mapping[str, Tensor | None] | None = None
    ) -> None:
        self.orders = orders or {}
        stages = checked(stages)
        sites = [site for site in sites if site.eligible]
        plans = {site.name: make_plan(site, stages, math.inf, self.orders.get(site.name)) for site in sites}
        self.plans = {name: plan for name, plan in plans.items() if plan.stages}
        sites = [site for site in sites if site.name in self.plans]
        # A Linear layer's sums are of the few rows that are looked at alone.
        in_parts = {site.name: self.plans[site.name] for site in sites if site.spatial_dims}
        super().__init__(sites, in_parts)
        self.rows: Tensor | None = None
        self._moments: dict[str, Moments] = {}

    def before_relu(self, chain: Chain, z: Tensor) -> None:
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            chain, z = _arranged(chain, z)
            take, beside = self._taker(chain, z), chain.beside
            full = take(z).to(torch.promote_types(z.dtype, torch.float32))
            full = full - (take(beside.expand_as(z)) if isinstance(beside, Tensor) else beside)
            moments = self._moments.setdefault(chain.name, Moments())
            for sums, some in self._blocks(chain, take, full):
                moments.add(sums, some)

    def _taker(self, chain: Chain, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Makes (rows, channels) of values like z or, of a Linear, its input: some positions, those that are data."""
        dim, rows = chain.call.channel_dim, self.rows
        if rows is not None:
            check_rows(rows, chain, z)
        if rows is None or rows.all():
            return lambda values: _spread(values.movedim(dim, -1), rows)
        one = z.narrow(dim, 0, 1)
        data = rows.to(z.device, torch.bool).reshape(*one.shape[:dim], *(1,) * -dim).expand_as(one)
        data = _spread(data.movedim(dim, -1), rows)[:, 0]
        return lambda values: _spread(values.movedim(dim, -1), rows)[data]

    def _blocks(
        self, chain: Chain, take: Callable[[Tensor], Tensor], full: Tensor
    ) -> Iterator[tuple[Iterable[Tensor], Tensor]]:
        """A few rows at a time the sums after each stage, (rows, outputs), and the full ones."""
        call, parts = chain.call, blocks(full)
        if call.sums:
            sums = [take(s) if chain.scale is None else take(s) * chain.scale.flatten() for s in call.sums]
        else:
            stages = self.plans[chain.name].stages
            terms = [Terms.of(call, stage.channels, stage.keep, chain.scale) for stage in stages]
            if not call.is_conv:
                for x, part in zip(take(call.input).split([len(part) for part in parts]), parts, strict=True):
                    yield _prefixes(terms, x), part
                return
            sums = [take(s) for s in _prefixes(terms, call.input)]
        yield from zip(zip(*map(blocks, sums), strict=True), parts, strict=True)

    def statistics(self) -> dict[str, SiteStatistics]:
        """By site.

        Raises:
            SettingError: too few rows (images times positions, nodes, tokens) reached a site.
        """
        return {
            name: SiteStatistics.of(of, [stage.n for stage in self.plans[name].stages], name, self.orders.get(name))
            for name, of in self._moments.items()
        }


def _arranged(chain: Chain, z: Tensor) -> tuple[Chain, Tensor]:
    """The chain and its pre-activation as of a batch; of a Linear its input and sums with the rows of ``z``."""
    call, residual = chain.call, chain.residual
    if z.dim() == -call.channel_dim:  # no batch
        z = z[None]
        residual = residual if residual is None or residual.dim() < z.dim() - 1 else residual[None]
        if call.is_conv:
            call = replace(call, input=call.input[None], sums=tuple(sums[None] for sums in call.sums))
    if not call.is_conv:
        sums = tuple(of.reshape(z.shape) for of in call.sums)
        call = replace(call, input=call.input.reshape(*z.shape[:-1], -1), sums=sums)
    return replace(chain, call=call, residual=residual), z


def _prefixes(terms: Sequence[Terms], x: Tensor) -> Iterator[Tensor]:
    """The sums after each stage of rows of a call's input."""
    s = None
    for group in terms:
        s = group.sum(group.inputs(x), s)
        yield s


def _spread(values: Tensor, rows: Tensor | None) -> Tensor:
    """Of (inputs, positions..., channels) some positions of each input: (rows, channels)."""
    if values.dim() == 2 and rows is not None:
        values = values.reshape(*rows.shape, -1)
    if values.dim() > 2:
        values = values.flatten(1, -2)
        count = values.shape[1]
        # An odd step: every column of an image has its turn.
        values = values[:, :: 1 if count <= _POSITIONS else count // _POSITIONS | 1]
    return values.flatten(0, -2)


def floored(values: Tensor) -> Tensor:
    """Values (..., outputs), none below a small share of the median over the outputs, and all above 0."""
    floor = (_FLOOR * values.median(dim=-1, keepdim=True).values).clamp(min=torch.finfo(values.dtype).tiny)
    return values.maximum(floor)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class Moments:
    """Count, means and centred second moments per output of z and of s after each stage, of blocks of rows.

    Merged as in Chan, Golub, LeVeque 1983.
    """

    count: int = 0
    means: Tensor = field(default_factory=_zero)  # (stages + 1, outputs): of s after each stage, of z
    squares: Tensor = field(default_factory=_zero)  # likewise, their second moments
    products: Tensor = field(default_factory=_zero)  # (stages, outputs): s z
    undefined: int = 0  # rows left out, for NaN or inf in them

    def add(self, sums: Iterable[Tensor], z: Tensor) -> None:
        """Each of shape (rows, outputs)."""
        mean_of_z = z.mean(0)
        keep = None
        if not mean_of_z.isfinite().all():
            keep = z.isfinite().all(1)
            self.undefined += int((~keep).sum())
            if not keep.any():
                return
            z = z[keep]
            mean_of_z = z.mean(0)
        z = z - mean_of_z
        of_sums: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
        for s in sums:
            s = s if keep is None else s[keep]
            mean = s.mean(0)
            s = s - mean
            for values, one in zip(of_sums, (mean, (s * s).sum(0), (s * z).sum(0)), strict=True):
                values.append(one)
        means = torch.stack([*of_sums[0], mean_of_z]).double()
        squares, products = torch.stack([*of_sums[1], (z * z).sum(0)]).double(), torch.stack(of_sums[2]).double()
        apart, more = means - self.means, len(z)
        weight = self.count * more / (self.count + more)
        self.squares = self.squares + squares + weight * apart**2
        self.products = self.products + products + weight * apart[:-1] * apart[-1]
        self.means = self.means + apart * (more / (self.count + more))
        self.count += more

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, offset and residual standard deviation of z over each s; no slope where s does not vary."""
        ss, zz = self.squares[:-1], self.squares[-1]
        slope = torch.where(ss > 0, self.products / ss.clamp(min=torch.finfo(ss.dtype).tiny), 0)
        left = (zz - slope * self.products).clamp(min=0) / (self.count - 2)
        return slope, self.means[-1] - slope * self.means[:-1], left.sqrt()


def undefined(rows: int, of: int, name: str) -> SettingError:
    """What is to be said where so many of a site's rows are NaN or inf."""
    return SettingError(
        f"calibration: {rows} of {of} rows at {name} hold NaN or inf; leave those inputs out, or mend the weights"
    )


def blocks(values: Tensor) -> Sequence[Tensor]:
    """(rows, channels) a few rows at a time, so that what is made of them stays in a core's cache; none of no rows."""
    return values.split(max(1, _BLOCK // values.shape[1])) if len(values) else ()
