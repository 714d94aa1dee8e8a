"""What a server does to a model inside the context: threads, copies, files, other objects, changes."""

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OPTForCausalLM

from exprune.core import Calibrated, Dominance, HeadRecorder, Recorder, SettingError, Site, find_sites
from exprune.fast import faster
from exprune.fast.layer import FastLayer
from exprune.fast.threads import _pool
from tests.fast.test_faster import STAGES, made, opt, refused

X = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))


def served(threads: int, work: Callable[[int], Any], items: int) -> list[Any]:
    """Return what the given number of threads, which start together, make of the items."""
    together = threading.Barrier(threads)
    with ThreadPoolExecutor(threads, initializer=together.wait) as pool:
        return list(pool.map(work, range(items)))


def opt_and_heuristics() -> tuple[OPTForCausalLM, list[Site], Calibrated, Dominance]:
    model = opt()
    some = torch.randint(3, 50, (40, 12))
    sites = find_sites(model, some[:1])
    with torch.no_grad(), Recorder(sites, STAGES, {}) as recorder, HeadRecorder(model.lm_head, (8, 24, 40)) as head:
        model(some)
    return (
        model,
        sites,
        Calibrated(0.1, STAGES, recorder.statistics()),
        Dominance(model.lm_head, head.statistics(), 0.01),
    )


@pytest.mark.parametrize("stopping", [True, False])
@pytest.mark.parametrize("torch_threads", [1, 2])
def test_threads_generate_what_one_does(stopping: bool, torch_threads: int, threads_again: None) -> None:
    model, sites, heuristic, head = opt_and_heuristics()
    prompts = torch.randint(3, 50, (32, 1, 9))
    torch.set_num_threads(torch_threads)

    def generated(index: int) -> Tensor:
        return model.generate(prompts[index], max_new_tokens=16, do_sample=False)

    arguments = (heuristic, head) if stopping else (None, None)
    with faster(model, sites, *arguments, switch=False) as fast:
        one = [generated(index) for index in range(32)]
        counts = [(layer.rows, layer.read) for layer in fast.layers]
    with faster(model, sites, *arguments, switch=False) as fast:
        four = served(4, generated, 32)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))
    for layer, (rows, read) in zip(fast.layers, counts, strict=True):
        assert layer.rows == rows and layer.read == pytest.approx(read, rel=1e-3)


@pytest.fixture
def threads_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def test_a_kernel_gives_way_while_threads_call_it() -> None:
    model, sites, statistics = made()
    rows = torch.randn(400, 1, 12)
    with torch.inference_mode():
        dense = [model(row) for row in rows]

    def computed(index: int) -> Tensor:
        with torch.inference_mode():
            return model(rows[index])

    with faster(model, sites, Calibrated(0.0, STAGES, statistics)) as fast:
        for layer in fast.layers:
            layer.dense_seconds = 0.0
        quick = served(4, computed, 400)
    assert not any(layer.kept for layer in fast.layers)
    torch.testing.assert_close(quick, dense, atol=1e-5, rtol=1e-5)


def test_a_call_that_has_begun_is_served_after_the_end() -> None:
    model, sites, statistics = made()
    with torch.inference_mode():
        dense = model.mlp(torch.ones(1, 40))
        with faster(model, sites, Calibrated(0.0, STAGES, statistics)) as fast:
            forwards = [layer.layer.forward for layer in fast.layers]
            model(X)
        hidden = torch.relu(forwards[0](torch.ones(1, 40)))
        torch.testing.assert_close(forwards[1](hidden), dense)


@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_compiled_model_runs_as_it_was_written(when: str) -> None:
    made_model, sites, statistics = made()
    model: Any = made_model
    dense = model(X)
    if when == "before":
        model = torch.compile(model, backend="eager")
        model(X)
    other, others, _ = made()
    heuristic = Calibrated(0.0, STAGES, statistics)
    first, second = (faster(m, s, heuristic, switch=False) for m, s in ((model, sites), (other, others)))
    with torch.inference_mode(), ExitStack() as later:
        with first:
            later.enter_context(second)
            model = torch.compile(model, backend="eager") if when == "inside" else model
            torch.testing.assert_close(model(X), dense)
        # The second context goes on after the first has ended.
        torch.testing.assert_close(torch.compile(other, backend="eager")(X), dense)
    assert all(layer.rows for layer in (*first.layers, *second.layers))
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_the_pool_of_a_forked_process_is_its_own() -> None:
    from exprune.fast import threads

    threads._replace_pool()
    assert threads._pool is not _pool and threads.shared(lambda part, low, high: high - low, 10, 2) == 10


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def loaded(model: nn.Module) -> nn.Module:
    state = model.state_dict()
    assert all(not isinstance(value, nn.Parameter) for value in state.values())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = opt()
    other.load_state_dict(torch.load(buffer))
    return other


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved,
    "state_dict": loaded,
}


@pytest.mark.parametrize("leaves", COPIES)
def test_what_leaves_is_the_models_own(leaves: str) -> None:
    model, sites, heuristic, head = opt_and_heuristics()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(3, 50, (1, 7))
    with torch.inference_mode():
        want = model(ids).logits
    with faster(model, sites, heuristic, head, switch=False):
        with torch.inference_mode():
            model(ids)
        other = COPIES[leaves](model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in other.named_parameters():
        assert type(value) is nn.Parameter and torch.equal(value, before[name]), name
        assert value.is_contiguous() and value.is_leaf and value.requires_grad
    assert other.lm_head.weight is other.model.decoder.embed_tokens.weight  # tied as they were
    assert not any({"forward", "_apply", "__getstate__"} & set(vars(module)) for module in other.modules())
    with torch.inference_mode():
        assert torch.equal(other(ids).logits, want) and torch.equal(model(ids).logits, want)
    other(ids).logits.sum().backward()


def test_save_pretrained(tmp_path: Path) -> None:
    model, sites, heuristic, head = opt_and_heuristics()
    model.save_pretrained(tmp_path / "before")
    with torch.inference_mode(), faster(model, sites, heuristic, head, switch=False):
        model(torch.randint(3, 50, (1, 7)))
        model.save_pretrained(tmp_path / "inside")
    files = [tmp_path / folder / "model.safetensors" for folder in ("before", "inside")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_parameter_is_read_as_its_own() -> None:
    model, sites, statistics = made()
    up = model.mlp[0]
    own = up.weight.detach().clone()
    with torch.inference_mode(), faster(model, sites, Calibrated(0.1, STAGES, statistics)):
        model(X)
        assert up.weight.shape == (77, 40) and up.weight.stride() == (40, 1) and up.weight.is_contiguous()
        for read in (up.weight.data, up.weight[:], up.weight.clone(), up.weight * 1, torch.cat([up.weight])):
            assert torch.equal(read, own)
        assert next(iter(up.parameters())) is up.weight
        assert up.weight.sum() == own.sum() and up.weight.norm() == own.norm()
        assert torch.equal(
            nn.functional.linear(torch.ones(1, 40), up.weight), nn.functional.linear(torch.ones(1, 40), own)
        )
        torch.testing.assert_close(
            copy.copy(up)(torch.ones(1, 40)), nn.functional.linear(torch.ones(1, 40), own, up.bias)
        )
        assert model.to("cpu") is model and model.float() is model  # nothing to do
        model.requires_grad_(False)
    assert not up.weight.requires_grad and torch.equal(up.weight, own)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.mlp.double(),
        lambda model: model.mlp[0].double(),
        lambda model: model.to("meta"),
        lambda model: model.mlp[0].weight.mul_(2),
        lambda model: model.mlp[2].weight.zero_(),
        lambda model: torch.nn.init.zeros_(model.mlp[0].weight),
        lambda model: setattr(model.mlp[0].weight, "data", torch.zeros(77, 40)),
    ],
)
def test_a_change_is_refused_and_leaves_nothing(change: Callable[[nn.Module], object]) -> None:
    model, sites, statistics = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def inside() -> None:
        with torch.no_grad(), faster(model, sites, Calibrated(0.1, STAGES, statistics)):
            model(X)
            change(model)

    refused("weight of mlp.[02] cannot be changed inside the context", inside)
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "which"),
    [
        (lambda model: model.mlp[0].weight.data.mul_(2), "weight of mlp.0"),
        (lambda model: model.mlp[2].weight.detach().zero_(), "weight of mlp.2"),
        (lambda model: model.mlp[0].weight[3].fill_(1), "weight of mlp.0"),
        (lambda model: model.state_dict()["mlp.0.weight"].add_(1), "weight of mlp.0"),
        (lambda model: setattr(model.mlp[0], "weight", nn.Parameter(torch.zeros(77, 40))), "weight of mlp.0"),
        (lambda model: model.mlp[2].bias.data.add_(1), "bias of mlp.2"),
    ],
)
def test_a_change_behind_its_back_is_told(change: Callable[[nn.Module], object], which: str) -> None:
    model, sites, statistics = made()

    def inside() -> None:
        with torch.no_grad(), faster(model, sites, Calibrated(0.1, STAGES, statistics)):
            model(X)
            change(model)

    refused(f"the {which} was changed inside the context", inside)
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_weights_for_one_call() -> None:
    model, sites, statistics = made()
    others = {name: value * 2 for name, value in model.state_dict().items()}

    def inside() -> None:
        with torch.inference_mode(), faster(model, sites, Calibrated(0.1, STAGES, statistics)):
            torch.func.functional_call(model, others, (X,))

    refused("mlp.0 was given another weight or bias", inside)


def test_is_not_traced() -> None:
    model, sites, statistics = made()

    def inside() -> None:
        with torch.inference_mode(), faster(model, sites, Calibrated(0.1, STAGES, statistics)):
            torch.jit.trace(model, (X,))

    refused("mlp.0 cannot be traced", inside)


def test_a_row_of_no_or_another_kind() -> None:
    model, sites, statistics = made()
    with torch.inference_mode(), faster(model, sites, Calibrated(0.1, STAGES, statistics)):
        assert model(torch.empty(0, 12)).shape == (0, 5)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model.mlp[0](torch.randn(1, 39))
        with pytest.raises((RuntimeError, NotImplementedError)):
            model.mlp[0](torch.empty(1, 40, device="meta"))
        model(X)


def test_sites_of_another_object() -> None:
    model, sites, statistics = made()
    other = copy.deepcopy(model)
    good = Calibrated(0.1, STAGES, statistics)
    refused("mlp.0 was found in another model", lambda: faster(other, sites, good))
    refused("mlp.0 was found in another model", lambda: faster(model.mlp, sites, good))

    def other_runs() -> None:
        with torch.inference_mode(), faster(model, sites, good):
            other(X)

    refused("none of its layers was called", other_runs)

    def part_runs() -> None:
        with torch.inference_mode(), faster(model, sites, good):
            model.mlp[0](torch.ones(1, 40))

    refused("mlp.2 was not called", part_runs)
    with pytest.raises(ZeroDivisionError), faster(model, sites, good):
        raise ZeroDivisionError


def test_contexts_that_begin_at_once() -> None:
    model, sites, statistics = made()
    good = Calibrated(0.1, STAGES, statistics)
    together = threading.Barrier(2)

    def begun(index: int) -> str:
        try:
            with torch.inference_mode(), faster(model, sites, good):
                model(X)
                together.wait()
        except SettingError as error:
            together.wait()
            return str(error)
        return "served"

    found = sorted(served(2, begun, 2))
    assert "another faster context" in found[0] and found[1] == "served"
    assert not any({"forward", "_apply"} & set(vars(module)) for module in model.modules())


def test_its_account_can_be_sent() -> None:
    model, sites, statistics = made()
    with torch.inference_mode(), faster(model, sites, Calibrated(0.1, STAGES, statistics)) as fast:
        model(X)
    sent: list[FastLayer] = pickle.loads(pickle.dumps(fast.layers))
    assert [layer.density for layer in sent] == [layer.density for layer in fast.layers]
