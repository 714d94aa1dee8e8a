"""Find out which weight a call uses, and name the layers of a model."""

from collections import defaultdict
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from exprune.core.calls.layers import LinearCall, called_with_any_weight
from exprune.core.calls.weights import (
    MadeOfParameters,
    Weight,
    can_run,
    memory_of,
    name_of_made,
    part_name,
    stored_in,
    stored_now,
)
from exprune.core.discovery.records import Seen

COMPUTED = "computed weight"  # of a call whose weight belongs to no layer


class Naming:
    """Identify the weights of a model.

    Args:
        model: The model.
        version: Returns a number that changes when a tensor's memory is written to.

    Attributes:
        modules: The names of the modules.
        computed: Tracks the tensors that are computed from parameters only.
    """

    def __init__(self, model: nn.Module, version: Callable[[Tensor], int]) -> None:
        # torch.compile wraps the module that it compiles in another one.
        self.modules = {
            module: ".".join(part for part in name.split(".") if part != "_orig_mod")
            for name, module in model.named_modules()
        }
        self._homes: dict[int, list[nn.Module]] = defaultdict(list)  # modules that store parameters, by memory address
        roots: dict[str, tuple[nn.Module, str]] = {}
        for name, module in model.named_modules():
            for own, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    roots[f"{name}.{own}" if name else own] = module, own
                    if (memory := memory_of(tensor)) is not None:
                        self._homes[memory].append(module)
        self.computed = MadeOfParameters(roots, version)
        self._names: dict[tuple[Weight, str], str] = {}

    def of_module(self, module: nn.Module | None) -> str:
        return (self.modules.get(module) or type(module).__name__) if module is not None else "the model"

    def weight_of(
        self, func: Callable, call: LinearCall, running: nn.Module | None, of_data: Callable[[Tensor], bool]
    ) -> tuple[Weight | None, str | None]:
        """The weight that a call uses, and the reason why it cannot be followed, if any.

        Args:
            func: The torch function.
            call: The call as that of a linear layer.
            running: The innermost running module.
            of_data: Whether a tensor is known to depend on the input.

        Returns:
            The weight and the reason. The weight is None if the call belongs to no layer.
        """
        if running is not None and (own := stored_in(running, call)) is not None:
            return own, None
        for home in self._homes.get(memory_of(call.given) or 0, ()):
            if (kept := stored_in(home, call)) is not None:
                outside = f"its weight is used by {self.of_module(running)}, outside of its own forward"
                return kept, outside if can_run(home) else None
        if running is None:
            return None, None
        if (made := self.computed.made(call)) is not None:
            if self.computed.constant(call.input):  # this call computes a weight, so it is not a layer
                return None, None
            return Weight(running, name_of_made(made, self.modules, running)[1], made=made), None
        if not called_with_any_weight(func):
            return None, None
        why = (
            "depends on the input"
            if of_data(call.given)
            else "is not a parameter, and was not seen to be computed from parameters only"
        )
        return Weight(running, COMPUTED), f"its weight {why}"

    def name(self, weight: Weight, kind: str, layers: Mapping[str, Seen]) -> str:
        """The name of a layer: that of its parameter, or of the module if the parameter is called ``weight``.

        Args:
            weight: The weight.
            kind: The kind of the layer.
            layers: The layers that already have a name.
        """
        if (known := self._names.get((weight, kind))) is not None:
            return known
        module, parameter = self.modules.get(weight.module, ""), weight.parameter
        if weight.made is not None:
            name = name_of_made(weight.made, self.modules, weight.module)[0]
        elif parameter == COMPUTED:
            name = module or parameter
        else:
            stored = stored_now(weight.module, parameter)
            if weight.part is not None and stored is not None:
                parameter = part_name(parameter, stored, weight.part)
            own = module if parameter == "weight" else f"{module}.{parameter}" if module else parameter
            name = own or parameter
        both_ways = weight.made is None and weight.part is None
        if name in layers and both_ways and layers[name].layer.stored.transposed != weight.transposed:
            name += ".T"
        first, more = name, 1
        while name in layers:
            more += 1
            name = f"{first} ({more})"
        self._names[weight, kind] = name
        return name
