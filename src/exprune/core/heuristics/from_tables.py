"""A heuristic that applies decision tables computed earlier, for example in another process."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT, Plan
from exprune.core.decisions.table import DecisionTable, test_flops
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic


class FromTables(Heuristic):
    """Stop neurons according to decision tables, such as those that `load_tables` returns.

    Args:
        tables: The decision table of each site, by name. Sites without a table run dense.

    Raises:
        SettingError: If there are no tables. When the run begins, if a table does not fit the site of its name.
    """

    gain_ratio = 1000.0

    def __init__(self, tables: Mapping[str, DecisionTable]) -> None:
        if not tables:
            raise SettingError("FromTables: there is no decision table")
        super().__init__()
        self.tables = dict(tables)
        self.stages = tuple(sorted({n for table in tables.values() for n in table.stages}))
        self.predicts = any(table.predicts for table in tables.values())

    def refuses(self, site: Site) -> str | None:
        return None if site.name in self.tables else "has no decision table"

    def order(self, site: Site) -> Tensor | str | None:
        table = self.tables[site.name]
        return table.order if table.usual is None else BY_INPUT

    def overhead(self, stage: int, site: Site) -> int:
        table = self.tables[site.name]
        return test_flops(site, stage, table.usual is not None, table.predicts, table.gate is not None)

    def solve(self, site: Site, plan: Plan, tau: Any) -> DecisionTable:
        table, wanted = self.tables[site.name], [stage.n for stage in plan.stages]
        if table.slope.shape != (len(table.stages), site.outputs) or not set(wanted) <= set(table.stages):
            raise SettingError(
                f"the decision table of {site.name} is of {table.slope.shape[1]} outputs after {list(table.stages)} "
                f"terms, but the layer has {site.outputs} outputs and is tested after {wanted} terms"
            )
        rows = [table.stages.index(n) for n in wanted]
        by_stage: dict[str, Any] = {
            name: None if value is None else value[..., rows, :]
            for name, value in table.tensors().items()
            if name not in ("usual", "gate")
        }
        usual = None if table.usual is None else table.usual[rows]
        return replace(table, stages=tuple(wanted), usual=usual, **by_stage)
