"""Trace pre-activations from their linear layers to their activations, through torch calls alone.

The output of a layer is tagged with a chain. The chain continues through operations after which the value is still a
sum of terms: eval-mode BatchNorm, products with one number per channel, additions, reshaping of a Linear's rows, and
selecting some of its channels (`exprune.core.tracing.steps`). Observers are notified of this and of the modules
that run.
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
    """Context manager that traces the forward passes of the present thread.

    No module is replaced. The hooks that report running modules are removed with the context. Compiled models run
    eagerly inside of it.

    Args:
        guide: Decides which calls are layers.
        observers: Observers that are notified one after the other.
        execute: Runs the torch calls of the model.
        compute: Returns the output of a layer's call, which its last argument computes, and the call with partial sums.

    Attributes:
        guide: See above.
        tell: All observers as one.
        chains: The chains of the tensors that are pre-activations now.
        running: The modules that are running now, the innermost last.
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
        self._closing: tuple[nn.Module, Chain] | None = None  # a running module that is the activation of this chain
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

    # Modules and calls.

    def _begins(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if threading.get_ident() != self._thread:
            if not _traced_here():  # that thread may have a context of its own
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
        if self._closing is not None:  # the calls inside an activation are not followed
            return self.run(func, args, kwargs)
        if self._not_yet_eager and "torch._dynamo" in sys.modules:  # something is about to be compiled
            self._not_yet_eager = False
            self._eager.enter_context(eagerly())
        step = step_of(func)
        # The work done here is not part of the model: an enclosing context must not see it.
        with torch._C.DisableTorchFunction():
            if step is not None and (done := step(self, func, args, kwargs)) is not None:
                return done
            return other(self, func, args, kwargs)

    # Methods that steps use.

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a torch call of the model."""
        if isinstance(func, torch._ops.HigherOrderOperator):  # such as torch.cond, which runs functions given to it
            args, kwargs = tree_map_only(FunctionType | MethodType, self._seen_inside, (args, kwargs))
        try:
            with torch._C._EnableTorchFunction():
                return self._execute(func, args, kwargs)
        except Exception:
            self.tell.fails()
            raise

    def _seen_inside(self, function: Callable) -> Callable:
        """Wrap a function so that its calls are traced even if an operator runs it."""

        def traced(*args: Any, **kwargs: Any) -> Any:
            with torch._C._EnableTorchFunction(), _pushed(self):
                return function(*args, **kwargs)

        return traced

    def compute(self, name: str, call: LinearCall, run: Callable[[], Tensor]) -> tuple[Tensor, LinearCall]:
        """The output of a layer's call, and the call with its partial sums."""
        if self._compute is None or self._inside_another:  # an enclosing context counts the model's own calls
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
        """A chain continues through a call with the output ``out``."""
        self.tell.goes_on(chain, further)
        self.chains[out] = further

    def closes(self, chain: Chain, out: Tensor) -> None:
        """A chain ends at its activation with the output ``out``."""
        self.chains.pop(out, None)  # an in-place activation returns the same object as its input
        self.tell.at_activation(chain, out)


@contextmanager
def _pushed(mode: TorchFunctionMode) -> Iterator[None]:
    """Let a mode see calls although it is already handling one, which suspends it; its hooks are in place already."""
    torch.overrides._push_mode(mode)
    try:
        yield
    finally:
        torch.overrides._pop_mode()


def _traced_here() -> bool:
    """Whether a tracer sees the calls of this thread."""
    return any(isinstance(mode, Tracer) for mode in torch.overrides._get_current_function_mode_stack())


def looked_on_by_others() -> bool:
    """Whether a function mode other than a tracer sees the calls of this thread."""
    return not all(isinstance(mode, Tracer) for mode in torch.overrides._get_current_function_mode_stack())


def eagerly() -> AbstractContextManager:
    """Run compiled code eagerly inside this context, so that its calls are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager = torch.compiler.set_stance("force_eager")
    return stance
