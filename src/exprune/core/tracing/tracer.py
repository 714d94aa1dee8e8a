"""Tracing pre-activations from their linear layers to their activations, through torch calls alone.

The output of a layer is tagged. The tag survives what leaves the sum of terms a sum of terms (eval-mode BatchNorm,
products with one number per channel, additions, other shapes of a Linear's rows, some of its channels), step by step
(:mod:`exprune.core.tracing.steps`). Observers are told of it, and of the modules that run.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls.effects import tensors
from exprune.core.calls.layers import LinearCall
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.observer import Guide, Observer, all_of
from exprune.core.tracing.steps import other, step_of

Compute = Callable[[str, LinearCall, Callable[[], Tensor]], tuple[Tensor, LinearCall]]


def _as_called(func: Callable, args: tuple, kwargs: dict) -> Any:
    return func(*args, **kwargs)


class Tracer(TorchFunctionMode):
    """The context that traces the forward passes of this thread.

    No module is replaced; the hooks that tell which one runs go with the context. Compiled models run eagerly inside.

    Args:
        guide: says which calls are layers.
        observers: are told what happens, one after the other.
        execute: runs the torch calls of the model.
        compute: gives the output of a layer's call, which its last argument computes, and what is to be known of it.

    Attributes:
        guide: see above.
        tell: as one observer, all of them.
        chains: of the tensors that are pre-activations now.
        running: the modules that run now, the innermost last.
    """

    def __init__(
        self,
        guide: Guide,
        observers: Sequence[Observer] = (),
        execute: Callable[[Callable, tuple, dict], Any] = _as_called,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        self.guide, self.tell = guide, all_of((guide, *observers))
        self.chains = WeakTensorKeyDictionary()
        self.running: list[nn.Module] = []
        self._execute, self._compute = execute, compute
        self._inside_another = False
        self._closing: tuple[nn.Module, Chain] | None = None  # the module that is the activation of this chain, running
        self._thread = 0
        self._hooks: list[Any] = []
        self._eager, self._not_yet_eager = ExitStack(), False

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._inside_another = _traced_here()
        for module in self.guide.modules:
            self._hooks.append(module.register_forward_pre_hook(self._begins, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._ends, with_kwargs=True, always_call=True))
        self._hooks += self.guide.enter(self.chains, self.running)
        self._not_yet_eager = "torch._dynamo" not in sys.modules
        self._eager.enter_context(eagerly())
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._eager.__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.running.clear()
        self._closing = None
        self.chains = WeakTensorKeyDictionary()

    # What modules and calls do.

    def _begins(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if threading.get_ident() != self._thread:
            if not _traced_here():  # it may have a context of its own
                self.tell.in_another_thread(module)
            return
        self.running.append(module)
        self.tell.begins(module)
        z = next(tensors((args, kwargs)), None) if len(args) + len(kwargs) == 1 else None
        if z is None or (chain := self.chains.get(z)) is None or (does := self.guide.activation(module)) is None:
            return
        chain = replace(chain, activation=does)
        with torch._C.DisableTorchFunction():
            self.tell.before_activation(chain, z)
        self._closing = module, chain

    def _ends(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if threading.get_ident() != self._thread or not self.running:
            return
        if self._closing is not None and self._closing[0] is module:
            (_, chain), self._closing = self._closing, None
            if isinstance(output, Tensor):
                with torch._C.DisableTorchFunction():
                    self.closes(chain, output)
        module = self.running.pop()
        self.tell.ends(module, (args, kwargs), output is None)

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.guide.around(func, args, kwargs or {}, self._call)

    def _call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if self._closing is not None:  # how an activation comes about is its own affair
            return self.run(func, args, kwargs)
        if self._not_yet_eager and "torch._dynamo" in sys.modules:  # something is about to be compiled
            self._not_yet_eager = False
            self._eager.enter_context(eagerly())
        step = step_of(func)
        # What is worked out here is no call of the model: a context around this one must not see it.
        with torch._C.DisableTorchFunction():
            if step is not None and (done := step(self, func, args, kwargs)) is not None:
                return done
            return other(self, func, args, kwargs)

    # What steps are made of.

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a torch call of the model."""
        if isinstance(func, torch._ops.HigherOrderOperator):  # torch.cond, ...: it runs functions that it is given
            args, kwargs = tree_map_only(FunctionType | MethodType, self._seen_inside, (args, kwargs))
        try:
            with torch._C._EnableTorchFunction():
                return self._execute(func, args, kwargs)
        except Exception:
            self.tell.fails()
            raise

    def _seen_inside(self, function: Callable) -> Callable:
        """A function whose calls are traced, also where an operator runs it."""

        def traced(*args: Any, **kwargs: Any) -> Any:
            with torch._C._EnableTorchFunction(), _pushed(self):
                return function(*args, **kwargs)

        return traced

    def compute(self, name: str, call: LinearCall, run: Callable[[], Tensor]) -> tuple[Tensor, LinearCall]:
        """The output of a layer's call, and what is to be known of it."""
        if self._compute is None or self._inside_another:  # what a context around this one counts is the model's own
            return run(), call
        return self._compute(name, call, run)

    def starts(self, chain: Chain, out: Tensor) -> None:
        """A chain begins with the pre-activation ``out``."""
        self.tell.starts(chain, out)
        if self.guide.ends_at_output(chain.name):
            self.tell.before_activation(chain, out)
            self.tell.at_activation(chain, out)
        else:
            self.chains[out] = chain

    def goes_on(self, chain: Chain, out: Tensor, further: Chain) -> None:
        """A chain goes through a call that gives ``out``."""
        self.tell.goes_on(chain, further)
        self.chains[out] = further

    def closes(self, chain: Chain, out: Tensor) -> None:
        """A chain ends in its activation, whose output is ``out``."""
        self.chains.pop(out, None)  # an in-place activation returns the pre-activation's own object
        self.tell.at_activation(chain, out)


@contextmanager
def _pushed(mode: TorchFunctionMode) -> Iterator[None]:
    """Inside of it a mode sees calls that is at work, and by that out of force; its hooks are there already."""
    torch.overrides._push_mode(mode)
    try:
        yield
    finally:
        torch.overrides._pop_mode()


def _traced_here() -> bool:
    """Whether calls of this thread are seen by a tracer."""
    return any(isinstance(mode, Tracer) for mode in torch.overrides._get_current_function_mode_stack())


def looked_on_by_others() -> bool:
    """Whether calls of this thread are seen by a function mode that is no tracer."""
    return not all(isinstance(mode, Tracer) for mode in torch.overrides._get_current_function_mode_stack())


def eagerly() -> AbstractContextManager:
    """Inside of it what torch.compile compiled runs as it was written, so that its calls are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and to import it takes seconds
        return nullcontext()
    stance: AbstractContextManager = torch.compiler.set_stance("force_eager")
    return stance
