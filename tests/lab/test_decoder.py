"""Our own loop gives what transformers' OPT gives, for all its shapes, and leaves the network unchanged."""

from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from exprune.core import SettingError
from exprune.files import save_tensors
from exprune.lab.decoding.loop import Decoder

SHAPES = [{}, {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, {"enable_bias": False}]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_the_logits_of_transformers(shape: dict, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(**{**sizes, **shape}, num_attention_heads=4, max_position_embeddings=40)
    network = OPTForCausalLM(config).to(dtype).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ids = torch.randint(3, 60, (30,))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    with torch.inference_mode():
        want = network(ids[None]).logits[0]
    decoder = Decoder(network)
    for cuts in ([1] * 30, [12] + [1] * 18, [12, 18]):
        decoder.reset()
        after = [decoder(piece) for piece in ids.split(cuts)]
        at = torch.tensor(cuts).cumsum(0) - 1
        torch.testing.assert_close(torch.stack(after), want[at], atol=tolerance, rtol=tolerance)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    save_tensors(tmp_path / "saved.safetensors", dict(network.named_parameters()), {})  # as any network
    network(ids[None]).logits.sum().backward()


def test_says_what_it_cannot_read() -> None:
    network = OPTForCausalLM(OPTConfig(hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1,
                                       vocab_size=20, word_embed_proj_dim=8, max_position_embeddings=5))  # fmt: skip
    decoder = Decoder(network.eval())
    decoder(torch.tensor([3, 4, 5]))
    with pytest.raises(SettingError, match="a sequence of 6 tokens; the model has 5 positions"):
        decoder(torch.tensor([3, 4, 5]))
    with pytest.raises(SettingError, match="does not know a Linear"):
        Decoder(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
