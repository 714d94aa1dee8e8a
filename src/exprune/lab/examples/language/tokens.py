"""Text as batches of token blocks."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from exprune.core.errors import SettingError
from exprune.files import kept, named, write_whole

PAD, START = 1, 2  # OPT's own numbers for padding and </s>
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_FEWEST = 256 + len(_SPECIAL)  # tokens, however few are asked for: each byte is one
NO_TARGET = -100  # what cross_entropy ignores


class TokenBatch(NamedTuple):
    """Blocks of tokens, padded to one length.

    Attributes:
        input_ids: (batch, length).
        attention_mask: (batch, length), 0 where there is padding.
        targets: (batch, length), the token after each; ``NO_TARGET`` where there is none to predict.
        groups: (batch,), which text each block is from; tokens of one text depend on each other.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    groups: Tensor


def find_tokenizer(texts: Iterable[str], vocabulary: int, released: Path, cache_dir: Path) -> Tokenizer:
    """The released byte-level BPE of that size, else one trained on ``texts``, kept in the cache.

    Raises:
        SettingError: the released one is damaged.
    """

    def read(file: Path) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(file))
        if (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>")) != (PAD, START):
            raise ValueError(f"not numbers {PAD} and {START} for <pad> and </s>")
        if tokenizer.get_vocab_size() > max(vocabulary, _FEWEST):
            raise ValueError(f"{tokenizer.get_vocab_size()} tokens, not {vocabulary}")
        return tokenizer

    name = f"stdlib-bpe{vocabulary}"
    if (released / f"{name}.json").is_file():
        return named(released / f"{name}.json", read)
    texts = list(texts)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
    cached = cache_dir / "tokenizers" / f"{name}-{digest}.json"
    if (found := kept(cached, read, "it is trained anew")) is not None:
        return found
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=_SPECIAL, show_progress=False)
    write_whole(cached, lambda partial: tokenizer.save(str(partial)))
    return Tokenizer.from_file(str(cached))


@dataclass(frozen=True)
class Block:
    """Up to ``context`` tokens of a text with the one after each."""

    ids: Tensor
    targets: Tensor
    group: int


def blocks(tokens: Sequence[Tensor], context: int) -> list[Block]:
    """Every token of every text as a target once: cut into blocks that begin with what came before, or with START."""
    cut = []
    for group, ids in enumerate(tokens):
        line = torch.cat([torch.tensor([START]), ids])
        for start in range(0, len(ids), context):
            piece = line[start : start + context + 1]
            cut.append(Block(piece[:-1], piece[1:], group))
    return cut


def padded(rows: list[Tensor], value: int) -> Tensor:
    """Rows of different lengths in one matrix, filled up with ``value``."""
    return pad_sequence(rows, batch_first=True, padding_value=value)


def collate(chosen: Sequence[Block], pad: int = PAD) -> TokenBatch:
    """Blocks padded to the longest of them."""
    return TokenBatch(
        padded([block.ids for block in chosen], pad),
        padded([torch.ones_like(block.ids) for block in chosen], 0),
        padded([block.targets for block in chosen], NO_TARGET),
        torch.tensor([block.group for block in chosen]),
    )


class StreamLoader:
    """Training batches: all texts in a random order, one after the other, cut at a random place into blocks."""

    def __init__(self, tokens: Sequence[Tensor], context: int, batch_size: int, limit: int | None) -> None:
        self.tokens, self.context, self.batch_size = tokens, context, batch_size
        whole = sum(len(ids) + 1 for ids in tokens) // context - 1  # one block is lost to the random cut
        self.count = max(0, whole if limit is None else min(whole, limit))

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[TokenBatch]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        order = torch.randperm(len(self.tokens), generator=generator).tolist()
        stream = torch.cat([piece for k in order for piece in (torch.tensor([START]), self.tokens[k])])
        start = int(torch.randint(self.context, (), generator=generator))
        lines = stream[start:].unfold(0, self.context + 1, self.context)[: self.count]
        for chosen in torch.randperm(len(lines), generator=generator).split(self.batch_size):
            ids, targets = lines[chosen, :-1], lines[chosen, 1:]
            yield TokenBatch(ids, torch.ones_like(ids), targets, torch.zeros(len(ids), dtype=torch.long))


def encode(tokenizer: Tokenizer, texts: Mapping[str, str]) -> list[Tensor]:
    """The token ids of each text.

    Raises:
        SettingError: a text has no token.
    """
    encoded = tokenizer.encode_batch(list(texts.values()))
    for name, one in zip(texts, encoded, strict=True):
        if not one.ids:
            raise SettingError(f"{name}: an empty text has no token to predict")
    return [torch.tensor(one.ids) for one in encoded]
