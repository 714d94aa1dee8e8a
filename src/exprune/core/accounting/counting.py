"""Count what the passes of a run cost densely."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from exprune.core.accounting.ledger import Ledger
from exprune.core.calls.formulas import multiply_adds
from exprune.core.calls.layers import LinearCall
from exprune.core.calls.weights import masks_of
from exprune.core.discovery.sites import Site
from exprune.core.tracing.observer import Observer


class Counting(Observer):
    """Count operators that no torch call shows, and FLOPs with masked weights, in addition to the model's torch calls.

    Args:
        sites: All sites of the run.
        masks: The masks of the sites that have one, by name.
        ledger: Where FLOPs are counted.
        rows: Returns which rows of the current batch are data; see `ExPrune`.

    Attributes:
        unseen_masks: Masked layers without a call so far, for which it is unknown how often their zeros are used.
    """

    def __init__(
        self, sites: Sequence[Site], masks: Mapping[str, Tensor], ledger: Ledger, rows: Callable[[], Tensor | None]
    ) -> None:
        self._ledger, self._rows = ledger, rows
        self._zeros = {name: mask.numel() - int(mask.count_nonzero()) for name, mask in masks.items()}
        self.unseen_masks = set(self._zeros) | {
            site.name
            for site in sites
            if not site.layer.followed and any(not mask.all() for mask in masks_of(site.module).values())
        }
        self._hidden = {site.module for site in sites if site.layer.hidden}

    def begins(self, module: nn.Module) -> None:
        if module in self._hidden:
            self._ledger.flop_counter.begin()

    def ends(self, module: nn.Module, given: tuple, failed: bool) -> None:
        if module in self._hidden:
            self._ledger.flop_counter.end()

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        self.unseen_masks.discard(name)
        if zeros := self._zeros.get(name):
            self._ledger.zeros += 2 * multiply_adds(call.weight.dtype) * zeros * self._uses(call, out)

    def _uses(self, call: LinearCall, out: Tensor) -> int:
        """How often a call uses each of its weights, in rows that are data."""
        if call.transposed_conv:
            return call.input.numel() // call.terms
        positions, rows = out.numel() // call.weight.shape[0], self._rows()
        if rows is not None and rows.numel() == positions and not call.is_conv:
            return int(rows.count_nonzero())
        return positions
