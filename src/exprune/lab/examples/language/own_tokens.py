"""Texts in the tokens of a pretrained model: to predict the next of them, or those that are masked."""

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

_MASKED = 0.15  # of the tokens, as BERT was trained
_AT_ONCE = 16  # texts that a tokenizer is given


@dataclass(frozen=True)
class OwnTokens:
    """How a model reads texts.

    Attributes:
        ids: of some texts, without what stands around them.
        before, after: what stands around a text.
        pad: fills up a batch.
        mask: stands for a token that is to be predicted; None: the next one is.
    """

    ids: Callable[[list[str]], list[list[int]]]
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    mask: int | None


def own_tokens(name: str | None, cache_dir: str | None = None, only_causal: bool = False) -> OwnTokens:
    """Those of a pretrained model's tokenizer.

    Args:
        name, cache_dir: as :func:`~exprune.lab.examples.language.pretrained.pretrained_lm` takes them.
        only_causal: refuse a model that predicts masked tokens.

    Raises:
        SettingError: it has none, or one that lacks what is needed; or it is of a masked model that is refused.
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
    """The tokenizer that lies with a pretrained model."""
    return from_hub(name, "tokenizer", AutoTokenizer.from_pretrained, cache_dir=cache_dir)


def check_causal(name: str | None, cache_dir: str | None = None) -> None:
    """Whether a pretrained model predicts the next token.

    Raises:
        SettingError: it predicts masked ones.
    """
    if is_masked_lm(name, cache_dir):
        raise SettingError(
            f"model.pretrained={name}: predicts masked tokens, and this data asks for the next one; name a causal "
            "language model, or take data=text, which serves both"
        )


class OwnTokenData(SplitData):
    """Texts as blocks of a pretrained model's tokens. It does not train.

    A block of a masked model has 15 % of its tokens masked, drawn with a fixed seed: at least one.

    Args:
        read: gives the texts from the data and the cache folder.
        tokens: how the model reads them.
        context: the most tokens of a block, what stands around them included.
        limit: keep only the first so many blocks of each part; None keeps all.
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
            raise SettingError(f"data.context={context}: at least {context - self.room + 1}")
        self.eval_batch_size, self.limit = eval_batch_size, limit
        self.blocks: dict[str, list[Block]] = {}

    def setup(self, stage: str | None = None) -> None:
        if not self.blocks:
            parts = self.read(*self.folders).parts
            self.blocks = {part: self._blocks(list(texts.values())) for part, texts in parts.items()}

    def _blocks(self, texts: list[str]) -> list[Block]:
        generator = torch.Generator().manual_seed(0)
        cut: list[Block] = []
        some = (texts[k : k + _AT_ONCE] for k in range(0, len(texts), _AT_ONCE))  # a limit needs few of them
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
        blocks: Any = sorted(examples, key=lambda block: len(block.ids))  # so that little of a batch is padding
        return DataLoader(blocks, self.eval_batch_size, collate_fn=partial(collate, pad=self.tokens.pad))
