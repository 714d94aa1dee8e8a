"""bfloat16 is used where the device is faster in it; the names of the weights do not depend on that."""

import logging
import re

import pytest
import torch

from exprune.lab.training import fit as training
from exprune.lab.training import precision
from exprune.lab.training.precision import training_precision
from tests.cli import OPT, CommandLine

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("times", "taken"), [(0.4, "bf16-mixed"), (1.0, "32-true"), (14.7, "32-true")])
def test_bfloat16_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: float, taken: str
) -> None:
    monkeypatch.setattr(precision, "_times_as_long", lambda device: times)
    with caplog.at_level(logging.INFO):
        assert training_precision("bf16-mixed", CPU) == taken
    (line,) = [record.getMessage() for record in caplog.records if record.name == precision.__name__]
    assert f"{times:.2f} times as long" in line
    assert line.startswith("training in bfloat16" if taken == "bf16-mixed" else "training in float32, not bfloat16")


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_says_itself(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert training_precision("bf16-mixed", GPU) == ("bf16-mixed" if has else "32-true")


@pytest.mark.parametrize("wanted", ["32-true", "64-true", "bf16-true"])
def test_what_was_asked_for_by_name_is_kept(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(precision, "_times_as_long", lambda device: pytest.fail("measured"))
    assert training_precision(wanted, CPU) == wanted


def test_measuring_leaves_everything_as_it_was() -> None:
    """After a measurement, a training draws the same random numbers on as many threads."""
    precision._times_as_long.cache_clear()
    torch.manual_seed(3)
    threads, expected = torch.get_num_threads(), torch.rand(2)
    torch.manual_seed(3)
    measured = precision._times_as_long(CPU)
    assert torch.equal(torch.rand(2), expected) and torch.get_num_threads() == threads
    assert 0.01 < measured < 100


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX2", reason="of processors without bfloat16")
def test_a_processor_without_bfloat16_trains_in_float32() -> None:
    precision._times_as_long.cache_clear()
    assert training_precision("bf16-mixed", CPU) == "32-true"


def test_the_name_of_the_weights_is_the_same(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    used, make_trainer = [], training.make_trainer

    def noted(cfg: object, **options: object) -> object:
        used.append(options.get("precision"))
        return make_trainer(cfg, **options)

    monkeypatch.setattr(training, "make_trainer", noted)
    names = []
    for times in (0.5, 2.0):
        monkeypatch.setattr(precision, "_times_as_long", lambda device, times=times: times)
        outcome = command("train.py", *OPT, "seed=1109", "logger=none", "data.limit=2", "model.epochs=1", "trainer=cpu")
        assert outcome.code == 0, outcome.err
        names += re.findall(r"/(opt-\S+\.safetensors)", outcome.out)
        assert used[-1] == ("bf16-mixed" if times < 1 else "32-true")
    assert len(names) == 2 and names[0] == names[1]


@pytest.mark.parametrize("setting", ["model.precision=half", "trainer.precision=half"])
def test_an_unknown_precision_is_one_line(command: CommandLine, setting: str) -> None:
    outcome = command("train.py", *OPT, "logger=none", "data.limit=2", "seed=1110", "trainer=cpu", setting)
    assert outcome.code == 1
    assert outcome.err.startswith("error: precision=half:") and "bf16-mixed" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
