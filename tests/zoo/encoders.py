"""The text encoders: BERT and its kin, one stack of layers each."""

from __future__ import annotations

from typing import Any

from . import Specimen, inputs
from .shrink import row


def _encoder(family: str, model: str, model_type: str | None = None, **how: Any) -> Specimen:
    return row(family, model_type, **{"model": model, "inputs": inputs.text, "generates": False, **how})


SPECIMENS = [
    _encoder("albert", "AlbertForMaskedLM"),
    _encoder("bert", "BertForMaskedLM"),
    _encoder("bert-pretraining", "BertForPreTraining", "bert"),
    _encoder("bert-generation", "BertGenerationEncoder"),
    _encoder("big_bird", "BigBirdForMaskedLM", block_size=2, num_random_blocks=1),
    _encoder("big_bird-full", "BigBirdForMaskedLM", "big_bird", attention_type="original_full"),
    _encoder("bros", "BrosModel", inputs=inputs.float_boxes, hidden_size=64),
    _encoder("camembert", "CamembertForMaskedLM"),
    _encoder("canine", "CanineModel"),
    _encoder("convbert", "ConvBertForMaskedLM"),
    _encoder("data2vec-text", "Data2VecTextForMaskedLM"),
    _encoder("deberta", "DebertaForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _encoder("deberta-v2", "DebertaV2ForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"],
             share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm", conv_kernel_size=3),
    _encoder("distilbert", "DistilBertForMaskedLM"),
    _encoder("dpr", "DPRQuestionEncoder"),
    _encoder("electra", "ElectraForPreTraining"),
    _encoder("ernie", "ErnieForMaskedLM"),
    _encoder("esm", "EsmForMaskedLM", vocab_size=320),
    _encoder("esmc", "EsmcForMaskedLM", num_key_value_heads=4),
    _encoder("eurobert", "EuroBertForMaskedLM"),
    _encoder("flaubert", "FlaubertWithLMHeadModel"),
    _encoder("fnet", "FNetForMaskedLM"),
    _encoder("funnel", "FunnelForMaskedLM", stack="funnel.encoder.blocks", block_sizes=[2, 2, 2]),
    _encoder("gte", "GteForMaskedLM"),
    _encoder("ibert", "IBertForMaskedLM"),
    _encoder("jina_embeddings_v3", "JinaEmbeddingsV3ForMaskedLM"),
    _encoder("layoutlm", "LayoutLMForMaskedLM", inputs=inputs.boxes),
    _encoder("layoutlmv3", "LayoutLMv3Model", inputs=inputs.boxes, max_2d_position_embeddings=128, coordinate_size=4,
             shape_size=8),
    _encoder("lilt", "LiltModel", inputs=inputs.boxes, hidden_size=48),
    _encoder("longformer", "LongformerForMaskedLM", attention_window=[4, 8, 4, 8, 4, 8, 4]),
    _encoder("luke", "LukeForMaskedLM", entity_vocab_size=16, entity_emb_size=8),
    _encoder("markuplm", "MarkupLMModel", max_depth=4, xpath_unit_hidden_size=8),
    _encoder("megatron-bert", "MegatronBertForMaskedLM"),
    _encoder("mobilebert", "MobileBertForMaskedLM", intra_bottleneck_size=16),
    _encoder("modernbert", "ModernBertForMaskedLM"),
    _encoder("mpnet", "MPNetForMaskedLM"),
    _encoder("mra", "MraForMaskedLM"),
    _encoder("neomme", "NeoMMEForMaskedLM", head_dim=16, hidden_size=64),
    _encoder("nomic_bert", "NomicBertForMaskedLM"),
    _encoder("nystromformer", "NystromformerForMaskedLM"),
    _encoder("openai_privacy_filter", "OpenAIPrivacyFilterForTokenClassification"),
    _encoder("perceiver", "PerceiverForMaskedLM", stack="perceiver.encoder.self_attends", num_latents=8, d_latents=32, num_self_attends_per_block=7, num_blocks=2,
             num_self_attention_heads=4, num_cross_attention_heads=4, qk_channels=32, v_channels=32),
    _encoder("reformer", "ReformerForMaskedLM", attn_layers=["local", "local", "lsh", "local", "lsh", "lsh", "local"],
             axial_pos_shape=[4, 6], axial_pos_embds_dim=[16, 16], hash_seed=1, num_buckets=4, lsh_attn_chunk_length=6,
             local_attn_chunk_length=6),
    _encoder("rembert", "RemBertForMaskedLM"),
    _encoder("roberta", "RobertaForMaskedLM"),
    _encoder("roberta-prelayernorm", "RobertaPreLayerNormForMaskedLM"),
    _encoder("roc_bert", "RoCBertForMaskedLM", pronunciation_vocab_size=16, shape_vocab_size=16),
    _encoder("roformer", "RoFormerForMaskedLM"),
    _encoder("splinter", "SplinterForPreTraining", question_token_id=7, inputs=inputs.question),
    _encoder("squeezebert", "SqueezeBertForMaskedLM"),
    _encoder("tapas", "TapasForMaskedLM", type_vocab_sizes=[3, 16, 16, 2, 16, 10, 10]),
    _encoder("ultrabert", "UltrabertForMaskedLM"),
    _encoder("xlm", "XLMWithLMHeadModel"),
    _encoder("xlm-roberta", "XLMRobertaForMaskedLM"),
    _encoder("xlm-roberta-xl", "XLMRobertaXLForMaskedLM"),
    _encoder("xmod", "XmodForMaskedLM", default_language="en_XX"),
    _encoder("yoso", "YosoForMaskedLM"),
]
