"""The context in which a ReLU network decodes faster on a CPU (docs/method.md, section 9)."""

import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from exprune.api.calibration import Calibration
from exprune.api.tradeoff import batches_for, heuristic_at
from exprune.core import CalibratedTest, Dominance, Heuristic, Site, SiteStatistics
from exprune.core.accounting.plan import BY_INPUT, Plan, make_plan
from exprune.core.decisions.apply import bounds
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import per_site
from exprune.fast.layer import FastLayer
from exprune.fast.layers import Down, Head, Up
from exprune.fast.methods import replace_methods, restore_methods
from exprune.fast.stages import Stages
from exprune.fast.storage import check_weight
from exprune.fast.weight import LaidOut, changes_nothing

_ROUNDS = 5  # of timing the dense layers


class faster:
    """Context manager in which a model decodes faster on a CPU, because a heuristic's tests decide which weights are
    read.

    It takes either sites and a heuristic, or a calibration made with ``order="layer", scope="relu"`` and a price.

    Inside the context, a call with up to 8 rows evaluates each site stage by stage for the neurons that have not
    stopped. The layer after the site's ReLU reads only the weights of inputs that are not zero. Calls with more rows (a
    prompt, a large batch) run densely, from the same copy of the weights. At the end of the context, also after an
    exception, the model is as it was.

    It is for inference on a CPU, and uses as many threads as torch may use. Any number of threads may call the model at
    the same time. ``state_dict``, ``save_pretrained``, ``copy`` and ``pickle`` return the model's own weights. The
    weights must not be changed inside the context.

    Args:
        model: A model in eval mode, with weights in float32, float16 or bfloat16.
        sites: The layers, from `exprune.core.find_sites`. Each eligible site must be a Linear layer before a ReLU or
            its square, followed by another Linear layer in the same module. Or a calibration with its batches.
        heuristic: A `Calibrated` or `Optimal` heuristic whose order all inputs share. None only skips zeros.
        head: Drops logits of the network's head that cannot be the largest, for greedy decoding. Dropped logits are
            ``-inf``. It acts in this context; do not enter its own.
        switch: Let a layer whose kernel is slower than its dense forward on the first rows return to the dense forward.
            This depends on timing; False keeps all kernels, and makes the stopped neurons the same in every run.
        price: With a calibration, the price of a FLOP in units of loss; see `exprune.prune`.

    Attributes:
        layers: The replaced layers. Each has the share of the weights that was read (``density``), the time of its
            first rows (``seconds``) and of the dense forward (``dense_seconds``), and whether its kernel was in use to
            the end (``kept``).

    Raises:
        SettingError: If model, sites and heuristic do not fit together. Inside the context, in training mode, with
            gradients enabled, or if a weight is about to be changed. At its end, if a weight was changed, or if a layer
            was not called.

    Example:
        ```python
        with torch.inference_mode(), faster(model, sites, Calibrated(0.1, statistics=statistics)):
            model.generate(ids, do_sample=False)
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site] | Calibration,
        heuristic: Heuristic | None = None,
        head: Dominance | None = None,
        switch: bool = True,
        price: float | None = None,
    ) -> None:
        self.layers: list[FastLayer] = []
        self._guarded: list[nn.Module] = []
        self._is_eager = False
        model = getattr(model, "_orig_mod", model)  # unwrap a model of torch.compile
        if isinstance(sites, Calibration):
            sites, heuristic = _calibrated(model, sites, price)
        elif price is not None:
            raise SettingError(f"faster: price={price!r} goes with a calibration, in place of sites and a heuristic")
        self._model, self._heuristic, self._switch = model, heuristic, switch
        self._sites = [site for site in sites if site.eligible]
        if not self._sites:
            raise SettingError("faster: there is no eligible site")
        self._pairs = [_pair(model, site) for site in self._sites]
        self._plans = {} if heuristic is None else _plans(heuristic, self._sites)
        self._taus = {} if heuristic is None else per_site(heuristic.tau, self._sites)
        self._head = None if head is None else _placed(model, head)

    def __enter__(self) -> "faster":
        with _entering:
            return self._enter()

    def _enter(self) -> "faster":
        named = [(pair.site.name, pair.layer) for pair in self._pairs]
        named += [(pair.name_behind, pair.behind) for pair in self._pairs]
        named += [] if self._head is None else [(self._head.name, self._head.tests.head)]
        self._check(named)
        involved = [layer for _, layer in named]
        dense = _dense_seconds(involved) if self._switch else dict.fromkeys(involved)
        self.layers = []
        try:
            for pair in self._pairs:
                up = None
                if self._heuristic is not None:
                    up = self._up(pair, dense[pair.layer])
                    self.layers.append(up)
                self.layers.append(Down(pair.name_behind, pair.behind, dense[pair.behind], up))
            if self._head is not None:
                self.layers.append(_fast_head(self._head, dense[self._head.tests.head]))
            for layer in self.layers:
                layer.compile()
            self._guard()
            _eager.begin()
            self._is_eager = True
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        active = [layer for layer in self.layers if layer.active]
        changed = [f"{which} of {layer.name}" for layer in active if (which := layer.changed)]
        self._restore()
        if exception[0] is not None:
            return
        if changed:
            raise SettingError(f"faster: the {changed[0]} was changed inside the context")
        if missed := [layer.name for layer in self.layers if not layer.called]:
            raise SettingError(_missed(missed, len(self.layers)))

    def _restore(self) -> None:
        for layer in self.layers:
            layer.restore()
        for module in self._guarded:
            restore_methods(module, "_apply")
        self._guarded = []
        if self._is_eager:
            _eager.end()
            self._is_eager = False

    def _guard(self) -> None:
        """Refuse calls such as ``to()`` before they have changed any other parameter."""
        for module in self._model.modules():
            inside = any(isinstance(parameter, LaidOut) for parameter in module.parameters())
            if inside and next(module.children(), None) is not None and "_apply" not in module.__dict__:
                replace_methods(module, _apply=functools.partial(_apply, module))
                self._guarded.append(module)

    def _check(self, named: Sequence[tuple[str, nn.Linear]]) -> None:
        if any(module.training for module in self._model.modules()):
            raise SettingError("faster: the model is in training mode; call model.eval()")
        owners = Counter(id(p) for module in self._model.modules() for p in module._parameters.values())
        if self._head is not None and self._head.embedding is not None:
            owners[id(self._head.embedding.weight)] -= 1
        for name, layer in named:
            if "forward" in layer.__dict__:
                raise SettingError(f"faster: {name} has a forward of its own already, as inside another faster context")
            check_weight(layer.weight, name)
            if owners[id(layer.weight)] > 1:
                raise SettingError(f"faster: {name} shares its weight with another layer")

    def _up(self, pair: "_Pair", dense_seconds: float | None) -> Up:
        assert isinstance(self._heuristic, CalibratedTest)
        site, layer, plan = pair.site, pair.layer, self._plans[pair.site.name]
        assert plan.rest is not None  # the site has no mask, and its order is for all neurons
        terms = [torch.arange(site.terms)[c] for c in (*(stage.channels for stage in plan.stages), plan.rest)]
        bias = torch.zeros(site.outputs) if layer.bias is None else layer.bias.detach().float()
        table = self._heuristic.solve(site, plan, self._taus[site.name])
        stages = Stages.below([len(part) for part in terms], torch.cat(terms), bounds(table, bias))
        return Up(site.name, layer, stages, dense_seconds)


def _calibrated(model: nn.Module, calibration: Calibration, price: float | None) -> tuple[Sequence[Site], Heuristic]:
    if price is None:
        raise SettingError("faster: a calibration needs a price; give price=, for example that of exprune.prune(...)")
    if calibration.scope != "relu":
        raise SettingError('faster: there is no kernel for predictions; calibrate with order="layer", scope="relu"')
    return calibration.sites(model, batches_for(model, calibration, None, None)), heuristic_at(calibration, price)


class _Eager:
    """Run compiled code eagerly until the last of several overlapping contexts ends.

    Otherwise torch.compile would try to trace into the kernels.
    """

    def __init__(self) -> None:
        self._contexts, self._lock = 0, threading.Lock()
        self._stance: AbstractContextManager | None = None

    def begin(self) -> None:
        with self._lock:
            self._contexts += 1
            if self._contexts == 1:
                self._stance = torch.compiler.set_stance("force_eager")

    def end(self) -> None:
        with self._lock:
            self._contexts -= 1
            if self._contexts == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_eager = _Eager()
_entering = threading.Lock()  # if two contexts on one model begin at the same time, one of them is refused


def _apply(module: nn.Module, fn: Callable, *args: Any, **kwargs: Any) -> nn.Module:
    changes_nothing(module, fn)
    return type(module)._apply(module, fn, *args, **kwargs)


def _missed(names: list[str], layers: int) -> str:
    if len(names) == layers:
        return "faster: none of its layers was called inside the context; run the same model object that it was given"
    more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
    return f"faster: {names[0]}{more} was not called inside the context; leave it out with select_sites"


class _Pair(NamedTuple):
    """A site and the layer after its ReLU."""

    site: Site
    layer: nn.Linear
    name_behind: str
    behind: nn.Linear


class _Placed(NamedTuple):
    """The tests of a head, the head's name, and the embedding that shares its weight, if any."""

    tests: Dominance
    name: str
    embedding: nn.Embedding | None


def _placed(model: nn.Module, tests: Dominance) -> _Placed:
    names = [name for name, module in model.named_modules() if module is tests.head]
    if not names:
        raise SettingError("faster: the head is not a layer of this model")
    tied = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is tests.head.weight]
    return _Placed(tests, names[0], tied[0] if len(tied) == 1 else None)


def _fast_head(head: _Placed, dense_seconds: float | None) -> Head:
    tests, terms = head.tests, head.tests.head.in_features
    ends = [0, *tests.stages, terms] if tests.tau else [0, terms]
    widths = [end - start for start, end in itertools.pairwise(ends)]
    order = torch.arange(terms) if tests.order is None else tests.order
    return Head(head.name, tests.head, Stages.leading(widths, order, tests.lines()), head.embedding, dense_seconds)


def _pair(model: nn.Module, site: Site) -> _Pair:
    """The site and the layer that reads its ReLU, which is the next Linear layer in the same module."""
    if site.kind != "linear" or not isinstance(site.module, nn.Linear):
        raise SettingError(f"faster: {site.name} is a {site.kind}; only Linear layers are served, use select_sites")
    if not site.before_relu or site.residual:
        why = "has something added to it before its ReLU" if site.before_relu else "feeds no ReLU"
        raise SettingError(f"faster: {site.name} {why}; choose others with select_sites")
    if site.mask is not None:
        raise SettingError(f"faster: {site.name} is under a static mask, for which there is no kernel")
    if dict(model.named_modules(remove_duplicate=False)).get(site.name) is not site.module:
        raise SettingError(f"faster: {site.name} was found in another model; call find_sites on the model that runs")
    parent, _, own = site.name.rpartition(".")
    children = list(model.get_submodule(parent).named_children())
    names = [name for name, _ in children]
    for name, child in children[names.index(own) + 1 :] if own in names else []:
        if isinstance(child, nn.Linear):
            if child.in_features == site.outputs:
                return _Pair(site, site.module, f"{parent}.{name}" if parent else name, child)
            break
    raise SettingError(f"faster: no Linear layer with {site.outputs} inputs follows {site.name} in the same module")


def _plans(heuristic: Heuristic, sites: Sequence[Site]) -> dict[str, Plan]:
    kind = type(heuristic).__name__
    if not isinstance(heuristic, CalibratedTest):
        raise SettingError(f"faster: there is no kernel for {kind}; Calibrated and Optimal have one")
    if heuristic.predicts:
        raise SettingError(f"faster: {kind} with predict=true outputs predictions, for which there is no kernel")
    plans = {}
    for site in sites:
        statistics: SiteStatistics | None = (heuristic.statistics or {}).get(site.name)
        if statistics is None:
            raise SettingError(f"{kind}: no statistics of site {site.name}; calibrate first")
        order = statistics.order
        if isinstance(order, str) or (order is not None and order.dim() == 2):
            which = BY_INPUT if isinstance(order, str) else "neuron"
            raise SettingError(
                f"faster: order={which} at {site.name}: the kernel needs the same first terms for all neurons and "
                "inputs; calibrate with order=layer or model"
            )
        plans[site.name] = make_plan(site, heuristic.stages, 1.0, order)
        if not plans[site.name].stages:
            raise SettingError(f"faster: {site.name} has {site.terms} terms, too few for the first stage")
    return plans


def _dense_seconds(layers: Sequence[nn.Linear]) -> dict[nn.Module, float]:
    """Time one row of each layer. Layers take turns, so that each is as cold in the cache as when decoding."""
    rows = {layer: torch.randn(1, layer.in_features).to(layer.weight.dtype) for layer in layers}
    seconds: dict[nn.Module, list[float]] = {layer: [] for layer in layers}
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            for layer in layers:
                start = time.perf_counter()
                F.linear(rows[layer], layer.weight, layer.bias)
                seconds[layer].append(time.perf_counter() - start)
    return {layer: sorted(times)[_ROUNDS // 2] for layer, times in seconds.items()}
