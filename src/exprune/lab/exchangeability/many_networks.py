"""Many small networks trained at once, each as if it were alone."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from exprune.core.errors import SettingError

Weights = dict[str, Tensor]


def new_networks(make: Callable[[], nn.Module], networks: int, seed: int = 0) -> Weights:
    """The weights of so many networks as ``make`` initialises them, by name, stacked: (networks, ...)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        weights, buffers = stack_module_state([make() for _ in range(networks)])
    if buffers:
        raise SettingError(f"buffer {next(iter(buffers))!r}: networks trained together may have none")
    return {name: weight.detach() for name, weight in weights.items()}


def train(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    rates: Mapping[str, Tensor] | None = None,
    shared: bool = False,
) -> Weights:
    """Train stacked networks, and return their weights.

    The sum of their losses has each network's own gradient at its own weights, and an optimiser that treats all
    numbers alike (SGD, Adam) makes of it what it would make of each network alone.

    Args:
        network: one of them, for its forward.
        weights: (networks, ...) each, by name; they are not changed.
        loss: of one network's outputs and targets.
        batches: inputs and targets, (networks, batch, ...) each; (batch, ...) where ``shared``, the same for all.
        optimizer: makes the optimiser of the parameters it is given.
        rates: factors of the gradient, by name, that broadcast with the weight: of SGD a learning rate of its own.
    """
    trained = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    step = optimizer(list(trained.values()))

    def of_one(weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(functional_call(network, dict(weights), (inputs,)), targets)

    of_all = vmap(of_one, in_dims=(0, None, None) if shared else 0)
    for inputs, targets in batches:
        step.zero_grad()
        of_all(trained, inputs, targets).sum().backward()
        for name, rate in (rates or {}).items():
            gradient = trained[name].grad
            assert gradient is not None
            gradient *= rate
        step.step()
    return {name: weight.detach() for name, weight in trained.items()}


def outputs(network: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Of every network for the same inputs: (networks, inputs, ...)."""
    with torch.no_grad():
        return vmap(lambda weights: functional_call(network, weights, (inputs,)))(dict(weights))
