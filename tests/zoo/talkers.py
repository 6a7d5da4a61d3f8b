"""Models that speak, codecs of sound, transducers: most with several stacks, some with none."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs
from .shrink import row


def _stacks(
    family: str, model: str, model_type: str | None = None, *, stacks: dict[str, str], **how: Any
) -> list[Specimen]:
    """One model, a row for each of its stacks: name of the row -> prefix on disk."""
    how = {"model": model, "generates": False, "inputs": inputs.text, **how}
    return [row(f"{family}/{name}", model_type or family, stack=prefix, **how) for name, prefix in stacks.items()]


_MIMI: dict[str, Any] = {"num_filters": 2, "upsample_groups": 4, "codebook_size": 16, "codebook_dim": 8,
                         "vector_quantization_hidden_dimension": 8, "num_quantizers": 4, "num_hidden_layers": 5}  # fmt: skip
_TRANSDUCER: dict[str, Any] = {"inputs": inputs.spectrum_and_text, "stacks": {"encoder": "encoder.layers"}}

SPECIMENS = [
    *_stacks(
        "csm",
        "CsmForConditionalGeneration",
        inputs=inputs.codes,
        num_codebooks=4,
        codec_config=_MIMI,
        depth_decoder_config={"num_codebooks": 4, "num_hidden_layers": 5},
        stacks={
            "text": "backbone_model.layers",
        },
    ),
    *_stacks(
        "mimi",
        "MimiModel",
        inputs=inputs.sound,
        **_MIMI,
        stacks={"encoder": "encoder_transformer.layers", "decoder": "decoder_transformer.layers"},
    ),
    *_stacks(
        "kyutai_speech_to_text",
        "KyutaiSpeechToTextForConditionalGeneration",
        inputs=inputs.codes_and_text,
        num_codebooks=4,
        codebook_vocab_size=16,
        codec_config=_MIMI,
        stacks={"text": "model.layers"},
    ),
    *_stacks(
        "dia",
        "DiaForConditionalGeneration",
        inputs=inputs.dia,
        encoder_config={"num_hidden_layers": 5},
        decoder_config={
            "num_channels": 3,
            "cross_num_attention_heads": 4,
            "cross_head_dim": 8,
            "cross_hidden_size": 32,
            "cross_num_key_value_heads": 4,
            "vocab_size": 320,
        },
        delay_pattern=[0, 1, 2],
        stacks={"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
    ),
    *_stacks(
        "clvp",
        "ClvpModelForConditionalGeneration",
        inputs=inputs.clvp,
        text_config={"hidden_size": 128},
        speech_config={"hidden_size": 128},
        decoder_config={"num_mel_attn_blocks": 2, "feature_size": 16},
        stacks={
            "text": "text_encoder_model.layers",
            "speech": "speech_encoder_model.layers",
            "decoder": "speech_decoder_model.model.decoder.layers",
        },
    ),
    *_stacks(
        "fastspeech2_conformer",
        "FastSpeech2ConformerModel",
        encoder_layers=5,
        decoder_layers=7,
        encoder_linear_units=48,
        decoder_linear_units=48,
        speech_decoder_postnet_units=8,
        num_mel_bins=16,
        stacks={"encoder": "encoder.conformer_layers", "decoder": "decoder.conformer_layers"},
    ),
    *_stacks("parakeet_rnnt", "ParakeetForRNNT", **_TRANSDUCER),
    *_stacks("parakeet_tdt", "ParakeetForTDT", **_TRANSDUCER),
    *_stacks("nemotron_asr_streaming", "NemotronAsrStreamingForRNNT", **_TRANSDUCER),
    *_stacks(
        "moonshine_streaming",
        "MoonshineStreamingForConditionalGeneration",
        inputs=inputs.wave_and_text,
        encoder_config={"num_key_value_heads": 4, "num_hidden_layers": 7, "sliding_windows": [[16, 4]] * 7},
        num_key_value_heads=4,
        stacks={"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
    ),
    *_stacks(
        "musicgen_melody",
        "MusicgenMelodyForConditionalGeneration",
        inputs=inputs.musicgen,
        audio_encoder={"num_filters": 2, "hidden_size": 8, "codebook_size": 16, "codebook_dim": 8},
        stacks={"text": "text_encoder.encoder.block", "decoder": "decoder.model.decoder.layers"},
    ),
    *_stacks(
        "pocket_tts",
        "PocketTTSForConditionalGeneration",
        inputs=inputs.text,
        flow_head_config={"condition_dim": 32, "num_hidden_layers": 5},
        stacks={"text": "model.layers"},
    ),
    *_stacks(
        "nemotron3_diarization",
        "Nemotron3DiarizationModel",
        inputs=inputs.spectrum,
        head_config={"audio_hidden_size": 32},
        stacks={"audio": "audio_tower.layers"},
    ),
    # No stack of layers.
    *_stacks(
        "dac",
        "DacModel",
        inputs=inputs.sound,
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        stacks={"encoder": "encoder.block"},
    ),
    *_stacks(
        "encodec",
        "EncodecModel",
        inputs=inputs.sound,
        num_filters=2,
        codebook_size=16,
        stacks={"encoder": "encoder.layers"},
    ),
    *_stacks(
        "univnet", "UnivNetModel", inputs=inputs.spectrum, model_hidden_channels=8, stacks={"blocks": "resblocks"}
    ),
]
