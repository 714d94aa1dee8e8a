"""The paper's vision networks, their accounting, and the image data."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exprune.core import find_sites
from exprune.core.errors import SettingError
from exprune.lab.examples.images.cycles import cycles
from exprune.lab.examples.images.data import MEAN, STD, ImageData, augment
from exprune.lab.examples.images.digits import read_digits
from exprune.lab.examples.images.resnet import ResNet18
from exprune.lab.examples.images.sharpness import sharp
from exprune.lab.examples.images.task import ImageTask
from exprune.lab.examples.images.vgg import VGG11BN
from exprune.lab.training.checkpoints import checkpoint_name
from exprune.lab.training.masks import attach_masks
from tests.cli import ROOT


@pytest.mark.parametrize(
    ("network", "whole", "scope", "sites", "residual"),
    [(VGG11BN, 305_896_458, 305_896_458, 7, 0), (ResNet18, 1_113_507_850, 1_109_706_762, 16, 8)],
)
def test_dense_flops_are_the_published_ones(
    network: type[nn.Module], whole: int, scope: int, sites: int, residual: int
) -> None:
    model, images = network().eval(), torch.zeros(3, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    total = counter.get_total_flops() + model.elementwise_flops(images)
    assert total == 3 * whole
    assert total - model.outside_paper_scope(images) == 3 * scope
    found = [site for site in find_sites(model, images) if site.eligible]
    assert len(found) == sites
    assert sum(site.residual for site in found) == residual


def test_augment_crops_and_mirrors_each_image_for_itself() -> None:
    """Compared with every possible crop of every image; both mirrorings and many crops occur."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 2, 6, 5, generator=generator)
    out = augment(images, 2, True, 0, generator)
    seen = set()
    for image, cropped in zip(images, out, strict=True):
        padded = nn.functional.pad(image, (2,) * 4)
        crops = {(top, left): padded[:, top : top + 6, left : left + 5] for top in range(5) for left in range(5)}
        matches = [
            (corner, mirrored)
            for corner, crop in crops.items()
            for mirrored in (False, True)
            if torch.equal(crop.flip(2) if mirrored else crop, cropped)
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert {mirrored for _, mirrored in seen} == {False, True} and len(seen) > 20


def test_cutout_blanks_one_square_of_each_image() -> None:
    images = torch.ones(200, 2, 8, 9)
    out = augment(images, 0, False, 3, torch.Generator().manual_seed(0))
    corners = set()
    for image in out:
        assert torch.equal(image[0], image[1])
        rows, columns = (image[0] == 0).nonzero(as_tuple=True)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert not image[0, top : bottom + 1, left : right + 1].any()
        assert len(rows) == (bottom - top + 1) * (right - left + 1)
        for low, high, size in ((top, bottom, 8), (left, right, 9)):
            assert high - low == 2 or (high - low == 1 and (low == 0 or high == size - 1))
        corners.add((int(top), int(left)))
    assert len(corners) > 30


@pytest.mark.parametrize(("epoch", "size"), [(0, 20), (1, 20), (2, 32), (4, 32)])
def test_the_first_epochs_see_reduced_images(tmp_path: Path, epoch: int, size: int) -> None:
    """Two of five epochs use reduced images; validation images stay unchanged."""
    reduced = {"size": 20, "share": 0.4}
    data = ImageData(read_digits, str(tmp_path), str(tmp_path), 200, 0, False, 0, reduced, 64, 256)
    data.trainer = SimpleNamespace(current_epoch=epoch, max_epochs=5)
    data.setup()
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, size, size)
    assert next(iter(data.val_dataloader()))[0].shape[-1] == 32


def rates(steps: int, *restarts: float, tail: dict[str, float] | None = None) -> list[float]:
    """Records the learning rate of each step of a training."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    task = SimpleNamespace(trainer=SimpleNamespace(estimated_stepping_batches=steps), lr=0.1)
    options = {"pct_start": 0.2, "cycle_momentum": False}
    scheduler = cycles(task, optimizer, restarts, tail, **options)["lr_scheduler"]["scheduler"]
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


def test_a_restart_is_one_more_cycle() -> None:
    assert rates(16, 0.625) == pytest.approx(rates(10) + rates(6))
    assert rates(32, 0.3125, 0.5) == pytest.approx(rates(10) + rates(6) + rates(16))
    assert rates(3, 0.01, 0.02) == pytest.approx(rates(3))
    assert max(rates(10)) == pytest.approx(0.1)


def test_a_tail_is_at_a_constant_rate() -> None:
    tail = {"share": 0.2, "lr": 0.03}
    assert rates(20, 0.3, tail=tail) == pytest.approx(rates(6) + rates(10) + 4 * [0.03])
    assert rates(10, tail=tail) == pytest.approx(rates(8) + 2 * [0.03])
    assert rates(2, tail=tail) == pytest.approx(rates(2))


@pytest.mark.parametrize("restart", [0, 1, 1.5, [0.5, 0.5], [0.5, 1]])
def test_a_restart_outside_the_training_is_refused(restart: float | list[float]) -> None:
    with pytest.raises(SettingError, match=re.escape(f"model.task.restart={restart}: a share of the training")):
        ImageTask(ResNet18(), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10, restart)


@pytest.mark.parametrize("sharpness", [{"radius": 0, "share": 0.5}, {"radius": 0.1, "share": 1.5}])
def test_a_sharpness_that_is_none_is_refused(sharpness: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=r"model.task.sharpness=.*: a radius above 0 and a share above 0"):
        ImageTask(ResNet18(), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10, None, sharpness)


def test_a_sharp_closure_leaves_the_gradient_of_the_worst_weights_nearby() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double(), torch.randn(8, 3).double()
    elsewhere = copy.deepcopy(network)

    def closure_of(net: nn.Module) -> Callable[[], torch.Tensor]:
        def closure() -> torch.Tensor:
            net.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        return closure

    before = copy.deepcopy(network.state_dict())
    loss = sharp(network, closure_of(network), 0.3)()

    assert loss == closure_of(elsewhere)()
    once = copy.deepcopy(elsewhere[1].state_dict())
    gradients = [p.grad.clone() for p in elsewhere.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    with torch.no_grad():
        for p, g in zip(elsewhere.parameters(), gradients, strict=True):
            p += 0.3 * g / norm
    worst = closure_of(elsewhere)()
    assert worst > loss
    for p, q in zip(network.parameters(), elsewhere.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value, before[name])
    assert network[1].momentum == 0.1
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(network[1].state_dict()[name], once[name])


def test_the_last_epochs_are_sharp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_trainer: Callable[..., lightning.Trainer]
) -> None:
    """Two epochs of five: each of their two steps takes two passes."""
    data = ImageData(read_digits, str(tmp_path), str(tmp_path), 200, 0, False, 0, None, 64, 256, limit=128)
    task = ImageTask(ResNet18(), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10, None, {"radius": 0.1, "share": 0.4})
    monkeypatch.setattr(task, "network", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    seen = []
    monkeypatch.setattr(task, "log", lambda name, value, **_: name == "train/loss" and seen.append(task.current_epoch))
    cpu_trainer(max_epochs=5, enable_checkpointing=False).fit(task, datamodule=data)
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("average", "wrong"),
    [
        ({"share": 0, "lr": 0.1}, "model.task.average.share=0: must be above 0 and below 1"),
        ({"share": 1, "lr": 0.1}, "model.task.average.share=1: must be above 0 and below 1"),
        ({"share": 0.5, "lr": 0}, "model.task.average.lr=0: must be a learning rate above 0"),
        ({"share": 0.4, "lr": 0.1}, "model.task.restart=0.6: a share of the training, above 0 and below 0.6"),
    ],
)
def test_an_average_that_cannot_be_is_refused(average: dict[str, float], wrong: str) -> None:
    with pytest.raises(SettingError, match=re.escape(wrong)):
        ImageTask(ResNet18(), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10, 0.6, None, average)


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std


class Steps(lightning.Callback):
    """Records the weights and a BatchNorm's means after each step, and the weights at the start of the next step."""

    def __init__(self) -> None:
        self.left: dict[int, torch.Tensor] = {}
        self.seen: dict[int, torch.Tensor] = {}
        self.begun: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, task: ImageTask, *_: object) -> None:
        self.begun[trainer.global_step] = task.network[1].weight.detach().clone()

    def on_train_batch_end(self, trainer: lightning.Trainer, task: ImageTask, *_: object) -> None:
        self.left[trainer.global_step] = task.network[1].weight.detach().clone()
        self.seen[trainer.global_step] = task.network[2].running_mean.clone()

    def mean(self, *steps: int) -> torch.Tensor:
        return torch.stack([self.left[step] for step in steps]).mean(0)


def test_what_is_kept_is_the_mean_of_the_last_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_trainer: Callable[..., lightning.Trainer]
) -> None:
    """Averages the last three of ten steps, two per epoch; the BatchNorm has the training images' statistics."""
    data = ImageData(read_digits, str(tmp_path), str(tmp_path), 200, 0, False, 0, None, 64, 256, limit=128)

    def trained(resumed: Path | None) -> tuple[Steps, nn.Module, list[torch.Tensor]]:
        steps, average, validated = Steps(), {"share": 0.3, "lr": 0.05}, []
        task = ImageTask(ResNet18(), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10, None, None, average)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10), nn.BatchNorm1d(10))
        monkeypatch.setattr(task, "network", network)
        monkeypatch.setattr(task, "validation_step", lambda *_: validated.append(network[1].weight.detach().clone()))
        monkeypatch.setattr(task, "log", lambda *_, **__: None)
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = cpu_trainer(max_epochs=5, callbacks=[steps, keep], num_sanity_val_steps=0)
        trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
        return steps, network, validated

    whole, network, validated = trained(None)
    for step in range(1, 10):
        assert torch.equal(whole.begun[step], whole.left[step])
    for epoch, steps in enumerate([[2], [4], [6], [8], [8, 9, 10]]):
        kept = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        torch.testing.assert_close(validated[epoch], whole.mean(*steps))
        torch.testing.assert_close(kept["network.1.weight"], whole.mean(*steps))
        if epoch < 3:
            torch.testing.assert_close(kept["network.2.running_mean"], whole.seen[steps[0]])
    torch.testing.assert_close(network[1].weight, whole.mean(8, 9, 10))
    inputs = network[:2](normalised(data.parts["train"][0]))
    torch.testing.assert_close(network[2].running_mean, inputs.mean(0))
    torch.testing.assert_close(kept["network.2.running_mean"], inputs.mean(0))

    resumed, network, _ = trained(tmp_path / "epoch=3.ckpt")
    assert list(resumed.left) == [9, 10] and not torch.equal(resumed.left[10], whole.left[10])
    resumed.left[8] = whole.left[8]
    torch.testing.assert_close(network[1].weight, resumed.mean(8, 9, 10))


def test_a_network_that_is_pruned_statically_is_not_averaged() -> None:
    task = ImageTask(ResNet18(), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10, None, None, {"share": 0.5, "lr": 0.1})
    assert task.tail == {"share": 0.5, "lr": 0.1}
    attach_masks(task.network, ["head"])
    assert task.tail is None and task.configure_callbacks() == []


def test_a_setting_that_is_null_leaves_the_names_of_weights_as_they_are() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg, null, one = (
            compose("train", ["model=vgg11_bn", *more]) for more in ([], ["+data.new=null"], ["+data.new=1"])
        )
    assert checkpoint_name(null) == checkpoint_name(cfg) != checkpoint_name(one)


def test_digits_are_split_once(tmp_path: Path) -> None:
    images = read_digits(tmp_path, tmp_path)
    assert images.train.shape == (1437, 3, 32, 32) and images.test.shape == (360, 3, 32, 32)
    data = ImageData(read_digits, str(tmp_path), str(tmp_path), 200, 2, False, 0, None, 64, 256)
    data.setup()
    assert [len(data.parts[name][1]) for name in ("train", "valid", "test")] == [1237, 200, 360]
    labels = torch.cat([batch for _, batch in data.test_dataloader()])
    assert torch.equal(labels, images.test_labels)
    first, second = (torch.cat([batch for _, batch in data.train_dataloader()]) for _ in range(2))
    assert len(first) == 1237 // 64 * 64 and not torch.equal(first, second)
