"""OPT as transformers provides it: accounting, padding, the embedded text, PIQA's format, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from exprune.core import ExPrune, Heuristic, SettingError, StatsTest, Threshold, find_sites
from exprune.lab.examples.language import choices
from exprune.lab.examples.language.choice_task import ChoiceTask
from exprune.lab.examples.language.choices import ChoiceData, Question, read_piqa
from exprune.lab.examples.language.opt import (
    fc1_flops,
    opt_flops,
    pretrained_encoding,
    pretrained_opt,
    small_opt,
    zeros_of_fc2,
)
from exprune.lab.examples.language.stdlib import part_of, read_stdlib, without_duplicates
from exprune.lab.examples.language.text import continuations
from exprune.lab.examples.language.tokens import (
    NO_TARGET,
    PAD,
    START,
    StreamLoader,
    blocks,
    collate,
    encode,
    find_tokenizer,
)
from exprune.lab.tasks.intervals import paired_bootstrap, weighted_accuracy
from tests.cli import CommandLine

TINY = ("data.limit=8", "model.epochs=1", "bootstrap=20", "trainer=cpu", "logger=none", "model.network.hidden=64")
OPT_1_3B = {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "word_embed_proj_dim": 2048}


def tiny_opt(**changes: object) -> OPTForCausalLM:
    torch.manual_seed(0)
    network = small_opt(
        **{"vocabulary": 40, "hidden": 32, "layers": 2, "heads": 2, "positions": 20, "dropout": 0.1, **changes}
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return network.eval()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**OPT_1_3B, "num_attention_heads": 32}, 173_469_204_480),
        ({"hidden_size": 64, "ffn_dim": 100, "num_hidden_layers": 3, "num_attention_heads": 4}, None),
        ({"hidden_size": 64, "word_embed_proj_dim": 32, "num_attention_heads": 4, "num_hidden_layers": 2}, None),
    ],
)
def test_flops_are_those_of_the_matrix_products(config: dict, expected: int | None) -> None:
    """On the meta device, where PyTorch's own counter sees attention."""
    config = OPTConfig(**config)
    with torch.device("meta"):
        network = OPTForCausalLM._from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.ones(2, 33, dtype=torch.long, device="meta"))
    assert opt_flops(config, [33, 33]) == counter.get_total_flops()
    assert expected is None or opt_flops(config, [33, 33]) == expected


def _data_dir() -> Path:
    folder = Path(os.environ.get("EXPRUNE_DATA_DIR", "nowhere"))
    if not (folder / "piqa" / "valid.jsonl").is_file() or not (folder / "gpt2_bpe" / "merges.txt").is_file():
        pytest.skip("set EXPRUNE_DATA_DIR to a folder with piqa/ and gpt2_bpe/")
    return folder


def test_published_flops_of_opt_1_3b_on_piqa() -> None:
    """The published figure is fc1 alone, for both choices, with a start token each."""
    folder = _data_dir()
    questions = read_piqa(folder, folder)
    tokenizer = ByteLevelBPETokenizer(str(folder / "gpt2_bpe" / "vocab.json"), str(folder / "gpt2_bpe" / "merges.txt"))
    encoded = tokenizer.encode_batch([text for question in questions for text in question.texts])
    lengths = [len(one.ids) + 1 for one in encoded]
    config = OPTConfig(**OPT_1_3B, num_attention_heads=32)
    assert len(questions) == 1838
    assert round(fc1_flops(config, lengths) / 1838, 3) == 54_107_124_046.276
    assert fc1_flops(config, lengths) / opt_flops(config, lengths) == pytest.approx(0.306, abs=0.001)


def padded_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 40, (length,), generator=torch.Generator().manual_seed(row))
        mask[row, :length] = 1
    return ids, mask


@pytest.mark.parametrize("heuristic", [Threshold(-0.02, n=8), StatsTest(0.3, n=8)], ids=["threshold", "stats"])
def test_a_padded_batch_is_each_sequence_alone(heuristic: Heuristic) -> None:
    """Checked token by token in float64, and count by count."""
    network = tiny_opt().double()
    ids, mask = padded_batch([9, 4, 14])
    sites = find_sites(network, ids, mask)
    assert [s.name for s in sites if s.eligible] == [f"model.decoder.layers.{k}.fc1" for k in range(2)]
    together = ExPrune(sites, heuristic, rows=mask.bool())
    with torch.inference_mode(), together:
        out = network(ids, mask).logits
    alone = ExPrune(sites, heuristic)
    for row, length in enumerate([9, 4, 14]):
        with torch.inference_mode(), alone:
            single = network(ids[row : row + 1, :length], mask[row : row + 1, :length]).logits
        torch.testing.assert_close(out[row, :length], single[0], rtol=1e-9, atol=1e-9)
    for one, other in zip(together.flops.sites, alone.flops.sites, strict=True):
        assert one.outputs == other.outputs == 27 * 128
        assert one.stopped == other.stopped and 0 < one.pruned < one.outputs
        assert (int(one.negative), int(one.wrong)) == (int(other.negative), int(other.wrong))


def test_zeros_that_fc2_reads() -> None:
    network = tiny_opt()
    ids, mask = padded_batch([9, 4])
    seen = []
    hooks = [
        layer.fc2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for layer in network.model.decoder.layers
    ]
    with torch.inference_mode(), zeros_of_fc2(network, mask.bool()) as counts:
        network(ids, mask)
    for hook in hooks:
        hook.remove()
    expected = sum(int((x.view(2, 9, -1)[row, :length] == 0).sum()) for x in seen for row, length in enumerate([9, 4]))
    assert int(sum(counts)) == 2 * 32 * expected
    assert not any(layer.fc2._forward_pre_hooks for layer in network.model.decoder.layers)


def test_files_stay_on_their_side() -> None:
    """A file's part follows from its name alone; these facts must hold in every version."""
    known = {"ast.py": "train", "typing.py": "train", "asyncio/tasks.py": "valid", "enum.py": "test"}
    assert {name: part_of(name) for name in known} == known
    corpus = read_stdlib(Path("unused"), Path("unused"))
    assert "Python" in corpus.source
    names = {part: set(texts) for part, texts in corpus.parts.items()}
    assert all(part_of(name) == part for part in names for name in names[part])
    assert len(names["train"]) > 5 * len(names["test"]) > 5 * len(names["valid"]) > 0


def test_near_duplicates_are_left_out() -> None:
    lines = [f"this is line number {k} of a text" for k in range(40)]
    other = "\n".join(lines)
    texts = {
        "copy": "\n".join(["# another head", *lines]),
        "most": "\n".join([*lines[:25], *(f"something else altogether {k}" for k in range(15))]),
        "some": "\n".join([*lines[:15], *(f"something else altogether {k}" for k in range(25))]),
        "short lines": "\n".join("x" * 5 for _ in range(50)),
    }
    assert list(without_duplicates(texts, ["unrelated", other])) == ["some", "short lines"]


def test_every_token_is_predicted_once() -> None:
    texts = [torch.arange(5, 17), torch.arange(20, 24)]
    cut = blocks(texts, context=5)
    assert torch.cat([block.targets for block in cut]).tolist() == torch.cat(texts).tolist()
    assert [block.group for block in cut] == [0, 0, 0, 1]
    assert cut[0].ids[0] == cut[3].ids[0] == START
    assert cut[1].ids[0] == cut[0].targets[-1]
    batch = collate(cut)
    assert batch.input_ids.shape == (4, 5) and batch.attention_mask.sum() == 16
    assert ((batch.targets == NO_TARGET) == (batch.attention_mask == 0)).all()
    assert (batch.input_ids[batch.attention_mask == 0] == PAD).all()


def test_training_blocks_follow_the_text() -> None:
    torch.manual_seed(0)
    loader = StreamLoader([torch.arange(100, 160), torch.arange(200, 260)], 7, 4, None)
    batches = [list(loader), list(loader)]
    for epoch in batches:
        assert len(epoch) == len(loader)
        for batch in epoch:
            assert torch.equal(batch.input_ids[:, 1:], batch.targets[:, :-1])
    assert not torch.equal(batches[0][0].input_ids, batches[1][0].input_ids)


def test_tokenizer_is_trained_once_or_released(tmp_path: Path) -> None:
    texts = ["def add(a, b):\n    return a + b\n" * 30, "class Thing:\n    pass\n" * 30]
    first = find_tokenizer(texts, 300, tmp_path / "released", tmp_path / "cache")
    assert first.token_to_id("<pad>") == PAD and first.token_to_id("</s>") == START
    assert first.decode(first.encode(texts[0]).ids) == texts[0]
    (file,) = (tmp_path / "cache" / "tokenizers").iterdir()
    (tmp_path / "released").mkdir()
    file.rename(tmp_path / "released" / "stdlib-bpe300.json")
    again = find_tokenizer(["other text"], 300, tmp_path / "released", tmp_path / "cache")
    assert again.to_str() == first.to_str()
    with pytest.raises(SettingError, match=r"empty\.py: an empty text"):
        encode(first, {"empty.py": ""})


def test_intervals_resample_whole_texts() -> None:
    """Compared with the textbook method: draw texts, concatenate their tokens, compute the accuracy."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), rng.integers(1, 30, 12))
    targets = np.zeros(len(groups), int)
    dense = (rng.random(len(groups)) < 0.2 + 0.05 * groups).astype(int)
    pruned = (rng.random(len(groups)) < 0.2 + 0.05 * groups).astype(int)
    found = paired_bootstrap(weighted_accuracy, dense, pruned, targets, 4000, 0, groups)
    drops = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(12, size=12)])
        drops.append((dense[drawn] == 0).mean() - (pruned[drawn] == 0).mean())
    assert found.drop == pytest.approx(np.percentile(drops, [2.5, 97.5]), abs=0.01)
    single = paired_bootstrap(weighted_accuracy, dense, pruned, targets, 4000, 0)
    assert single.dense[1] - single.dense[0] < found.dense[1] - found.dense[0]  # tokens of a text are alike


def test_evaluate_the_embedded_opt(command: CommandLine) -> None:
    outcome = command("evaluate.py", "model=opt", "exprune.tau=0.3", *TINY)
    assert outcome.code == 0, outcome.err
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert (result["data"], result["flops"]["unit"], result["metric"]["name"]) == (
        "stdlib",
        "token",
        "next_token_accuracy",
    )
    assert set(result["metrics"]["perplexity"]) == {"dense", "pruned"}
    sites = [row for row in result["sites"] if row["eligible"]]
    assert [row["name"].rpartition(".")[2] for row in sites] == ["fc1"] * 4
    assert result["flops"]["paper_scope"]["dense"] == 2 * 64 * 256 * 4
    saved = result["flops"]["dense"] - result["flops"]["pruned"]
    scope = result["flops"]["paper_scope"]
    assert scope["dense"] - scope["pruned"] == pytest.approx(saved)
    assert abs(scope["saved"]) > abs(result["flops"]["saved"])
    assert 0 < result["flops"]["zero_skipping"]["dense"] < 2 * 64 * 256 * 4


def test_evaluate_choices_with_the_weights_of_the_text(command: CommandLine) -> None:
    trained = command(
        "train.py",
        "model=opt",
        "data.limit=8",
        "model.epochs=1",
        "logger=none",
        "trainer=cpu",
        "checkpoint=opt.safetensors",
    )
    assert trained.code == 0, trained.err
    outcome = command(
        "evaluate.py",
        "model=opt",
        "data=stdlib_choices",
        "checkpoint=opt.safetensors",
        "exprune.tau=0.3",
        "data.limit=10",
        "bootstrap=20",
        "logger=none",
        "trainer=cpu",
    )
    assert outcome.code == 0, outcome.err
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert (result["inputs"], result["flops"]["unit"]) == (10, "example")
    refused = command(
        "evaluate.py", "model=opt", "data=stdlib_choices", "seed=77", "data.limit=10", "logger=none", "trainer=cpu"
    )
    assert refused.code == 1 and "train with data=stdlib" in refused.err


def test_continuations_are_from_held_out_texts() -> None:
    corpus = read_stdlib(Path("unused"), Path("unused"))
    questions = continuations(lambda *_: corpus)(Path("unused"), Path("unused"))
    assert len(questions) > 100 and 0.4 < sum(q.answer for q in questions) / len(questions) < 0.6
    held_out = ["\n".join(line for line in text.splitlines() if line.strip()) for text in corpus.parts["test"].values()]
    for question in questions[::25]:
        assert question.texts[0].splitlines()[:8] == question.texts[1].splitlines()[:8]
        assert any(question.texts[question.answer] in text for text in held_out)
    assert questions == continuations(lambda *_: corpus)(Path("unused"), Path("unused"))


def test_choice_is_the_text_with_the_lower_mean_loss() -> None:
    """Compared with one sequence at a time; the longest questions come first, the results in the split's order."""
    network = tiny_opt()
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 40, (length,), generator=generator) for length in (4, 7, 12, 3, 6, 6)]
    questions = [Question((f"a{k}", f"b{k}"), k % 2) for k in range(3)]
    data = ChoiceData(lambda *_: questions, lambda texts: ids[: len(texts)], "unused", "unused", 2)
    data.setup()
    found = {}
    for batch in data.test_dataloader():
        with torch.inference_mode():
            out = ChoiceTask(network).predict_step(batch, 0)
        found.update(
            zip(
                out["index"].tolist(), zip(out["prediction"].tolist(), out["target"].tolist(), strict=True), strict=True
            )
        )
    assert list(found) == [1, 0, 2]
    for k in range(3):
        losses = []
        for text in ids[2 * k : 2 * k + 2]:
            line = torch.cat([torch.tensor([START]), text])[None]
            with torch.inference_mode():
                logits = network(line).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, text).item())
        assert found[k] == (int(losses[1] < losses[0]), k % 2)


def test_the_papers_experiment_on_a_folder_of_weights(command: CommandLine, tmp_path: Path) -> None:
    """As with OPT-1.3B, except for the size: weights and tokenizer in a folder, PIQA in the data directory."""
    folder, data = tmp_path / "opt", tmp_path / "data"
    texts = [f"bake the bread {k}" for k in range(6)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<pad>").save_pretrained(folder)
    tiny_opt(vocabulary=tokenizer.get_vocab_size(), hidden=64, positions=64).save_pretrained(folder)
    (data / "piqa").mkdir(parents=True)
    rows = [json.dumps({"goal": text, "sol1": "slowly ", "sol2": "in a big oven"}) for text in texts]
    (data / "piqa" / "valid.jsonl").write_text("\n".join(rows))
    (data / "piqa" / "valid-labels.lst").write_text("\n".join("010110"))

    settings = ("experiment=paper/opt_piqa", f"model.pretrained={folder}", f"paths.data_dir={data}", "logger=none")
    outcome = command("evaluate.py", *settings, "exprune.tau=0.3", "bootstrap=20", "trainer=cpu")
    assert outcome.code == 0, outcome.err
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert (result["data"], result["inputs"], result["flops"]["unit"]) == ("piqa", 6, "example")
    both = [f"{text}\n{end}" for text in texts for end in ("slowly", "in a big oven")]
    tokens = sum(1 + len(tokenizer.encode(text).ids) for text in both)
    assert result["flops"]["paper_scope"]["dense"] == pytest.approx(2 * 64 * 256 * 2 * tokens / 6)


# What is refused.


def test_piqa_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nmany more lines")

    monkeypatch.setattr(choices, "hf_hub_download", unreachable)
    with pytest.raises(SettingError) as raised:
        read_piqa(tmp_path, tmp_path)
    message = str(raised.value)
    assert str(tmp_path / "piqa") in message and "Hugging Face hub" in message and "\n" not in message
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "valid.jsonl").write_text('{"goal": "g", "sol1": "a", "sol2": "b"}\n')
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(SettingError, match="not PIQA's validation split"):
        read_piqa(tmp_path, tmp_path)


def test_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (
        lambda: pretrained_opt(str(tmp_path / "nowhere"), "float32"),
        lambda: pretrained_encoding(str(tmp_path)),
    ):
        with pytest.raises(SettingError) as raised:
            load()
        message = str(raised.value)
        assert str(tmp_path) in message and "local folder" in message and "hub" in message and "\n" not in message


def test_pretrained_from_a_folder(tmp_path: Path) -> None:
    network = tiny_opt()
    network.save_pretrained(tmp_path)
    loaded = pretrained_opt(str(tmp_path), "bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.model.decoder.layers[0].fc1.weight, network.model.decoder.layers[0].fc1.weight.bfloat16())
    with pytest.raises(SettingError, match=r"dtype=int8: must be float32 or bfloat16"):
        pretrained_opt(str(tmp_path), "int8")


def test_another_activation_is_named(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(SettingError, match="activation is gelu_new"):
        pretrained_opt(str(tmp_path / "gpt2"), "float32")
    OPTConfig(activation_function="gelu").save_pretrained(tmp_path / "opt")
    with pytest.raises(SettingError, match="activation is gelu"):
        pretrained_opt(str(tmp_path / "opt"), "float32")


def test_sequences_that_do_not_fit() -> None:
    task = ChoiceTask(tiny_opt())
    with pytest.raises(SettingError, match="a sequence of 21 tokens; the model has 20 positions"):
        task.network_inputs(choices.collate([(0, [torch.full((20,), 5), torch.full((3,), 5)], 0)]))
    with pytest.raises(SettingError, match="token 40, but the model knows 40"):
        task.network_inputs(choices.collate([(0, [torch.full((3,), 40), torch.full((3,), 5)], 0)]))
    data = ChoiceData(lambda *_: [Question(("a", ""), 0)], lambda _: [torch.ones(1), torch.ones(0)], "u", "u", 2)
    with pytest.raises(SettingError, match="question 1: an empty text"):
        data.setup()
    with pytest.raises(SettingError, match="hidden=30"):
        small_opt(40, 30, 2, 4, 20, 0.1)


def test_the_divergence_of_a_language_model_is_measured_and_kept_within_a_target(command: CommandLine) -> None:
    run = command("evaluate.py", "model=opt", *TINY, "exprune=optimal", "exprune.target_kl=0.02",
                  "exprune.inputs=24")  # fmt: skip
    assert run.code == 0, run.err
    (folder,) = run.runs()
    result = json.loads((folder / "result.json").read_text())
    of = result["divergence"]
    assert 0 <= of["median"] <= of["most"] <= of["largest"] and of["low"] <= of["mean"] <= of["high"]
    assert 0 < result["target"]["valid_kl"] <= 0.02 and of["examples"] == result["inputs"]
    assert "KL(dense || pruned)" in run.out and "the same most likely token" in run.out
    other = command("evaluate.py", "model=gnn", *TINY[:-1], "data.limit=64", "exprune=optimal",
                    "exprune.target_kl=0.02", "exprune.inputs=24")  # fmt: skip
    assert other.code == 1 and "measures no divergence" in other.err
