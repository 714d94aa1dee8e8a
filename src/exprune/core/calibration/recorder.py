"""Record how partial sums predict pre-activations on calibration inputs (docs/method.md, section 8)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exprune.core.accounting.plan import checked, make_plan
from exprune.core.calibration.context import Calibration
from exprune.core.calibration.histogram import Histogram, NeuronHistogram
from exprune.core.calibration.lines import Moments, SiteStatistics, TooFewRowsError, floored, undefined
from exprune.core.discovery.sites import Site, with_wholes
from exprune.core.partial_sums.input_order import Columns, Ranked, energies, rows_of
from exprune.core.partial_sums.parts import Parts
from exprune.core.partial_sums.rows import check_rows, data_rows, rows_for
from exprune.core.partial_sums.terms import Terms
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.known import KnownSites

_POSITIONS = 64  # positions per input that are measured
_BLOCK = 2**17  # numbers per block
QUANTILES = 1024  # steps
_NEGLIGIBLE = 1e-5  # relative norm below which the remaining terms are rounding errors, and are not measured


class Recorder(Calibration):
    """Record moments of partial and full sums inside the context, without storing activations.

    Run the model under it on the calibration inputs, then call `statistics`. In inputs with many positions (pixels,
    tokens), 64 or slightly more evenly spaced positions are measured.

    Args:
        sites: The layers, from `find_sites`.
        stages: How many terms are evaluated before each test, ascending.
        orders: The order of evaluation of each site, from `term_order`. Sites without one keep the model's own order.

    Attributes:
        rows: Which rows of the current batch are data; see `ExPrune`. Other rows are ignored. In the shape (inputs,
            positions), it also says which rows of a matrix belong to the same input.

    Raises:
        SettingError: If the stages are not ascending.

    Example:
        ```python
        with torch.no_grad(), Recorder(sites, [32, 64, 128]) as recorder:
            for batch in batches:
                model(batch)
        statistics = recorder.statistics()
        ```
    """

    def __init__(
        self, sites: Sequence[Site], stages: Sequence[int], orders: Mapping[str, Tensor | str | None] | None = None
    ) -> None:
        self.orders = orders or {}
        stages = checked(stages)
        sites = with_wholes(sites)
        known = [site for site in sites if site.eligible]
        plans = {site.name: make_plan(site, stages, math.inf, self.orders.get(site.name)) for site in known}
        self.plans = {name: plan for name, plan in plans.items() if plan.stages}
        sites = [site for site in sites if site.name in self.plans or not site.eligible]
        # A Linear layer's partial sums are computed later, only for the rows that are measured.
        in_parts = {site.name: self.plans[site.name] for site in known if site.name in self.plans and site.spatial_dims}
        super().__init__(KnownSites(sites, self.plans.keys()), Parts(in_parts).compute)
        self._moments: dict[str, Moments] = {}
        self._rest: dict[str, Tensor] = {}  # sums of squared norms after each stage; in the order of each input
        self._magnitudes: dict[str, Histogram] = {}
        self._outputs = {
            site.name: NeuronHistogram()
            for site in known
            if site.before_activation and not site.spatial_dims and site.name in self.plans
            if self.plans[site.name].by_input
        }
        # In a gated product, each of the two layers needs the size of the other's outputs.
        pairs = [(site.name, site.gated) for site in known if site.gated in self.plans and site.name in self.plans]
        self._others = {name: other for pair in pairs for name, other in (pair, pair[::-1])}
        self._squares: dict[str, tuple[Tensor, int]] = {}  # sums of squares of their outputs, and rows

    def before_activation(self, chain: Chain, z: Tensor) -> None:
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            chain, z = _arranged(chain, z)
            take, beside = self._taker(chain, z), chain.beside
            full = take(z).to(torch.promote_types(z.dtype, torch.float32))
            full = full - (take(beside.expand_as(z)) if isinstance(beside, Tensor) else beside)
            moments = self._moments.setdefault(chain.name, Moments())
            if self.plans[chain.name].by_input:
                self._rank(chain, take, z, full, moments)
                return
            for sums, some in self._blocks(chain, take, full):
                some, *sums = moments.finite(some, *sums)
                moments.add(len(some), ((s, some) for s in sums))

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        if chain.name not in self._outputs and chain.name not in self._others:
            return
        outputs = data_rows(out.detach(), chain.call.channel_dim, self.rows)
        if chain.name in self._outputs:
            self._outputs[chain.name].add(outputs)
        if chain.name in self._others:
            squares, rows = torch.linalg.vector_norm(outputs, dim=0, dtype=torch.float64) ** 2, len(outputs)
            before = self._squares.get(chain.name, (torch.zeros_like(squares), 0))
            self._squares[chain.name] = before[0] + squares, before[1] + rows

    def _rank(self, chain: Chain, take: Callable[[Tensor], Tensor], z: Tensor, full: Tensor, moments: Moments) -> None:
        """Record the moments of the remaining terms over their norm, and of the partial sum over the total norm."""
        call, stages = chain.call, [stage.n for stage in self.plans[chain.name].stages]
        columns, positions = Columns.of(call, chain.scale), z[0, 0].numel() if call.is_conv else 1
        rows = rows_of(call, call.input if call.is_conv else take(call.input), _step(positions))
        if call.is_conv and (data := rows_for(self.rows, z.shape[:1])) is not None:
            rows = rows[data.flatten().to(rows.device).repeat_interleave(len(rows) // data.numel())]
        magnitudes = self._magnitudes.setdefault(chain.name, Histogram())
        squares = torch.zeros(len(stages) + 1, dtype=torch.float64, device=z.device)
        for some, part in zip(rows.split([len(block) for block in blocks(full)]), blocks(full), strict=True):
            part, some = moments.finite(part, some)
            ranked = columns.rank(some, stages)
            if ranked.undefined is not None:
                moments.undefined += int(ranked.undefined.sum())
            magnitudes.add(energies(some))
            moments.add(len(some), _scaled(ranked, part))
            squares += torch.cat([ranked.rest, ranked.norm], 1).double().square().sum(0)
        self._rest[chain.name] = self._rest.get(chain.name, torch.zeros_like(squares)) + squares

    def _taker(self, chain: Chain, z: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that selects (rows, channels) from values like z or a Linear's input: some positions of data."""
        dim = chain.call.channel_dim
        rows = rows_for(self.rows, z.shape[: z.dim() + dim])
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
        """Yield blocks of rows: the sums after each stage (rows, outputs), and the full sums."""
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
        """The statistics of all sites that were reached, by name.

        Raises:
            SettingError: See `statistics_of`.
        """
        return {name: self.statistics_of(name) for name in self._moments}

    @property
    def measured(self) -> list[str]:
        """The names of the sites that were reached."""
        return list(self._moments)

    def statistics_of(self, name: str) -> SiteStatistics:
        """The statistics of one site.

        Args:
            name: The site's name.

        Raises:
            TooFewRowsError: If fewer than 100 rows (images times positions, nodes, tokens) reached it, or only zeros.
            SettingError: If some rows were NaN, infinite or too large to be squared.
        """
        moments, rest, magnitudes = self._moments[name], None, None
        if (squares := self._rest.get(name)) is not None:
            if not squares[-1]:
                raise TooFewRowsError(
                    f"calibration: all inputs of {name} are zero in {moments.rows} rows, so they have no order; "
                    "take more inputs, or leave the site out"
                )
            rest = (squares[:-1] / moments.rows).sqrt()
            magnitudes = self._magnitudes[name].quantiles(QUANTILES).sqrt()
        stages = [stage.n for stage in self.plans[name].stages]
        measured = SiteStatistics.of(moments, stages, name, self.orders.get(name), rest, magnitudes)
        if name not in self._outputs:
            return replace(measured, gate=self._beside(name))
        factor, of = self._beside(name), self._outputs[name]
        weighed = None if factor is None else of.quantiles(QUANTILES, factor)
        return replace(measured, outputs=of.quantiles(QUANTILES), factor=factor, weighed=weighed)

    def _beside(self, name: str) -> Tensor | None:
        """The root mean square of the factor of a layer's outputs (outputs,); None if there is none.

        Raises:
            SettingError: If the factor was NaN or infinite.
        """
        if (of := self._squares.get(self._others.get(name, ""))) is None:
            return None
        if not of[0].isfinite().all():
            raise undefined(0, of[1], f"what {name} is multiplied by")
        return floored((of[0] / of[1]).sqrt())


def _scaled(ranked: Ranked, full: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each stage the partial sum over the total norm, and the rest over its norm, in rows with any rest."""
    for s, rest in zip(ranked.sums(), ranked.rest.split(1, dim=1), strict=True):
        known = (rest > _NEGLIGIBLE * ranked.norm).squeeze(1)
        yield (s / ranked.norm)[known], ((full - s) / rest)[known]


def _arranged(chain: Chain, z: Tensor) -> tuple[Chain, Tensor]:
    """The chain and its pre-activation with a batch dimension; a Linear's input and sums get the rows of ``z``."""
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
    """Yield the partial sums of some rows of a call's input after each stage."""
    s = None
    for group in terms:
        s = group.sum(group.inputs(x), s)
        yield s


def _spread(values: Tensor, rows: Tensor | None) -> Tensor:
    """Select some positions of each input from (inputs, positions..., channels), as (rows, channels)."""
    if values.dim() == 2 and rows is not None:
        values = values.reshape(*rows.shape, -1)
    if values.dim() > 2:
        values = values.flatten(1, -2)
        values = values[:, :: _step(values.shape[1])]
    return values.flatten(0, -2)


def _step(positions: int) -> int:
    """The step between measured positions. It is odd, so that every column of an image is visited."""
    return 1 if positions <= _POSITIONS else positions // _POSITIONS | 1


def blocks(values: Tensor) -> Sequence[Tensor]:
    """Split (rows, channels) into blocks that stay in a core's cache; no blocks if there are no rows."""
    return values.split(max(1, _BLOCK // values.shape[1])) if len(values) else ()
