"""Pitch detection, measured by raw pitch accuracy."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.lab.tasks.finite import check_finite, not_finite
from exprune.lab.tasks.task import AccuracyTask

_CENTS = 20.0  # width of a bin
_FIRST = 1997.3794084376191  # pitch of CREPE's bin 0, in cents above 10 Hz
_TOLERANCE = 50.0  # cents, half a semitone


class PitchTask(AccuracyTask):
    """Evaluate a network that maps samples (frames, 1024) to independent probabilities of pitches.

    Raw pitch accuracy is the share of frames whose most probable pitch is within 50 cents of the tone's.
    """

    metric_name = "raw_pitch_accuracy"
    unit = "frame"

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> dict[str, Tensor | int]:
        """Per frame: ``target`` (the nearest pitch) and ``prediction`` (the target if it is within 50 cents)."""
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
        """The layer of which only the largest output matters."""
        return self.network.classifier

    def sampled_loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """The summed loss of independently drawn pitches, by the network's own probabilities."""
        probabilities = self.network(batch[0]).float()
        check_finite(self, probabilities.amax(1), "calibration")
        drawn = torch.rand(probabilities.shape, generator=generator).to(probabilities.device) < probabilities
        return F.binary_cross_entropy(probabilities, drawn.float(), reduction="sum")
