"""Pretrained language models of transformers: read from a folder, with their own tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from exprune.core.errors import SettingError
from exprune.lab.examples.language.llama import small_llama
from exprune.lab.examples.language.own_tokens import OwnTokenData, OwnTokens, own_tokens
from exprune.lab.examples.language.pretrained import arguments, measured_flops, pretrained_lm
from exprune.lab.examples.language.task import TokenTask
from exprune.lab.examples.language.tokens import NO_TARGET
from exprune.lab.examples.molecules.smiles import read_nci
from exprune.lab.examples.molecules.texts import molecule_texts, smiles_tokens
from tests.cli import ROOT, CommandLine

GPT2 = GPT2Config(
    vocab_size=4096, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=2, pad_token_id=1
)
BERT = BertConfig(
    vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=1
)
LLAMA = LlamaConfig(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
ALBERT = AlbertConfig(
    vocab_size=99, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
)


def folder_of(model: PreTrainedModel, folder: Path, mask: str | None = None) -> Path:
    """Return a folder with the model and the released tokenizer, as transformers saves them."""
    model.save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(ROOT / "checkpoints" / "stdlib-bpe4096.json"))
    marks = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    marks |= {"mask_token": mask, "cls_token": "<s>", "sep_token": "</s>"} if mask else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "mask", "metric"),
    [
        (lambda: GPT2LMHeadModel(GPT2), None, "next_token_accuracy"),
        (lambda: BertForMaskedLM(BERT), "<unk>", "masked_token_accuracy"),
    ],
)
def test_evaluate_a_model_from_a_folder(
    make: Callable[[], PreTrainedModel], mask: str | None, metric: str, command: CommandLine, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = folder_of(make(), tmp_path / "model", mask)
    done = command(
        "evaluate.py",
        *("model=hf", f"model.pretrained={folder}", "data.limit=24", "data.context=32", "bootstrap=50", "logger=none"),
        *(
            "exprune=optimal",
            "exprune.lam=1e-9",
            "exprune.order=input",
            "exprune.predict=true",
            "exprune.stages=[8,16]",
        ),
        *("exprune.inputs=24", "trainer=cpu"),
    )
    assert (done.code, done.err.count("Traceback")) == (0, 0)
    result = json.loads((done.runs()[0] / "result.json").read_text())
    assert result["metric"]["name"] == metric
    assert result["checkpoint"] == str(folder)
    sites = {row["name"]: row for row in result["sites"] if row["flops"]}
    assert len(sites) == 2 + (mask is not None)  # BERT's head has a GELU, too
    assert all("elu" in row["activation"].lower() for row in sites.values())
    assert all(row["flops"]["dense"] > 0 for row in sites.values())
    assert "more layers feed no activation" in done.out


def test_every_job_of_a_sweep_counts_by_length_outside_of_its_pass(command: CommandLine, tmp_path: Path) -> None:
    """Only the first job runs a dense pass, before its pruned one."""
    torch.manual_seed(0)
    folder = folder_of(
        LlamaForCausalLM(LlamaConfig(**{**LLAMA.to_diff_dict(), "vocab_size": 4096})), tmp_path / "model"
    )
    done = command(
        *("evaluate.py", "-m", "model=hf", f"model.pretrained={folder}", "data.limit=12", "data.context=32"),
        *("bootstrap=50", "logger=none", "trainer=cpu", "exprune.inputs=24"),
        *("exprune=optimal", "exprune.lam=1e-9,1e-8,1e-9", "exprune.stages=[8,16]"),
    )
    assert done.code == 0, done.err
    first, second, again = (json.loads((run / "result.json").read_text())["flops"] for run in done.runs())
    assert first["dense"] == second["dense"] and first["pruned"] > second["pruned"]
    assert first == again


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPT2LMHeadModel(GPT2),
        lambda: BertForMaskedLM(BERT),
        lambda: LlamaForCausalLM(LLAMA),
        lambda: AlbertForMaskedLM(ALBERT),
    ],
)
def test_flops_are_those_that_are_counted_at_any_length(make: Callable[[], PreTrainedModel]) -> None:
    network = make().eval()
    for length in (1, 7, 40):
        ids = torch.full((1, length), 5)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert measured_flops(network).total([length, length]) == 2 * counter.get_total_flops()


def test_arguments_stand_in_the_places_of_their_names() -> None:
    class Model(torch.nn.Module):
        def forward(self, input_ids: int, past: None = None, attention_mask: int = 0, more: int = 3) -> None: ...

    assert arguments(Model(), input_ids=1, attention_mask=2) == (1, None, 2)
    assert arguments(torch.nn.Sequential(), input_ids=1, attention_mask=2) == (1, 2)  # forward(input)


def masked(limit: int | None = None, context: int = 32) -> OwnTokenData:
    tokens = OwnTokens(lambda texts: [[10 + ord(c) % 50 for c in text] for text in texts], (2,), (3,), 0, 4)
    data = OwnTokenData(molecule_texts(read_nci), tokens, ".", ".", context, 16, limit)
    data.setup()
    return data


def test_a_share_of_every_block_is_masked() -> None:
    for blocks in masked(50).blocks.values():
        assert len(blocks) == 50
        for block in blocks:
            hidden = block.targets != NO_TARGET
            inside = len(block.ids) - 2
            assert int(hidden.sum()) == max(1, round(0.15 * inside))
            assert bool((block.ids[hidden] == 4).all())
            assert bool((block.ids[~hidden] != 4).all())
            assert (int(block.ids[0]), int(block.ids[-1])) == (2, 3)
            assert not hidden[0] and not hidden[-1]
            assert len(block.ids) <= 32
    assert [block.ids.tolist() for block in masked(50).blocks["test"]] == [
        block.ids.tolist() for block in masked(50).blocks["test"]
    ]


def test_molecules_are_on_one_side_each() -> None:
    parts = molecule_texts(read_nci)(Path(), Path()).parts
    names = [set(part) for part in parts.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 4991
    assert len(parts["valid"]) == len(parts["test"]) == 499


def test_tokens_of_molecules(tmp_path: Path) -> None:
    listed = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "C",
        "Cl",
        "Br",
        "[nH]",
        "c",
        "1",
        "%12",
        "=",
        "O",
        "(",
        ")",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(listed))
    tokens = smiles_tokens(str(tmp_path))
    ids = tokens.ids(["CC(=O)Cl", "c1[nH]%12Br", "N"])
    assert [[listed[k] for k in one] for one in ids] == [
        ["C", "C", "(", "=", "O", ")", "Cl"],
        ["c", "1", "[nH]", "%12", "Br"],
        ["[UNK]"],
    ]
    assert (tokens.before, tokens.after, tokens.pad, tokens.mask) == ((2,), (3,), 0, 4)
    (tmp_path / "vocab.txt").write_text("C\nO")
    with pytest.raises(SettingError, match=r"vocab.txt: no token \[PAD\]"):
        smiles_tokens(str(tmp_path))


def test_a_llama_is_trained_and_pruned_as_an_opt_is() -> None:
    network = small_llama(300, 32, 1, 4, 48, 32, "silu").eval()
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert TokenTask(network).metric_name == "next_token_accuracy"
    with pytest.raises(SettingError, match=r"model.network.activation=nothing: one of transformers', gelu,"):
        small_llama(300, 32, 1, 4, 48, 32, "nothing")


def test_wrong_settings_are_one_line(command: CommandLine, tmp_path: Path) -> None:
    vit = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    for settings, said in (
        (["model=hf"], "model.pretrained=null: a name on the Hugging Face hub, or a folder"),
        (["model=hf", "model.pretrained=package:no_such_package/x"], "pip install --no-deps no_such_package"),
        (["model=hf", f"model.pretrained={tmp_path / 'vit'}"], "no tokenizer"),
        (["experiment=real/rxnmapper", "model.pretrained=package:torch"], "no vocab.txt"),
    ):
        done = command("evaluate.py", *settings, "logger=none")
        assert done.code == 1
        assert said in done.err, done.err
        assert "Traceback" not in done.err
    with pytest.raises(SettingError, match=r"a vit .ViTForImageClassification., neither a causal nor a masked"):
        pretrained_lm(str(tmp_path / "vit"), "float32")
    with pytest.raises(SettingError, match=r"model.network.dtype=int8: must be float32 or bfloat16"):
        pretrained_lm(str(tmp_path / "vit"), "int8")
    with pytest.raises(SettingError, match="has no token that masks"):
        own_tokens(str(folder_of(BertForMaskedLM(BERT), tmp_path / "bert")))
    with pytest.raises(SettingError, match=r"data.context=2: must be at least 3"):
        masked(context=2)
