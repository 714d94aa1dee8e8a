"""Questions with two answers each, as batches of token sequences: PIQA, and its form on held-out text."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor
from torch.utils.data import DataLoader

from exprune.core.errors import SettingError
from exprune.lab.data.hub import without_hub
from exprune.lab.data.splits import SplitData
from exprune.lab.examples.language.tokens import NO_TARGET, PAD, START, padded


@dataclass(frozen=True)
class Question:
    """Two texts; ``answer`` is the index of the right one."""

    texts: tuple[str, str]
    answer: int


class ChoiceBatch(NamedTuple):
    """Both sequences of several questions, one after the other, padded to the same length.

    Attributes:
        input_ids: Token ids (2 * questions, length).
        attention_mask: 0 for padding (2 * questions, length).
        targets: The next token of each; ``NO_TARGET`` if there is none (2 * questions, length).
        answers: Which of the two texts is right (questions,).
        index: The position of each question in the split (questions,).
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    answers: Tensor
    index: Tensor  # type: ignore[assignment]  # a field here, a method of other tuples


def read_piqa(data_dir: Path, cache_dir: Path) -> list[Question]:
    """PIQA's validation split. A text is the goal, a line break, and one of the two solutions.

    Raises:
        SettingError: If the files are not PIQA's, or are available neither locally nor on the hub.
    """
    # Some solutions end with blanks, which the published FLOPs do not include.
    return [
        Question((f"{row.goal}\n{row.solutions[0].strip()}", f"{row.goal}\n{row.solutions[1].strip()}"), row.answer)
        for row in piqa_rows(data_dir)
    ]


@dataclass(frozen=True)
class PiqaRow:
    """A question of PIQA as it was published: a goal and two solutions; ``answer`` is the index of the right one."""

    goal: str
    solutions: tuple[str, str]
    answer: int


def piqa_rows(data_dir: Path) -> list[PiqaRow]:
    """The rows of ``data_dir/piqa/valid.jsonl`` with ``valid-labels.lst``, or else the split on the Hugging Face hub.

    Raises:
        SettingError: If the files are not PIQA's, or are available neither locally nor on the hub.
    """
    questions, labels = data_dir / "piqa" / "valid.jsonl", data_dir / "piqa" / "valid-labels.lst"
    if not questions.is_file():
        return _piqa_from_hub(questions)
    if not labels.is_file():
        raise SettingError(f"{labels}: no such file; PIQA's questions need their labels, a line with 0 or 1 for each")
    try:
        rows = [json.loads(line) for line in questions.read_text("utf-8").splitlines() if line.strip()]
        answers = [int(line) for line in labels.read_text().split()]
        if len(rows) != len(answers):
            raise ValueError(f"{len(rows)} questions and {len(answers)} labels")
        found = [
            PiqaRow(row["goal"], (row["sol1"], row["sol2"]), answer) for row, answer in zip(rows, answers, strict=True)
        ]
        if wrong := next((answer for answer in answers if answer not in (0, 1)), None):
            raise ValueError(f"a label {wrong}, not 0 or 1")
        if not all(isinstance(text, str) for row in found for text in (row.goal, *row.solutions)):
            raise TypeError("a goal or a solution is not a text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{questions.parent}: not PIQA's validation split ({error})") from error
    return found


def _piqa_from_hub(missing: Path) -> list[PiqaRow]:
    try:
        path = hf_hub_download(
            "ybisk/piqa",
            "plain_text/validation/0000.parquet",
            repo_type="dataset",
            revision="refs/convert/parquet",
            local_files_only=without_hub(),
        )
    except Exception as error:  # the hub raises many types: no network, no such file, no space
        raise SettingError(
            f"PIQA is missing: put valid.jsonl and valid-labels.lst into {missing.parent}, or run once with access to "
            f"the Hugging Face hub (ybisk/piqa failed: {str(error).splitlines()[0]})"
        ) from error
    table = pd.read_parquet(path)
    return [PiqaRow(row.goal, (row.sol1, row.sol2), int(row.label)) for row in table.itertuples()]


def collate(chosen: Sequence[tuple[int, list[Tensor], int]]) -> ChoiceBatch:
    """Make a batch of (index, token ids of both texts, answer); every text begins with START."""
    lines = [torch.cat([torch.tensor([START]), ids]) for _, both, _ in chosen for ids in both]
    return ChoiceBatch(
        padded(lines, PAD),
        padded([torch.ones_like(line) for line in lines], 0),
        padded([torch.cat([line[1:], torch.tensor([NO_TARGET])]) for line in lines], NO_TARGET),
        torch.tensor([answer for *_, answer in chosen]),
        torch.tensor([index for index, *_ in chosen]),
    )


class ChoiceData(SplitData):
    """Questions to be answered without training, the longest first. ``test`` and ``valid`` are the same split.

    Args:
        read: Returns the questions, given the data and the cache folder.
        encode: Returns the token ids of texts.
        data_dir: The data folder.
        cache_dir: The cache folder.
        eval_batch_size: The batch size.
        limit: Keep only this number of questions, for quick tries; None keeps all.
        longest: Leave out questions with a text of more tokens, including START, which a network with this number of
            positions cannot read; None leaves out none.
    """

    def __init__(
        self,
        read: Callable[[Path, Path], list[Question]],
        encode: Callable[[list[str]], list[Tensor]],
        data_dir: str,
        cache_dir: str,
        eval_batch_size: int,
        limit: int | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init__()
        self.read, self.encode, self.longest = read, encode, longest
        self.data_dir, self.cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
        self.eval_batch_size, self.limit = eval_batch_size, limit
        self.rows: list[tuple[int, list[Tensor], int]] = []

    def setup(self, stage: str | None = None) -> None:
        if self.rows:
            return
        questions = self.read(self.data_dir, self.cache_dir)[: self.limit]
        ids = self.encode([text for question in questions for text in question.texts])
        for place, one in enumerate(ids):
            if len(one) == 0:
                raise SettingError(f"question {place // 2 + 1}: an empty text has no token to score")
        rows = [(k, ids[2 * k : 2 * k + 2], question.answer) for k, question in enumerate(questions)]
        if self.longest is not None:
            rows = [row for row in rows if max(map(len, row[1])) < self.longest]
        self.rows = sorted(rows, key=lambda row: -max(map(len, row[1])))

    def train_dataloader(self) -> DataLoader:
        raise SettingError("this data has questions and no text to train on; train with data=stdlib")

    def calibration_dataloader(self, inputs: int, generator: torch.Generator | None) -> DataLoader:
        raise SettingError(
            "this data has questions and no training split to calibrate on; name a file: exprune.calibration"
        )

    def examples(self, part: str) -> list[tuple[int, list[Tensor], int]]:
        return self.rows

    def batches(self, examples: Any) -> DataLoader:
        return DataLoader(examples, self.eval_batch_size, collate_fn=collate)
