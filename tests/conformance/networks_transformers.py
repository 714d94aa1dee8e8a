"""Architectures of transformers, built from small configurations with random weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from tests.conformance.network import Network

Builder = Callable[[], tuple[nn.Module, tuple, dict[str, Any]]]

LAYERS, HIDDEN, WIDE, TOKENS, LENGTH = 2, 16, 24, 40, 6

# The same sizes under the names that configurations use; each configuration takes those that it knows.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim", "d_inner", "dff"), WIDE),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), WIDE),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 32),
    "vocab_size": TOKENS,
    "d_kv": 8,
    "use_cache": False,
}


def configured(name: str, model: str, **settings: Any) -> nn.Module:
    """The model of a small configuration; ``settings`` override the usual sizes."""
    make = getattr(transformers, f"{name}Config")
    known = make().to_dict()
    sizes = {size: value for size, value in SIZES.items() if size in known}
    return getattr(transformers, f"{name}{model}")(make(**(sizes | settings)))


def _ids() -> torch.Tensor:
    return torch.randint(3, TOKENS, (2, LENGTH))


def text(name: str, model: str = "Model", **settings: Any) -> Builder:
    """A function that builds a network that reads tokens."""
    return lambda: (configured(name, model, **settings), (_ids(),), {})


def translation(name: str, model: str = "Model", **settings: Any) -> Builder:
    """A function that builds a network that reads tokens and generates others."""

    def build() -> tuple[nn.Module, tuple, dict[str, Any]]:
        return configured(name, model, **settings), (), {"input_ids": _ids(), "decoder_input_ids": _ids()}

    return build


def pictures(name: str, model: str = "Model", size: int = 32, **settings: Any) -> Builder:
    """A function that builds a network that reads images."""
    return lambda: (configured(name, model, **settings), (torch.randn(2, 3, size, size),), {})


def sound(name: str, model: str = "Model", **settings: Any) -> Builder:
    """A function that builds a network that reads a waveform."""
    return lambda: (configured(name, model, **settings), (torch.randn(2, 400),), {})


def spectrum(name: str, **settings: Any) -> Builder:
    """A function that builds a network that reads a spectrogram and generates tokens."""

    def build() -> tuple[nn.Module, tuple, dict[str, Any]]:
        model = configured(name, "Model", **settings)
        features = torch.randn(2, 32, 8) if name == "Speech2Text" else torch.randn(2, 8, 32)
        return model, (features,), {"decoder_input_ids": _ids()}

    return build


def _clip() -> tuple[nn.Module, tuple, dict[str, Any]]:
    part = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    words = {**part, "vocab_size": TOKENS, "max_position_embeddings": 32, "hidden_act": "relu", "eos_token_id": 2}
    sight = {**part, "image_size": 16, "patch_size": 8, "hidden_act": "relu"}
    config = transformers.CLIPConfig(text_config=words, vision_config=sight, projection_dim=8)
    return transformers.CLIPModel(config), (), {"input_ids": _ids(), "pixel_values": torch.randn(2, 3, 16, 16)}


def _video() -> tuple[nn.Module, tuple, dict[str, Any]]:
    model = configured("VideoMAE", "Model", hidden_act="relu", image_size=32, num_frames=4)
    return model, (torch.randn(2, 4, 3, 32, 32),), {}


def detection(name: str, out_features: list[str] | None = None, **settings: Any) -> Builder:
    """A function that builds a detector whose backbone is a small ResNet of transformers."""

    def build() -> tuple[nn.Module, tuple, dict[str, Any]]:
        stages = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
        backbone = transformers.ResNetConfig(**stages, out_features=out_features or ["stage4"])
        model = configured(name, "ForObjectDetection", backbone_config=backbone, num_queries=5, **settings)
        return model, (torch.randn(2, 3, 64, 64),), {}

    return build


_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

# Sequence models: a feed-forward network with a ReLU in each layer.
_ENCODER = LAYERS
_DECODER = LAYERS
_BOTH = LAYERS + LAYERS
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 12, 12, 16], "depths": [2, 2, 1, 1]}

NETWORKS: dict[str, Network] = {
    "OPT": Network(text("OPT", "ForCausalLM"), _DECODER, fast=True),
    "OPT, norm after": Network(text("OPT", "ForCausalLM", do_layer_norm_before=False), _DECODER, fast=True),
    "OPT, projected": Network(
        text("OPT", "ForCausalLM", do_layer_norm_before=False, word_embed_proj_dim=8), _DECODER, fast=True
    ),
    "GPT-2": Network(text("GPT2", "LMHeadModel", activation_function="relu"), _DECODER, fast=True),
    "GPT": Network(text("OpenAIGPT", "Model", afn="relu"), _DECODER),
    "GPT-J": Network(text("GPTJ", activation_function="relu", rotary_dim=4), _DECODER),
    "GPT-Neo": Network(
        text("GPTNeo", activation_function="relu", attention_types=[[["global", "local"], 1]]), _DECODER
    ),
    "GPT-NeoX": Network(text("GPTNeoX", hidden_act="relu"), _DECODER),
    "CTRL": Network(text("CTRL"), _DECODER),
    "XGLM": Network(text("XGLM", activation_function="relu"), _DECODER),
    "BioGPT": Network(text("BioGpt", hidden_act="relu"), _DECODER),
    "Nemotron": Network(text("Nemotron"), _DECODER, fast=True),  # relu2
    "Persimmon": Network(text("Persimmon"), _DECODER),  # relu2
    "Arcee": Network(text("Arcee"), _DECODER),  # relu2
    "Phi": Network(text("Phi", hidden_act="relu"), _DECODER),
    "RWKV": Network(text("Rwkv", attention_hidden_size=HIDDEN), _DECODER),  # squared
    "Llama": Network(text("Llama", hidden_act="relu"), _DECODER, fast=True),  # the gate
    "T5": Network(translation("T5"), _BOTH, fast=True),
    "T5, gated": Network(translation("T5", feed_forward_proj="gated-relu"), _BOTH),  # the gate
    "LongT5": Network(translation("LongT5", feed_forward_proj="relu"), _BOTH),
    "UMT5": Network(translation("UMT5", feed_forward_proj="relu"), _BOTH),
    # Sparse and dense layers alternate: one of either, with two experts.
    "Switch Transformers": Network(
        translation(
            "SwitchTransformers",
            num_experts=2,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            expert_capacity=64,
        ),
        2 * (1 + 2),
        fast=True,
    ),
    "NLLB-MoE": Network(
        translation("NllbMoe", num_experts=2, encoder_sparse_step=2, decoder_sparse_step=2, expert_capacity=64),
        2 * (1 + 2),
        fast=True,
    ),
    "BigBird-Pegasus": Network(
        translation("BigBirdPegasus", activation_function="relu", attention_type="original_full"), _BOTH
    ),
    "LED": Network(
        translation("LED", activation_function="relu", attention_window=4, max_encoder_position_embeddings=32), _BOTH
    ),
    "M2M-100": Network(translation("M2M100"), _BOTH),
    "BART": Network(translation("Bart", activation_function="relu"), _BOTH, fast=True),
    "mBART": Network(translation("MBart", activation_function="relu"), _BOTH),
    "PLBART": Network(translation("PLBart", activation_function="relu"), _BOTH),
    "Marian": Network(
        translation("Marian", activation_function="relu", pad_token_id=1, decoder_vocab_size=TOKENS), _BOTH
    ),
    "Pegasus": Network(translation("Pegasus", activation_function="relu"), _BOTH),
    "Blenderbot": Network(translation("Blenderbot", activation_function="relu"), _BOTH),
    "ProphetNet": Network(
        translation(
            "ProphetNet",
            activation_function="relu",
            num_encoder_layers=LAYERS,
            num_encoder_attention_heads=2,
            num_decoder_attention_heads=2,
        ),
        _BOTH,
    ),
    "BERT": Network(text("Bert", hidden_act="relu"), _ENCODER, fast=True),
    "RoBERTa": Network(text("Roberta", hidden_act="relu"), _ENCODER),
    "ALBERT": Network(text("Albert", hidden_act="relu"), 1, fast=True),  # one layer, called twice
    "DistilBERT": Network(text("DistilBert", activation="relu"), _ENCODER),
    "ELECTRA": Network(text("Electra", hidden_act="relu"), _ENCODER),
    "DeBERTa v2": Network(text("DebertaV2", hidden_act="relu"), _ENCODER),
    "FNet": Network(text("FNet", hidden_act="relu"), _ENCODER, uncounted={"aten._fft_c2c": 2}),
    "XLNet": Network(text("XLNet", ff_activation="relu"), _ENCODER),
    "Funnel": Network(text("Funnel", hidden_act="relu", block_sizes=[1, 1], d_head=8, num_decoder_layers=1), 2 + 1),
    # Four feed-forward networks a layer.
    "MobileBERT": Network(text("MobileBert", intra_bottleneck_size=8, true_hidden_size=8), LAYERS * 4),
    "SqueezeBERT": Network(
        text("SqueezeBert", hidden_act="relu", q_groups=2, k_groups=2, v_groups=2, intermediate_groups=1), _ENCODER
    ),
    "ViT": Network(pictures("ViT", hidden_act="relu", image_size=32), _ENCODER, fast=True),
    "DeiT": Network(pictures("DeiT", hidden_act="relu", image_size=32), _ENCODER),
    "Swin": Network(
        pictures(
            "Swin",
            hidden_act="relu",
            image_size=32,
            embed_dim=HIDDEN,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            encoder_stride=8,
        ),
        2,
    ),
    # A 1x1 convolution follows the depthwise one with the ReLU; the sites are the convolutions with a ReLU of their
    # own.
    "SegFormer": Network(
        pictures(
            "Segformer",
            "ForSemanticSegmentation",
            hidden_act="relu",
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 16, 16],
            decoder_hidden_size=12,
            num_attention_heads=[1, 1, 2, 2],
        ),
        1,
        fast=True,
    ),
    "ConvNeXt": Network(pictures("ConvNext", hidden_act="relu", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16]), 4),
    "ResNet": Network(pictures("ResNet", **_STAGES, layer_type="basic"), 12, residual=6, fast=True),
    "ResNet, bottleneck": Network(pictures("ResNet", **_STAGES), 18, residual=6),
    "RegNet": Network(pictures("RegNet", **_STAGES, groups_width=4), 18, residual=6, fast=True),
    "MobileNet v1": Network(pictures("MobileNetV1", depth_multiplier=0.5), 13),
    "MobileNet v2": Network(pictures("MobileNetV2", depth_multiplier=0.5), 17),
    "BiT": Network(pictures("Bit", **_STAGES, num_groups=2), 0),  # group norms
    # Four in the stem behind the first. Two in a block of a stage, and two that gather; of light ones the latter alone.
    "HGNet v2": Network(
        pictures(
            "HGNetV2",
            "Backbone",
            depths=[1, 2],
            hidden_sizes=[24, 32],
            stem_channels=[3, 12, 16],
            stage_in_channels=[16, 24],
            stage_mid_channels=[8, 8],
            stage_out_channels=[24, 32],
            stage_num_blocks=[1, 2],
            stage_downsample=[False, True],
            stage_downsample_strides=[2, 2],
            stage_light_block=[False, True],
            stage_kernel_size=[3, 5],
            stage_numb_of_layers=[2, 2],
        ),
        4 + (2 + 2) + 2 * 2,
    ),
    # Two or three convolutions are added before each ReLU, one of them is the site.
    "TextNet": Network(
        pictures(
            "TextNet",
            stem_out_channels=8,
            hidden_sizes=[8, 8, 12, 16, 16],
            conv_layer_kernel_sizes=[[[3, 3], [3, 3]], [[3, 1], [1, 3]], [[3, 3]], [[3, 3]]],
            conv_layer_strides=[[1, 2], [1, 1], [2], [2]],
        ),
        6,
        residual=6,
        fast=True,
    ),
    # Two in each of four blocks but for the first of all, and one in either decoder.
    "SuperPoint": Network(
        pictures(
            "SuperPoint",
            "ForKeypointDetection",
            encoder_hidden_sizes=[8, 8, 12, 12],
            decoder_hidden_size=16,
            descriptor_decoder_dim=16,
        ),
        7 + 2,
    ),
    "PoolFormer": Network(
        pictures("PoolFormer", hidden_act="relu", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16]), 4
    ),
    "PVT": Network(
        pictures(
            "Pvt",
            hidden_act="relu",
            image_size=32,
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
        ),
        4,
    ),
    "VideoMAE": Network(_video, _ENCODER),
    "CLIP": Network(_clip, 2 * _ENCODER, fast=True),
    "Wav2Vec2": Network(
        sound(
            "Wav2Vec2",
            feat_extract_activation="relu",
            hidden_act="relu",
            feat_extract_norm="layer",
            conv_dim=(8, 8, 8),
            conv_stride=(3, 2, 2),
            conv_kernel=(5, 3, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        _ENCODER,
        fast=True,
    ),
    # The first of three convolutions reads the wave and has a norm; the others feed their ReLU.
    "Hubert": Network(
        sound(
            "Hubert",
            feat_extract_activation="relu",
            hidden_act="relu",
            conv_dim=(8, 8, 8),
            conv_stride=(3, 2, 2),
            conv_kernel=(5, 3, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        2 + _ENCODER,
        fast=True,
    ),
    "Whisper": Network(
        spectrum("Whisper", activation_function="relu", num_mel_bins=8, max_source_positions=16, **_SPECIAL),
        _BOTH,
        fast=True,
    ),
    "Speech2Text": Network(
        spectrum("Speech2Text", input_feat_per_channel=8, conv_channels=12, max_source_positions=32), _BOTH
    ),
    # Each layer's, two of the three layers that predict a box, and the backbone's, whose norms are factors and offsets.
    # The conditional one also scales and places its queries by two networks of one hidden layer; the deformable one
    # predicts boxes behind each layer.
    "DETR": Network(detection("Detr"), _BOTH + 2 + 8, residual=4, fast=True),
    "Conditional DETR": Network(detection("ConditionalDetr"), _BOTH + 2 + 2 + 8, residual=4),
    "Deformable DETR": Network(
        detection("DeformableDetr", ["stage2", "stage3", "stage4"], num_feature_levels=4, d_model=32),
        _BOTH + 2 * 2 + 8,
        residual=4,
    ),
}
