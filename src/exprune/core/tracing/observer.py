"""The interfaces of a tracer: observers, which it notifies, and the guide, which it asks."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from exprune.core.calls.activations import Activation
from exprune.core.calls.layers import LinearCall
from exprune.core.tracing.chain import Chain


class Observer:
    """Base class of observers of a traced pass. Methods that are not overridden do nothing."""

    def begins(self, module: nn.Module) -> None:
        """A module begins to run."""

    def ends(self, module: nn.Module, given: tuple, failed: bool) -> None:
        """A module has run with these arguments, or has raised an exception."""

    def fails(self) -> None:
        """A torch call of the model has raised an exception."""

    def in_another_thread(self, module: nn.Module) -> None:
        """A module runs in another thread than the one that entered the context, so its calls cannot be observed."""

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        """A layer was computed."""

    def starts(self, chain: Chain, out: Tensor) -> None:
        """A chain begins with the pre-activation ``out``."""

    def goes_on(self, chain: Chain, further: Chain) -> None:
        """A chain continues through a call as ``further``."""

    def escapes(self, chain: Chain, reader: str) -> None:
        """A call that a chain cannot continue through has read or changed its pre-activation."""

    def before_activation(self, chain: Chain, z: Tensor) -> None:
        """A chain is about to reach an activation, which may change its pre-activation ``z`` in place."""

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        """A chain has reached its activation, whose output is ``out``; without an activation, the layer's output."""


class _All:
    """Notify several observers one after the other, skipping those that do not override the method."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def __getattr__(self, event: str) -> Callable[..., None]:
        unheeded = getattr(Observer, event)
        told = [getattr(observer, event) for observer in self._observers if getattr(type(observer), event) != unheeded]

        def tell(*what: Any) -> None:
            for observer in told:
                observer(*what)

        setattr(self, event, tell)
        return tell


def all_of(observers: Sequence[Observer]) -> Observer:
    """Several observers as one."""
    return cast(Observer, _All(observers))


class Guide(Observer):
    """The observer that decides which calls are layers, and how their chains continue. It is notified first.

    Attributes:
        modules: The modules whose begin and end are reported.
    """

    modules: Sequence[nn.Module]

    def enter(self, chains: MutableMapping[Tensor, Chain], running: Sequence[nn.Module]) -> list[Any]:
        """Prepare for a tracer's context. The returned hooks are removed at its end.

        Args:
            chains: The chains of the tensors that are pre-activations at any time.
            running: The modules that are running at any time, the innermost last.
        """
        return []

    def around(self, func: Callable, args: tuple, kwargs: dict, run: Callable[[Callable, tuple, dict], Any]) -> Any:
        """Run a torch call, with any work before and after it."""
        return run(func, args, kwargs)

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        """The name of the layer that a call belongs to; None if that layer is not traced."""
        raise NotImplementedError

    def follows(self, name: str) -> bool:
        """Whether the chains of a layer are followed."""
        return True

    def ends_at_output(self, name: str) -> bool:
        """Whether a layer's chains end where they begin, as for a layer without an activation."""
        return False

    def activation(self, module: nn.Module) -> Activation | None:
        """The elementwise function of a module that receives a pre-activation; None if it is not elementwise."""
        return None

    def part(self, chain: Chain, start: int, end: int) -> Chain | None:
        """The chain of a range of another chain's channels, if it is followed."""
        return None

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        """The one of two added tensors whose chain continues."""
        return left

    def constant(self, tensor: Tensor) -> bool:
        """Whether a factor or summand of a chain is the same for every input."""
        return True

    def version(self, tensor: Tensor) -> int:
        """A number that changes when the tensor is changed in place, if this is watched."""
        return 0

    def at_batch_statistics(self, training_mode: bool) -> None:
        """A BatchNorm uses the statistics of the batch: it is in training mode, or has no running statistics."""
