"""The guide of a run, which follows sites that were found before."""

from collections import defaultdict
from collections.abc import Callable, Collection, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exprune.core.calls.activations import Activation
from exprune.core.calls.effects import call_name, draws
from exprune.core.calls.kinds import packed, transformed, without_values
from exprune.core.calls.layers import LinearCall
from exprune.core.calls.weights import MadeOfParameters, can_run, memory_of, stored_in, stored_now
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.partial_sums.trial import unlike_its_terms
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.observer import Guide
from exprune.core.tracing.padding import hooks_on


class KnownSites(Guide):
    """Lead a tracer along the chains of sites.

    Args:
        sites: The layers whose calls are observed.
        followed: The names of the layers whose chains are followed; None means the eligible ones.
        fault: Called with the name of a followed layer and the reason if some of its calls cannot be observed.

    Raises:
        SettingError: In the traced pass, if the model is in training mode and this makes a difference (BatchNorm,
            dropout); if a followed layer has a weight of another shape than when it was found; or if its input has no
            values or no separate rows (meta, fake, nested or sparse tensors; torch.vmap).
    """

    def __init__(
        self,
        sites: Sequence[Site],
        followed: Collection[str] | None = None,
        fault: Callable[[str, str], None] = lambda name, why: None,
    ) -> None:
        self._activations = {module: activation for site in sites for module, activation in site.feeds.ends}
        self.modules = list(dict.fromkeys((*(site.module for site in sites), *self._activations)))
        self._followed = {site.name for site in sites if site.eligible} if followed is None else set(followed)
        self._sites_followed = [site for site in sites if site.name in self._followed]
        self._split = {site.whole for site in self._sites_followed} - {None}
        self._at_output = {site.name for site in sites if site.outcomes and not site.before_activation}
        self._fault = fault
        self._running: Sequence[nn.Module] = ()
        self._in_training: str | bool = False  # the first layer in training mode
        self._random: str | bool = False  # the first call that draws random numbers
        self._name_of = {site.module: site.name for site in reversed(sites)}  # the first layer of each module
        self._names_of_parts = {(site.whole, site.rows): site.name for site in sites if site.rows is not None}
        self._tried: set[tuple[str, type, type]] = set()
        self._fused = dict.fromkeys(module for site in sites for module in site.layer.fused)
        whole = [site for site in sites if site.rows is None]
        self._stored = {(site.stored, site.kind): site for site in whole}
        self._without_forward = list(dict.fromkeys(site.module for site in whole if not can_run(site.module)))
        self._made = {(made.how, site.kind): site for site in whole if (made := site.stored.made) is not None}
        self._computed: MadeOfParameters | None = None
        self._in_memory: dict[int | None, list[Site]] = defaultdict(list)  # followed sites by their weights' memory

    def enter(self, chains: MutableMapping[Tensor, Chain], running: Sequence[nn.Module]) -> list[Any]:
        self._running = running
        self._in_memory.clear()
        for site in self._sites_followed:
            if (weight := stored_now(site.module, site.stored.parameter)) is not None:
                self._in_memory[memory_of(weight)].append(site)
        if self._made:  # only then, because tracking what every call computes from parameters takes time
            made = (site.stored.made for site in self._made.values())
            roots = {name: (module, own) for of in made if of is not None for name, module, own in of.roots}
            self._computed = MadeOfParameters(roots)
        # Reversed, so that the hook of a layer runs before that of its encoder.
        return [hook for module in reversed(self._fused) for hook in hooks_on(module)]

    def begins(self, module: nn.Module) -> None:
        if (name := self._name_of.get(module)) is not None:
            self._in_training = self._in_training or (module.training and name)
        self._check_training()

    def around(self, func: Callable, args: tuple, kwargs: dict, run: Callable[[Callable, tuple, dict], Any]) -> Any:
        if not self._random and draws(func, args, kwargs):
            self._random = call_name(func)
            self._check_training()
        if self._computed is None:
            return run(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            known = self._computed.known(args, kwargs)
        out = run(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            self._computed.note(func, args, kwargs, out, known)
        return out

    def _check_training(self) -> None:
        # Layers in training mode may behave as in eval mode; dropout while all layers are in eval mode is intended.
        if self._in_training and self._random:
            raise SettingError(
                f"{self._in_training} is in training mode, and {self._random} draws at random; "
                "call model.eval() before pruning"
            )

    def at_batch_statistics(self, training_mode: bool) -> None:
        if training_mode:
            raise SettingError("a BatchNorm is in training mode; call model.eval() before pruning")

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        site = self._site_of(call)
        if site is None:
            for used in self._in_memory.get(memory_of(call.given), ()):
                if used.kind == call.kind and stored_in(used.module, call) == used.stored:
                    self._fault(used.name, "its weight was used while its module did not run")
            return None
        layer = site.layer
        followed = layer.name in self._followed
        if why := packed(call):
            if followed or call.input.is_nested:
                raise SettingError(f"{layer.name}: {why}")
            return None
        if followed:
            found = layer.outputs, layer.terms, layer.weights_per_term
            if (*call.weight.shape[:2], call.weight.shape[2:].numel()) != found:
                shape = " x ".join(map(str, call.weight.shape))
                raise SettingError(
                    f"{layer.name}: its weight is {shape}, another shape than when it was found; call find_sites again"
                )
            if why := transformed(call.input) or without_values(call.input):
                raise SettingError(f"{layer.name}: {why}")
        return layer.name

    def _site_of(self, call: LinearCall) -> Site | None:
        """The site whose weight a call uses; None if there is none."""
        for module in (*self._running[-1:], *self._without_forward):
            weight = stored_in(module, call)
            if weight is not None and (site := self._stored.get((weight, call.kind))) is not None:
                return site
        how = None if self._computed is None else self._computed.how(call)
        return None if how is None else self._made.get((how, call.kind))

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        kinds = name, type(call.input), type(call.given)
        if name in self._followed and kinds not in self._tried:
            self._tried.add(kinds)
            if why := unlike_its_terms(call, out):
                raise SettingError(f"{name}: {why}")

    def follows(self, name: str) -> bool:
        return name in self._followed or name in self._split

    def ends_at_output(self, name: str) -> bool:
        return name in self._at_output and name in self._followed

    def part(self, chain: Chain, start: int, end: int) -> Chain | None:
        name = self._names_of_parts.get((chain.name, (start, end)))
        return chain.part(name, start, end) if name is not None and name in self._followed else None

    def activation(self, module: nn.Module) -> Activation | None:
        return self._activations.get(module)
