"""What a tracer tells of the passes it sees, and what it asks."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from exprune.core.calls.activations import Activation
from exprune.core.calls.layers import LinearCall
from exprune.core.tracing.chain import Chain


class Observer:
    """Is told what happens in a traced pass; a method that is not overridden does nothing."""

    def begins(self, module: nn.Module) -> None:
        """A module begins to run."""

    def ends(self, module: nn.Module, given: tuple, failed: bool) -> None:
        """A module has run, with these arguments; or it has raised an exception."""

    def fails(self) -> None:
        """A torch call of the model has raised an exception."""

    def in_another_thread(self, module: nn.Module) -> None:
        """A module runs in another thread than the one that entered the context: its calls are not seen."""

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        """A layer was computed."""

    def starts(self, chain: Chain, out: Tensor) -> None:
        """A chain begins with the pre-activation ``out``."""

    def goes_on(self, chain: Chain, further: Chain) -> None:
        """A chain goes through a call, and is ``further`` behind it."""

    def escapes(self, chain: Chain, reader: str) -> None:
        """A call that a chain does not go through has read or changed its pre-activation."""

    def before_activation(self, chain: Chain, z: Tensor) -> None:
        """A chain is about to go through an activation, which may change its pre-activation ``z`` in place."""

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        """A chain has reached its activation, whose output is ``out``; of a layer without one, the layer."""


class _All:
    """Tells several observers, one after the other; of each event those alone that heed it."""

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
    """Several observers, as one."""
    return cast(Observer, _All(observers))


class Guide(Observer):
    """Answers what a tracer asks: which calls are layers, and how their chains go on. As an observer it is told first.

    Attributes:
        modules: those of which it is to be known when they run.
    """

    modules: Sequence[nn.Module]

    def enter(self, chains: MutableMapping[Tensor, Chain], running: Sequence[nn.Module]) -> list[Any]:
        """The tracer's context begins; gives hooks, to be removed at its end.

        Args:
            chains: of the tensors that are pre-activations, at any time.
            running: the modules that run, at any time, the innermost last.
        """
        return []

    def around(self, func: Callable, args: tuple, kwargs: dict, run: Callable[[Callable, tuple, dict], Any]) -> Any:
        """Let a torch call run, with what is to be done before and after it."""
        return run(func, args, kwargs)

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        """The name of the layer that a call is one of; None: of none that is traced."""
        raise NotImplementedError

    def follows(self, name: str) -> bool:
        """Whether the chains of a layer are followed."""
        return True

    def ends_at_output(self, name: str) -> bool:
        """Whether they end where they begin, as those of a layer without an activation do."""
        return False

    def activation(self, module: nn.Module) -> Activation | None:
        """What a module computes that has been given a pre-activation, if that is an elementwise function."""
        return None

    def part(self, chain: Chain, start: int, end: int) -> Chain | None:
        """The chain of these channels of another's, if they are followed."""
        return None

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        """Of two tagged tensors that are added, the one whose chain goes on."""
        return left

    def constant(self, tensor: Tensor) -> bool:
        """Whether a factor or summand of a chain is the same for every input."""
        return True

    def version(self, tensor: Tensor) -> int:
        """A number that is another one once the tensor was changed in place, where that is watched."""
        return 0

    def at_batch_statistics(self, training_mode: bool) -> None:
        """A BatchNorm uses the statistics of the batch: it is in training mode, or keeps no others."""
