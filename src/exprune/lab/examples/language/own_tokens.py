"""Texts in the tokens of a pretrained model, for predicting the next token or masked ones."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from exprune.core.errors import SettingError
from exprune.lab.data.hub import from_hub
from exprune.lab.data.splits import SplitData
from exprune.lab.examples.language.pretrained import is_masked_lm
from exprune.lab.examples.language.stdlib import Corpus
from exprune.lab.examples.language.tokens import NO_TARGET, Block, collate

_MASKED = 0.15  # share of masked tokens, as in BERT's training
_AT_ONCE = 16  # texts that are tokenised at a time


@dataclass(frozen=True)
class OwnTokens:
    """How a model reads texts.

    Attributes:
        ids: Converts texts to token ids, without the tokens around a text.
        before: The tokens before a text.
        after: The tokens after a text.
        pad: The token that fills up a batch.
        mask: The token that replaces tokens to be predicted; None if the next token is predicted.
    """

    ids: Callable[[list[str]], list[list[int]]]
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    mask: int | None


def own_tokens(name: str | None, cache_dir: str | None = None, only_causal: bool = False) -> OwnTokens:
    """The reading of texts by a pretrained model's tokenizer.

    Args:
        name: See `exprune.lab.examples.language.pretrained.pretrained_lm`.
        cache_dir: See `exprune.lab.examples.language.pretrained.pretrained_lm`.
        only_causal: Refuse a model that predicts masked tokens.

    Raises:
        SettingError: If there is no tokenizer, if it lacks a required token, or if a masked model is refused.
    """
    if only_causal:
        check_causal(name, cache_dir)
    tokenizer = own_tokenizer(name, cache_dir)
    masked = is_masked_lm(name, cache_dir)
    if masked and tokenizer.mask_token_id is None:
        raise SettingError(f"model.pretrained={name}: its tokenizer has no token that masks")

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    def known(*tokens: int | None) -> tuple[int, ...]:
        return next(((token,) for token in tokens if token is not None), ())

    begin = known(tokenizer.cls_token_id) if masked else known(tokenizer.bos_token_id, tokenizer.eos_token_id)
    if not masked and not begin:
        raise SettingError(f"model.pretrained={name}: its tokenizer has no token that begins a text")
    end = known(tokenizer.sep_token_id) if masked else ()
    pad = known(tokenizer.pad_token_id, tokenizer.eos_token_id, 0)[0]
    return OwnTokens(ids, begin, end, pad, tokenizer.mask_token_id if masked else None)


def own_tokenizer(name: str | None, cache_dir: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained model."""
    return from_hub(name, "tokenizer", AutoTokenizer.from_pretrained, cache_dir=cache_dir)


def check_causal(name: str | None, cache_dir: str | None = None) -> None:
    """Check that a pretrained model predicts the next token.

    Raises:
        SettingError: If it predicts masked tokens.
    """
    if is_masked_lm(name, cache_dir):
        raise SettingError(
            f"model.pretrained={name}: predicts masked tokens, and this data asks for the next one; name a causal "
            "language model, or use data=text, which serves both"
        )


class OwnTokenData(SplitData):
    """Texts as blocks of a pretrained model's tokens. It does not train.

    For a masked model, 15 % of the tokens of each block are masked, at least one, drawn with a fixed seed.

    Args:
        read: Returns the texts, given the data and the cache folder.
        tokens: How the model reads them.
        data_dir: The data folder.
        cache_dir: The cache folder.
        context: The largest number of tokens of a block, including those around the text.
        eval_batch_size: The batch size.
        limit: Keep only this number of blocks of each part; None keeps all.
    """

    def __init__(
        self,
        read: Callable[[Path, Path], Corpus],
        tokens: OwnTokens,
        data_dir: str,
        cache_dir: str,
        context: int,
        eval_batch_size: int,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        self.read, self.tokens = read, tokens
        self.folders = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
        self.room = context - len(tokens.before) - len(tokens.after)
        if self.room < 1:
            raise SettingError(f"data.context={context}: must be at least {context - self.room + 1}")
        self.eval_batch_size, self.limit = eval_batch_size, limit
        self.blocks: dict[str, list[Block]] = {}

    def setup(self, stage: str | None = None) -> None:
        if not self.blocks:
            parts = self.read(*self.folders).parts
            self.blocks = {part: self._blocks(list(texts.values())) for part, texts in parts.items()}

    def _blocks(self, texts: list[str]) -> list[Block]:
        generator = torch.Generator().manual_seed(0)
        cut: list[Block] = []
        some = (texts[k : k + _AT_ONCE] for k in range(0, len(texts), _AT_ONCE))  # with a limit, only a few are needed
        for group, ids in enumerate(itertools.chain.from_iterable(map(self.tokens.ids, some))):
            for start in range(0, len(ids), self.room):
                inside = torch.tensor(ids[start : start + self.room])
                cut.append(self._block(inside, group, generator))
                if len(cut) == self.limit:
                    return cut
        return cut

    def _block(self, inside: Tensor, group: int, generator: torch.Generator) -> Block:
        before, after, mask = self.tokens.before, self.tokens.after, self.tokens.mask
        whole = torch.cat([torch.tensor(before), inside, torch.tensor(after, dtype=torch.long)])
        if mask is None:
            return Block(whole[:-1], whole[1:], group)
        chosen = torch.rand(len(inside), generator=generator)
        chosen = chosen <= chosen.kthvalue(max(1, round(_MASKED * len(inside)))).values
        where = torch.zeros(len(whole), dtype=torch.bool)
        where[len(before) : len(before) + len(inside)] = chosen
        return Block(whole.masked_fill(where, mask), whole.masked_fill(~where, NO_TARGET), group)

    def train_dataloader(self) -> Any:
        raise SettingError("a pretrained model is not trained here; train model=opt or model=llama")

    def examples(self, part: str) -> list[Block]:
        return self.blocks[part]

    def batches(self, examples: Any) -> DataLoader[Block]:
        blocks: Any = sorted(examples, key=lambda block: len(block.ids))  # so that batches contain little padding
        return DataLoader(blocks, self.eval_batch_size, collate_fn=partial(collate, pad=self.tokens.pad))
