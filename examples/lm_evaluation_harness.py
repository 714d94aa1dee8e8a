"""lm-evaluation-harness on a pruned model: HFLM calls the model inside the context. The questions are a local file."""

import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer

import exprune
import exprune.lab  # repairs torchvision, which transformers imports if it is installed

import lm_eval  # isort: skip
from lm_eval.models.huggingface import HFLM  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # isort: skip

torch.manual_seed(0)
questions = [{"goal": f"Add {k} and 1", "sol1": str(k + 1), "sol2": str(k), "label": 0} for k in range(10, 30)]
Path("questions.json").write_text("\n".join(map(json.dumps, questions)))
task = {
    "task": "additions",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.json"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{goal}}\nAnswer:",
    "doc_to_choice": "{{[sol1, sol2]}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
bpe = ByteLevelBPETokenizer()  # replace the small configuration and its tokenizer by your own model
bpe.train_from_iterator([str(q) for q in questions], vocab_size=400)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="!", pad_token="!")
shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=400)).eval()
calibration = exprune.calibrate(model, [{"input_ids": torch.randint(0, 400, (2, 64))} for _ in range(8)])
harness = HFLM(pretrained=model, tokenizer=tokenizer)  # before the context, because it ties weights
with exprune.prune(model, calibration, kl=0.001) as run:
    results = lm_eval.simple_evaluate(harness, tasks=[task], bootstrap_iters=0)
print(results["results"]["additions"], f"{run.flops.saved:.1%} of the FLOPs saved")
