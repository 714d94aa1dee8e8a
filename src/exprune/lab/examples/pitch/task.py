"""The pitch of a tone, measured by raw pitch accuracy."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.lab.tasks.finite import check_finite, not_finite
from exprune.lab.tasks.task import AccuracyTask

_CENTS = 20.0  # of a bin
_FIRST = 1997.3794084376191  # cents above 10 Hz of bin 0, of CREPE
_TOLERANCE = 50.0  # cents: half a semitone


class PitchTask(AccuracyTask):
    """Evaluates a network that maps (frames, 1024) samples to the probabilities of pitches, each on its own.

    Raw pitch accuracy: the share of frames whose most probable pitch lies within 50 cents of the tone's.
    """

    metric_name = "raw_pitch_accuracy"
    unit = "frame"

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> dict[str, Tensor | int]:
        """Per frame: ``target`` (the pitch nearest to the tone's) and ``prediction`` (the target within 50 cents)."""
        frames, frequencies = batch
        largest, prediction = self.network(frames).max(1)
        place = (1200 * torch.log2(frequencies / 10) - _FIRST) / _CENTS
        target = place.round().long()
        right = (prediction - place).abs() <= _TOLERANCE / _CENTS
        return {
            "prediction": torch.where(right, target, prediction),
            "target": target,
            **self.other_flops(frames),
            "not_finite": not_finite(largest),
        }

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output is predicted."""
        return self.network.classifier

    def sampled_loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """The summed loss of pitches that sound or not, drawn from the network's own predictions."""
        probabilities = self.network(batch[0]).float()
        check_finite(self, probabilities.amax(1), "calibration")
        drawn = torch.rand(probabilities.shape, generator=generator).to(probabilities.device) < probabilities
        return F.binary_cross_entropy(probabilities, drawn.float(), reduction="sum")
