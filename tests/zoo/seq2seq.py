"""Encoder-decoders of text: two stacks of unlike depth, one row for each; and both of one depth where names may mix."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs, placed
from .shrink import row


def _pair(family: str, model: str, model_type: str | None = None, **how: Any) -> list[Specimen]:
    """The same model twice: once the encoder grows, once the decoder."""
    how = {"model": model, "inputs": inputs.texts, "prepare": _start, **how}
    return [row(f"{family}/{stack}", model_type or family, stack=stack, **how) for stack in ("encoder", "decoder")]


def _start(model: Any) -> None:
    """T5 and its kin do not say with which token the decoder begins."""
    if model.generation_config.decoder_start_token_id is None:
        model.generation_config.decoder_start_token_id = 0


# transformers gives the decoder's cache of T5's kin as many places as the encoder has layers: t5-even is the other case.
_DEEP = {"num_layers": 9, "num_decoder_layers": 6}

SPECIMENS = [
    *_pair("bart", "BartForConditionalGeneration"),
    *_pair("bart-even", "BartForConditionalGeneration", "bart", encoder_layers=7),
    *_pair("bigbird_pegasus", "BigBirdPegasusForConditionalGeneration", block_size=2, num_random_blocks=1),
    *_pair("blenderbot", "BlenderbotForConditionalGeneration"),
    *_pair("blenderbot-small", "BlenderbotSmallForConditionalGeneration"),
    *_pair("encoder-decoder", "EncoderDecoderModel"),
    *_pair("fsmt", "FSMTForConditionalGeneration"),
    *_pair("led", "LEDForConditionalGeneration", attention_window=[4, 8, 4, 8, 4]),
    *_pair("longt5", "LongT5ForConditionalGeneration", **_DEEP),
    *_pair(
        "longt5-global", "LongT5ForConditionalGeneration", "longt5", encoder_attention_type="transient-global", **_DEEP
    ),
    *_pair("m2m_100", "M2M100ForConditionalGeneration"),
    *_pair("marian", "MarianMTModel"),
    *_pair("mbart", "MBartForConditionalGeneration"),
    *_pair("mt5", "MT5ForConditionalGeneration", **_DEEP),
    *_pair("mvp", "MvpForConditionalGeneration"),
    *_pair("nllb-moe", "NllbMoeForConditionalGeneration", encoder_layers=8, decoder_layers=8),
    *_pair("pegasus", "PegasusForConditionalGeneration"),
    *_pair("pegasus_x", "PegasusXForConditionalGeneration", encoder_layers=6),
    *_pair("plbart", "PLBartForConditionalGeneration"),
    *_pair("prophetnet", "ProphetNetForConditionalGeneration", ngram=2),
    *_pair(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        num_layers=14,
        num_decoder_layers=8,
        num_sparse_encoder_layers=7,
        num_sparse_decoder_layers=4,
    ),
    *_pair("t5", "T5ForConditionalGeneration", **_DEEP),
    *_pair("t5-even", "T5ForConditionalGeneration", "t5", num_layers=7),
    *_pair("t5gemma", "T5GemmaForConditionalGeneration"),
    row(
        "t5gemma2/encoder",
        "t5gemma2",
        stack="model.encoder.layers",
        model="T5Gemma2ForConditionalGeneration",
        inputs=inputs.texts,
    ),
    row(
        "t5gemma2/decoder",
        "t5gemma2",
        stack="model.decoder.layers",
        model="T5Gemma2ForConditionalGeneration",
        inputs=inputs.texts,
    ),
    row(
        "t5gemma2/vision",
        "t5gemma2",
        stack="model.encoder.vision_tower.encoder.layers",
        generates=False,
        model="T5Gemma2ForConditionalGeneration",
        inputs=placed.pictured_to_text,
        encoder={"mm_tokens_per_image": 4},
    ),
    *_pair("udop", "UdopForConditionalGeneration", inputs=inputs.texts_and_boxes, **_DEEP),
    *_pair("umt5", "UMT5ForConditionalGeneration", **_DEEP),
]
