"""Weights and inputs of tensor subclasses are counted and pruned like plain tensors, or refused by find_sites."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map
from torchvision import tv_tensors

from exprune.core import Calibrated, ExPrune, Recorder, Site, StatsTest, find_sites
from tests.core.networks import by_name, counts, reason_of, refusal

STAGES = (4, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(8, 20), nn.Linear(20, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(torch.tanh(self.stem(x)))))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(torch.tanh(self.stem(x)))))


class Plain(Tensor):
    """A subclass that adds nothing."""


class Logging(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class OwnParameter(nn.Parameter):
    pass


class Wrapped(Tensor):
    """A subclass that holds another tensor and computes on it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Wrapped":
        return Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: x.held if isinstance(x, cls) else x, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, func(*args, **kwargs))


class Exclusive(Wrapped):
    """A subclass that computes only with its own kind, as DTensor does."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(x, Tensor) and x.dim() and not isinstance(x, cls) for x in tree_leaves((args, kwargs))):
            raise RuntimeError(f"{func}: mixed with other tensors")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Quantised(Tensor):
    """Weights with 8 bits each and a scale for each output, as torchao stores them."""

    bits: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, bits: Tensor, scale: Tensor) -> "Quantised":
        return Tensor._make_wrapper_subclass(cls, bits.shape, dtype=scale.dtype)

    def __init__(self, bits: Tensor, scale: Tensor) -> None:
        self.bits, self.scale = bits, scale

    @classmethod
    def of(cls, weight: Tensor) -> "Quantised":
        scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def dequantize(self) -> Tensor:
        return self.bits * self.scale

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return func(*(x.dequantize() if isinstance(x, cls) else x for x in args), **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].bits, args[0].scale)
        return cls.computed(func, args, kwargs or {})

    @classmethod
    def computed(cls, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda x: x.dequantize() if isinstance(x, cls) else x, (args, kwargs))
        return func(*args, **kwargs)


class ForProductsAlone(Quantised):
    @classmethod
    def computed(cls, func: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(f"{func} is not implemented")


class InOtherUnits(Tensor):
    """A subclass in another unit: a value of 1,000 means 1."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return (out / 1000).as_subclass(Tensor) if func is F.linear else out


def all_weights(make: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for module in model.children():
            made = make(module.weight.detach())
            module.weight = made if isinstance(made, nn.Parameter) else nn.Parameter(made, requires_grad=False)

    return change


def all_parameters(make: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for module in model.children():
            for name, parameter in module.named_parameters():
                setattr(module, name, nn.Parameter(make(parameter.detach()), requires_grad=False))

    return change


def as_buffers(model: nn.Module) -> None:
    for module in model.children():
        weight = module.weight.detach()
        del module.weight
        module.weight = nn.Buffer(weight)


def as_attribute(make: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        weight = model.layer.weight.detach()
        del model.layer.weight
        model.layer.weight = make(weight)

    return change


def nothing(model: nn.Module) -> None:
    pass


def plain(x: Tensor) -> Tensor:
    return plain(x.held) if isinstance(x, Wrapped) else x.as_subclass(Tensor)


CHANGES: dict[str, tuple[Callable[[nn.Module], None], Callable[[Tensor], Tensor]]] = {
    "weights of a subclass": (all_weights(lambda w: w.as_subclass(Plain)), torch.clone),
    "an input of a subclass": (nothing, lambda x: x.as_subclass(Plain)),
    "weights that log": (all_weights(lambda w: w.as_subclass(Logging)), torch.clone),
    "an input that logs": (nothing, lambda x: x.as_subclass(Logging)),
    "an image": (nothing, tv_tensors.Image),
    "parameters of a subclass": (all_weights(OwnParameter), torch.clone),
    "buffers": (as_buffers, torch.clone),
    "wrapped weights": (all_weights(Wrapped), torch.clone),
    "a wrapped input": (nothing, Wrapped),
    "all wrapped": (all_parameters(Wrapped), Wrapped),
    "an attribute that logs": (as_attribute(lambda w: w.as_subclass(Logging)), torch.clone),
}


def calibrated(model: nn.Module, sites: list[Site], x: Tensor, order: str | None) -> Calibrated:
    with torch.no_grad(), Recorder(sites, STAGES, {"layer": order}) as recorder:
        model(x)
    return Calibrated(0.3, STAGES, recorder.statistics())


@pytest.mark.parametrize("kind", ["linear", "images"])
@pytest.mark.parametrize("name", CHANGES)
def test_they_count_and_prune_as_plain_ones(name: str, kind: str) -> None:
    if name == "an image" and kind == "linear":
        pytest.skip("no image")
    torch.manual_seed(0)
    change, of_input = CHANGES[name]
    model, x = (Net().eval(), torch.randn(200, 8)) if kind == "linear" else (Images().eval(), torch.randn(20, 3, 8, 8))
    other, given = copy.deepcopy(model), of_input(x)
    change(other)
    sites, sites_of_other = find_sites(model, x), find_sites(other, given)
    assert by_name(sites)["layer"].eligible and sites == sites_of_other
    for heuristic in (
        None,
        StatsTest(0.3, n=4),
        calibrated(model, sites, x, None),
        calibrated(model, sites, x, "input"),
    ):
        with torch.no_grad(), ExPrune(sites, heuristic) as run:
            expected = model(x)
        with torch.no_grad(), ExPrune(sites_of_other, heuristic) as run_of_other:
            out = other(given)
        torch.testing.assert_close(plain(out), expected)
        assert counts(run_of_other) == counts(run)
        if heuristic is not None:
            assert 0 < run.flops.sites[0].pruned < run.flops.sites[0].outputs


@pytest.mark.parametrize("make", [Net, Images])
def test_quantised_weights_are_pruned_as_what_they_stand_for(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(200, 8) if make is Net else torch.randn(20, 3, 8, 8)
    quantised, same = copy.deepcopy(model), copy.deepcopy(model)
    all_weights(Quantised.of)(quantised)
    all_weights(lambda w: Quantised.of(w).dequantize())(same)
    runs = []
    for one in (quantised, same):
        with torch.no_grad(), ExPrune(find_sites(one, x), StatsTest(0.3, n=4)) as run:
            runs.append((one(x), counts(run)))
    torch.testing.assert_close(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize(
    ("change", "of_input", "words"),
    [
        (all_parameters(Exclusive), Exclusive, "of class Exclusive, which cannot be taken apart"),
        (all_weights(ForProductsAlone.of), torch.clone, "of class ForProductsAlone, which cannot be taken apart"),
        (as_attribute(lambda w: w.as_subclass(InOtherUnits)), torch.clone, "of class InOtherUnits, whose products"),
    ],
    ids=["exclusive", "for products alone", "in other units"],
)
def test_those_that_compute_as_they_like_are_no_sites(
    change: Callable[[nn.Module], None], of_input: Callable[[Tensor], Tensor], words: str
) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), of_input(torch.randn(200, 8))
    change(model)
    assert words in reason_of(model, "layer", x)
    with torch.no_grad():
        own = model(x)
        with ExPrune(find_sites(model, x), None) as run:
            out = model(x)
    assert torch.equal(plain(out), plain(own))
    assert run.flops.dense == 200 * 2 * (8 * 20 + 20 * 12 + 12 * 3)


def test_an_input_that_computes_as_it_likes_later() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer, self.own = nn.Linear(8, 20), nn.Linear(20, 12), False

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.stem(x))
            return F.relu(self.layer(x.as_subclass(InOtherUnits) if self.own else x))

    model, x = Behind().eval(), torch.randn(40, 8)
    sites = find_sites(model, x)
    model.own = True

    def run() -> None:
        with torch.no_grad(), ExPrune(sites, StatsTest(0.3, n=4)):
            model(x)

    assert "layer: its input is of class InOtherUnits" in refusal(run)


def packed(kind: str, x: Tensor) -> Tensor:
    if kind == "nested":
        return torch.nested.nested_tensor([x[:100], x[100:]], layout=torch.jagged)
    if kind == "nested, strided":
        return torch.nested.nested_tensor([x[:100], x[100:]])
    return x.relu().to_sparse() if kind == "sparse" else x.relu().to_sparse_csr()


@pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning", "ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("kind", ["nested", "nested, strided", "sparse", "csr"])
def test_layers_of_packed_inputs_and_weights_are_no_sites(kind: str) -> None:
    class Packing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(packed(kind, torch.tanh(self.stem(x)))))

    model, x = Packing().eval(), torch.randn(200, 8)
    with torch.no_grad():
        model(x)
    if "nested" in kind:  # rows of many lengths
        assert refusal(lambda: find_sites(model, x)).startswith("layer: its input is nested or sparse")
        return
    assert reason_of(model, "layer", x).startswith("its input is nested or sparse")
    assert reason_of(Net().eval(), "stem", packed(kind, x)).startswith("its input is nested or sparse")
    if kind == "csr":
        model = Net().eval()
        model.layer.weight = nn.Parameter(packed(kind, model.layer.weight.detach()), requires_grad=False)
        assert reason_of(model, "layer", x).startswith("its weight is nested or sparse")


@pytest.mark.parametrize(
    "transform",
    [
        torch.vmap,
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[0],
        lambda f: torch.func.functionalize(f),
        lambda f: lambda x: torch.func.vjp(f, x)[0],
    ],
    ids=["vmap", "jvp", "functionalize", "vjp"],
)
def test_layers_inside_a_transform_are_no_sites(transform: Callable) -> None:
    class Transforming(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = transform(lambda x: F.relu(self.layer(torch.tanh(x))))(self.stem(x))
            return self.head(F.relu(self.head_in(hidden)))

    torch.manual_seed(0)
    model, x = Transforming(), torch.randn(200, 8)
    model.head_in = nn.Linear(12, 12)
    model.eval()
    assert "torch.vmap or another torch.func transform" in reason_of(model, "layer", x)
