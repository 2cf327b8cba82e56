"""Tiny random models of families that have no weights offline, as their own libraries build them."""

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CohereAsrConfig,
    CohereAsrFeatureExtractor,
    CohereAsrForConditionalGeneration,
    CohereAsrProcessor,
    GenerationConfig,
    MoonshineStreamingConfig,
    MoonshineStreamingForConditionalGeneration,
    MoonshineStreamingProcessor,
    PreTrainedTokenizerFast,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Wav2Vec2FeatureExtractor,
)

from sottovoce.models.generic import Generic
from sottovoce.models.qwen3_asr import Qwen3ASR

QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)


def byte_tokenizer(special: dict[str, str], **names: str) -> PreTrainedTokenizerFast:
    """Bytes and special tokens; `special`: attribute and token."""
    first = list({**special, **names}.values())
    pieces = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in first])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=special, **names)


def make_qwen(seed: int = 0, width: int = 32, head_dim: int = 16, tied: bool = True) -> Qwen3ASR:
    """Two layers in the tower, two in the language model, grouped heads; `tied`: the head is the token embedding."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(
        {
            "audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
            "im_start": "<|im_start|>", "asr_text": "<asr_text>",
        },
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    tokens = tokenizer.convert_tokens_to_ids
    config = Qwen3ASRConfig(
        audio_config={
            "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 2 * width,
            "d_model": width, "output_dim": width, "downsample_hidden_size": 8, "initializer_range": 0.2,
        },
        text_config={
            "model_type": "qwen3", "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim,
            "max_position_embeddings": 512, "tie_word_embeddings": tied, "initializer_range": 0.2,
        },
        audio_token_id=tokens("<|audio_pad|>"), pad_token_id=tokens("<|endoftext|>"), eos_token_id=[tokens("<|im_end|>")],
        initializer_range=0.2, tie_word_embeddings=tied,
    )  # fmt: skip
    network = Qwen3ASRForConditionalGeneration(config).eval().requires_grad_(False)
    network.generation_config = GenerationConfig(
        eos_token_id=[tokens("<|im_end|>")], pad_token_id=tokens("<|endoftext|>"), max_new_tokens=12
    )
    processor = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(feature_size=16), tokenizer, chat_template=QWEN_TEMPLATE)
    return Qwen3ASR(network, processor, "qwen")


def _names(**special: str) -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    tokenizer = byte_tokenizer(special, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    token = tokenizer.convert_tokens_to_ids
    return tokenizer, {
        "vocab_size": len(tokenizer),
        "bos_token_id": token("<s>"),
        "eos_token_id": token("</s>"),
        "pad_token_id": token("<pad>"),
        "decoder_start_token_id": token("<s>"),
    }


def make_speech_to_text(seed: int = 0, width: int = 32) -> Generic:
    """Sinusoidal positions, a convolutional front that halves time twice, tied head without bias."""
    torch.manual_seed(seed)
    tokenizer, ids = _names()
    config = Speech2TextConfig(
        d_model=width, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, max_source_positions=400, max_target_positions=40,
        input_feat_per_channel=16, conv_channels=32, init_std=0.3, **ids,
    )  # fmt: skip
    network = Speech2TextForConditionalGeneration(config).eval().requires_grad_(False)
    extractor = Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    return Generic(network, Speech2TextProcessor(extractor, tokenizer), "speech-to-text")


def make_moonshine_streaming(seed: int = 0, width: int = 32) -> Generic:
    """Sliding windows over raw audio, a head of its own."""
    torch.manual_seed(seed)
    tokenizer, ids = _names()
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": width // 2}
    config = MoonshineStreamingConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, max_position_embeddings=256,
        tie_word_embeddings=False, initializer_range=0.2, **heads, **ids,
        encoder_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
            "sliding_windows": [[16, 4], [16, 0]], "initializer_range": 0.2, **heads,
        },
    )  # fmt: skip
    network = MoonshineStreamingForConditionalGeneration(config).eval().requires_grad_(False)
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, do_normalize=False)
    return Generic(network, MoonshineStreamingProcessor(extractor, tokenizer), "moonshine-streaming")


def make_cohere(seed: int = 0, width: int = 32) -> Generic:
    """A Conformer with relative positions, and a prompt that the processor makes from the language."""
    torch.manual_seed(seed)
    prompt = (
        "\u2581 <|startofcontext|> <|startoftranscript|> <|emo:undefined|> <|en|> <|pnc|> <|noitn|> <|notimestamp|> <|nodiarize|>"
    ).split()
    tokenizer, ids = _names(**{f"prompt_{i}": token for i, token in enumerate(prompt)})
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = CohereAsrConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, head_dim=width // 2, max_position_embeddings=64,
        initializer_range=0.2, **heads, **ids,
        encoder_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_mel_bins": 16,
            "subsampling_conv_channels": 16, "initializer_range": 0.2, **heads,
        },
    )  # fmt: skip
    network = CohereAsrForConditionalGeneration(config).eval().requires_grad_(False)
    extractor = CohereAsrFeatureExtractor(feature_size=16)
    return Generic(network, CohereAsrProcessor(extractor, tokenizer), "cohere")
