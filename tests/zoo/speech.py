"""Models of sound: encoders of waves and of spectra, and the encoder-decoders on top of them."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs
from .shrink import row

_CONVOLUTIONS = {"conv_dim": [8, 8, 8], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 2]}


def _wave(family: str, model: str, model_type: str | None = None, **how: Any) -> Specimen:
    """Encoders of the waveform behind a few convolutions, as in wav2vec 2.0."""
    common = {
        "inputs": inputs.wave,
        "generates": False,
        "num_conv_pos_embeddings": 16,
        "vocab_size": 320,
        **_CONVOLUTIONS,
    }
    return row(family, model_type, **{"model": model, **common, **how})


def _spectrum(family: str, model: str, model_type: str | None = None, **how: Any) -> Specimen:
    return row(family, model_type, **{"model": model, "inputs": inputs.spectrum, "generates": False, **how})


def _pair(family: str, model: str, model_type: str | None = None, **how: Any) -> list[Specimen]:
    """An encoder-decoder twice: once the encoder grows, once the decoder."""
    how = {"model": model, **how}
    return [row(f"{family}/{stack}", model_type or family, stack=stack, **how) for stack in ("encoder", "decoder")]


SPECIMENS = [
    _wave("data2vec-audio", "Data2VecAudioForCTC"),
    _wave("hubert", "HubertForCTC"),
    _wave("hubert-stable", "HubertForCTC", "hubert", do_stable_layer_norm=True, feat_extract_norm="layer"),
    _wave("sew", "SEWForCTC"),
    _wave("sew-d", "SEWDForCTC"),
    _wave("unispeech", "UniSpeechForCTC"),
    _wave("unispeech-sat", "UniSpeechSatForCTC"),
    _wave("wav2vec2", "Wav2Vec2ForCTC"),
    _wave("wav2vec2-stable", "Wav2Vec2ForCTC", "wav2vec2", do_stable_layer_norm=True, feat_extract_norm="layer"),
    _wave("wav2vec2-weighted", "Wav2Vec2ForSequenceClassification", "wav2vec2", use_weighted_layer_sum=True),
    _wave("wav2vec2-adapter", "Wav2Vec2ForCTC", "wav2vec2", add_adapter=True),
    _wave("wav2vec2-conformer", "Wav2Vec2ConformerForCTC"),
    _wave("wavlm", "WavLMForCTC"),
    _spectrum(
        "audio-spectrogram-transformer", "ASTForAudioClassification", inputs=inputs.patches_of_sound, max_length=64
    ),
    _spectrum("granite_speech5_ctc", "GraniteSpeech5ForCTC", stack="encoder.layers", inputs=inputs.stacked_spectrum),
    _spectrum("lasr_ctc", "LasrForCTC", stack="encoder.layers"),
    _spectrum("nemotron_asr_streaming_encoder", "NemotronAsrStreamingEncoder"),
    _spectrum("parakeet_ctc", "ParakeetForCTC", stack="encoder.layers"),
    _spectrum("wav2vec2-bert", "Wav2Vec2BertForCTC", vocab_size=320),
    _spectrum(
        "wav2vec2-bert-weighted", "Wav2Vec2BertForSequenceClassification", "wav2vec2-bert", use_weighted_layer_sum=True
    ),
    *_pair("moonshine", "MoonshineForConditionalGeneration", inputs=inputs.wave_and_text),
    *_pair(
        "moonshine-even",
        "MoonshineForConditionalGeneration",
        "moonshine",
        inputs=inputs.wave_and_text,
        encoder_num_hidden_layers=7,
        decoder_num_hidden_layers=7,
    ),
    *_pair("speech_to_text", "Speech2TextForConditionalGeneration", inputs=inputs.spectrum_and_text),
    *_pair("speecht5", "SpeechT5ForSpeechToText", inputs=inputs.wave_and_text, **_CONVOLUTIONS),
    *_pair("speech-encoder-decoder", "SpeechEncoderDecoderModel", inputs=inputs.wave_and_text),
    *_pair("whisper", "WhisperForConditionalGeneration", inputs=inputs.whisper),
    *_pair("whisper-even", "WhisperForConditionalGeneration", "whisper", inputs=inputs.whisper, encoder_layers=7),
    *_pair("cohere_asr", "CohereAsrForConditionalGeneration", inputs=inputs.spectrum_and_text),
    *_pair("canary", "CanaryForConditionalGeneration", inputs=inputs.spectrum_and_text),
    *_pair("pop2piano", "Pop2PianoForConditionalGeneration", inputs=inputs.texts),
]
