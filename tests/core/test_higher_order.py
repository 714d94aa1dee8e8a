"""Operators that take functions: what these functions call is followed, counted and pruned as usual."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from exprune.core import ExPrune, StatsTest, find_sites
from tests.core.networks import by_name, counts, pruned_pass

WIDTH, N = 24, 8
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of torch's prototypes


class Net(nn.Module):
    """A layer that a higher-order operator calls, between two that are called normally."""

    def __init__(self, call: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.before, self.inside = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, F.relu(self.before(F.relu(self.stem(x)))))

    def step(self, h: Tensor) -> Tensor:
        return F.relu(self.inside(h))


def while_loop(net: Net, h: Tensor) -> Tensor:
    from torch._higher_order_ops import while_loop

    return while_loop(lambda i, h: i < 2, lambda i, h: (i + 1, net.step(h)), (torch.tensor(0), h))[1]


# Each with the same function without such an operator.
SAME = {
    "cond, true": (
        lambda net, h: torch.cond(h.sum() > 0, lambda h: net.step(h), lambda h: h - 1, (h,)),
        lambda net, h: net.step(h),
    ),
    "cond, the other": (
        lambda net, h: torch.cond(h.sum() < 0, lambda h: h - 1, lambda h: net.step(h), (h,)),
        lambda net, h: net.step(h),
    ),
    "while_loop": (while_loop, lambda net, h: net.step(net.step(h))),
    "checkpoint": (lambda net, h: checkpoint(net.step, h, use_reentrant=False), lambda net, h: net.step(h)),
}


def made(call: Callable) -> Net:
    torch.manual_seed(0)
    return Net(call).eval().requires_grad_(False)


@pytest.mark.parametrize("name", SAME)
def test_the_same_function_without_the_operator(name: str) -> None:
    x = torch.randn(40, 6)
    runs = []
    for call in SAME[name]:
        net = made(call)
        sites = find_sites(net, x)
        assert [site.name for site in sites if site.eligible] == ["before", "inside"]
        runs.append((net, pruned_pass(net, sites, StatsTest(0.3, n=N), x)))
    (net, run), (_, reference) = runs
    assert counts(run) == counts(reference)
    with torch.no_grad(), ExPrune(find_sites(net, x), None):
        torch.testing.assert_close(net(x), net(x))


def test_the_branch_that_is_not_taken_costs_nothing() -> None:
    net = made(lambda net, h: torch.cond(h.sum() < 0, lambda h: net.step(h), lambda h: h - 1, (h,)))
    x = torch.randn(40, 6)
    sites = find_sites(net, x)
    assert "not seen" in by_name(sites)["inside"].reason
    run = pruned_pass(net, sites, StatsTest(0.3, n=N), x)
    assert run.flops.dense == 40 * 2 * (6 * WIDTH + WIDTH * WIDTH)


def test_flex_attention_is_counted() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(net: Net, h: Tensor) -> Tensor:
        q = h.view(1, 2, -1, WIDTH // 2)
        return F.relu(net.inside(flex_attention(q, q, q).reshape(-1, WIDTH)))

    net, x = made(attend), torch.randn(40, 6)
    sites = find_sites(net, x)
    assert [site.name for site in sites if site.eligible] == ["before", "inside"]
    run = pruned_pass(net, sites, StatsTest(0.3, n=N), x)
    linear, attention = 40 * 2 * (6 * WIDTH + 2 * WIDTH * WIDTH), 2 * 2 * 40 * 40 * 2 * (WIDTH // 2)
    assert run.flops.dense == linear + attention
    assert not run.flops.uncounted


def test_another_operator_is_named() -> None:
    """An operator that is not known to compute nothing besides its functions."""

    from torch._higher_order_ops.utils import autograd_not_implemented

    class Doubled(torch._ops.HigherOrderOperator):
        def __init__(self) -> None:
            super().__init__("doubled_for_a_test")

        def __call__(self, function: Callable, x: Tensor) -> Tensor:
            return super().__call__(function, x)

    doubled = Doubled()
    doubled.py_impl(torch._C.DispatchKey.CompositeExplicitAutograd)(lambda function, x: function(x) * 2)
    doubled.py_autograd_impl(autograd_not_implemented(doubled, deferred_error=True))
    net, x = made(lambda net, h: doubled(net.step, h)), torch.randn(40, 6)
    sites = find_sites(net, x)
    assert by_name(sites)["inside"].eligible
    run = pruned_pass(net, sites, StatsTest(0.3, n=N), x)
    assert run.flops.uncounted == {"higher_order.doubled_for_a_test": 1}


def test_in_a_fresh_process() -> None:
    """The operator itself is the first to import torch's compiler, inside of the context."""
    import subprocess
    import sys

    code = """
import torch
from torch import nn
from exprune.core import find_sites
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 24)
    def forward(self, x):
        h = self.a(x).relu()
        return torch.cond(h.sum() > 0, lambda h: self.b(h).relu(), lambda h: h - 1, (h,))
print([site.name for site in find_sites(Net().eval(), torch.randn(9, 6)) if site.eligible])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "['b']\n", done.stderr
