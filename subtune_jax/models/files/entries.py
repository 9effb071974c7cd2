"""Entries of configurations: each is read, known not to matter, or refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from subtune_jax.errors import InputError, listed

# Of Hugging Face, of every release: how a model was made, trained or generates text, what
# it returns beside its logits, and how its file stores numbers.
COMMON = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    _num_labels architectures attention_dropout attention_probs_dropout_prob bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
    dropout dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_factor
    initializer_range label2id language length_penalty license max_length min_length
    model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_past output_scores
    pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sbert_ce_default_activation_function sentence_transformers
    sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache""".split()
)
# Pooled features of the class token, in files that transformers made of TensorFlow's.
BERT = frozenset(
    """directionality hidden_act hidden_dropout_prob hidden_size intermediate_size
    layer_norm_eps max_position_embeddings num_attention_heads num_hidden_layers
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type position_embedding_type type_vocab_size vocab_size""".split()
)
_TOWER = frozenset(
    """hidden_act hidden_dropout_prob hidden_size image_size intermediate_size
    layer_norm_eps num_attention_heads num_channels num_hidden_layers patch_size""".split()
)
# Decoders of masked images are not read, nor the pooler that classifiers do without.
VIT = _TOWER | frozenset(
    """decoder_hidden_size decoder_intermediate_size decoder_num_attention_heads
    decoder_num_hidden_layers encoder_stride mask_ratio norm_pix_loss pooler_act
    pooler_output_size qkv_bias""".split()
)
CLIP = _TOWER | frozenset(
    """logit_scale_init_value projection_dim text_config text_config_dict vision_config
    vision_config_dict""".split()
)
# How images get their size and format is for the data: see `data.folder`.
PROCESSOR = frozenset(
    """_processor_class _valid_processor_keys crop_pct crop_size data_format default_to_square
    device disable_grouping do_center_crop do_convert_rgb do_normalize do_rescale do_resize
    feature_extractor_type image_mean image_processor_type image_std input_data_format
    processor_class resample rescale_factor return_tensors size size_divisor""".split()
)
DEPTHS, DEEPEST = ("blocks_per_stage", "depth", "num_hidden_layers"), 1000
# What may also be written where it is off.
OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


def require_known(
    entries: Mapping[str, Any], known: Iterable[str], file: str, kind: str = "entries"
) -> None:
    """Raises `InputError` with names and values of entries that are not known, unless they
    are off: they may change what the network computes."""
    known = set(known)
    others = {
        name: value
        for name, value in entries.items()
        if name not in known and not any(value is off or value == off for off in OFF)
    }
    if others:
        said = listed(f"{name}={_short(value)}" for name, value in others.items())
        raise InputError(
            f"{file} has {kind} that are not known: {said}; remove from a copy of it those "
            "that do not change what the network computes"
        )


def require_depth(config: Mapping[str, Any], folder: Any) -> None:
    """Raises `InputError` for a network of more layers than any has: it would be built, a
    layer at a time, until there is no memory left."""
    parts = (config, *(config.get(name) for name in ("model_args", "vision_config")))
    for part in filter(None, parts):
        for name in DEPTHS if isinstance(part, Mapping) else ():
            value = part.get(name, 0)
            depths = value if isinstance(value, list) else [value]
            if any(isinstance(d, int | float) and d > DEEPEST for d in depths):
                raise InputError(
                    f"{folder}/config.json says {name}={_short(value)}: expected at most "
                    f"{DEEPEST:,} layers"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
