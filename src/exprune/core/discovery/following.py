"""Following the chains of a model's layers, and the modules that run meanwhile."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls.activations import Activation
from exprune.core.calls.effects import tensors
from exprune.core.discovery.carrying import Carrier
from exprune.core.discovery.chain import Chain
from exprune.core.discovery.steps import other, step_of


class ChainFollower(Carrier):
    """The context that follows chains through the forward passes of this thread, and knows which module is running.

    No module is replaced; the hooks that tell which one runs go with the context. Compiled models run eagerly inside.

    Args:
        modules: those of which it is to be known when they run.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.modules = list(modules)
        self.running: list[nn.Module] = []
        self.inside_another = False
        self._closing: tuple[nn.Module, Chain] | None = None  # the module that is the activation of this chain, running
        self._thread = 0
        self._hooks: list[Any] = []
        self._eager, self._not_yet_eager = ExitStack(), False

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self.inside_another = _followed_here()
        for module in self.modules:
            self._hooks.append(module.register_forward_pre_hook(self._enters, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leaves, with_kwargs=True, always_call=True))
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

    def _enters(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if threading.get_ident() != self._thread:
            if not _followed_here():  # it may have a context of its own
                self.in_another_thread(module)
            return
        self.running.append(module)
        self.enters(module)
        z = next(tensors((args, kwargs)), None) if len(args) + len(kwargs) == 1 else None
        if z is None or (chain := self.chains.get(z)) is None or (activation := self.activation(module)) is None:
            return
        chain = replace(chain, activation=activation)
        with torch._C.DisableTorchFunction():
            self.before_activation(chain, z)
        self._closing = module, chain

    def _leaves(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if threading.get_ident() != self._thread or not self.running:
            return
        if self._closing is not None and self._closing[0] is module:
            (_, chain), self._closing = self._closing, None
            if isinstance(output, Tensor):
                with torch._C.DisableTorchFunction():
                    self.closes(chain, output)
        self.leaves(self.running.pop(), (args, kwargs), failed=output is None)

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self._closing is not None:  # how an activation comes about is its own affair
            return self.execute(func, args, kwargs or {})
        if self._not_yet_eager and "torch._dynamo" in sys.modules:  # something is about to be compiled
            self._not_yet_eager = False
            self._eager.enter_context(eagerly())
        kwargs = kwargs or {}
        step = step_of(func)
        # What is worked out here is no call of the model: a context around this one must not see it.
        with torch._C.DisableTorchFunction():
            if step is not None and (done := step(self, func, args, kwargs)) is not None:
                return done
            return other(self, func, args, kwargs)

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):  # torch.cond, ...: it runs functions that it is given
            args, kwargs = tree_map_only(FunctionType | MethodType, self._seen_inside, (args, kwargs))
        return super().run(func, args, kwargs)

    def _seen_inside(self, function: Callable) -> Callable:
        """A function whose calls are followed, also where an operator runs it."""

        def followed(*args: Any, **kwargs: Any) -> Any:
            with torch._C._EnableTorchFunction(), _pushed(self):
                return function(*args, **kwargs)

        return followed

    # What subclasses decide.

    def enters(self, module: nn.Module) -> None:
        """A module begins to run."""

    def activation(self, module: nn.Module) -> Activation | None:
        """What a module computes that has been given a pre-activation, if that is an elementwise function."""
        return None

    def leaves(self, module: nn.Module, given: tuple, failed: bool) -> None:
        """A module has run, with these arguments; or it has raised an exception."""

    def in_another_thread(self, module: nn.Module) -> None:
        """A module runs in another thread than the one that entered the context: its calls are not seen."""


@contextmanager
def _pushed(mode: TorchFunctionMode) -> Iterator[None]:
    """Inside of it a mode sees calls that is at work, and by that out of force; its hooks are there already."""
    torch.overrides._push_mode(mode)
    try:
        yield
    finally:
        torch.overrides._pop_mode()


def _followed_here() -> bool:
    """Whether calls of this thread are seen by a follower."""
    return any(isinstance(mode, ChainFollower) for mode in torch.overrides._get_current_function_mode_stack())


def looked_on_by_others() -> bool:
    """Whether calls of this thread are seen by a function mode that is no follower."""
    return not all(isinstance(mode, ChainFollower) for mode in torch.overrides._get_current_function_mode_stack())


def eagerly() -> AbstractContextManager:
    """Inside of it what torch.compile compiled runs as it was written, so that its calls are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and to import it takes seconds
        return nullcontext()
    stance: AbstractContextManager = torch.compiler.set_stance("force_eager")
    return stance
