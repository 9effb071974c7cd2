"""Files of BERT, RoBERTa, XLM-R and CamemBERT in Hugging Face's layout."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from subtune_jax.errors import InputError
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.files import convert
from subtune_jax.models.files.entries import BERT, COMMON, require_known

_BODY = r"(?:bert\.|roberta\.)?"
_LAYER = _BODY + r"encoder\.layer\.(\d+)\."


def _embedding(name: str, path: str) -> convert.Name:
    return convert.Name(
        rf"{_BODY}embeddings\.{name}_embeddings\.weight",
        f"params/embeddings/{path}/embedding",
    )


def bert_names(dense_pooler: bool) -> list[convert.Name]:
    """Returns the table of BERT and RoBERTa files (Hugging Face's names).

    A pooler's tensors are read where the network has one; heads of pretraining and
    position ids are passed over.
    """
    passed = partial(convert.unused, beside="params/embeddings/norm/scale")
    pooler = rf"(?:{_BODY}pooler\.dense|classifier\.dense)"
    return [
        _embedding("word", "word"),
        _embedding("position", "position"),
        _embedding("token_type", "token_type"),
        *convert.layer_norm_names(rf"{_BODY}embeddings\.LayerNorm", "embeddings/norm"),
        *(
            name
            for part in ("query", "key", "value")
            for name in convert.linear_names(
                rf"{_LAYER}attention\.self\.{part}", rf"layer_\1/attention/{part}"
            )
        ),
        *convert.linear_names(
            rf"{_LAYER}attention\.output\.dense", r"layer_\1/attention/output"
        ),
        *convert.layer_norm_names(
            rf"{_LAYER}attention\.output\.LayerNorm", r"layer_\1/attention/norm"
        ),
        *convert.linear_names(
            rf"{_LAYER}intermediate\.dense", r"layer_\1/intermediate"
        ),
        *convert.linear_names(rf"{_LAYER}output\.dense", r"layer_\1/output"),
        *convert.layer_norm_names(rf"{_LAYER}output\.LayerNorm", r"layer_\1/norm"),
        *(
            convert.linear_names(pooler, "pooler/dense")
            if dense_pooler
            else [passed(rf"{pooler}\.(?:weight|bias)")]
        ),
        *convert.linear_names(r"(?:classifier(?:\.out_proj)?|qa_outputs)", "head"),
        passed(rf"{_BODY}embeddings\.(?:position_ids|token_type_ids)"),
        passed(r"(?:cls|lm_head)\..*"),
    ]


ROBERTA_TYPES = ("roberta", "xlm-roberta", "camembert")


def bert_family(
    config: Mapping[str, Any], options: Mapping[str, Any]
) -> convert.Family:
    """Returns an encoder of the BERT or RoBERTa kind."""
    roberta, pad = config["model_type"] in ROBERTA_TYPES, config.get("pad_token_id")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"position embeddings are {config['position_embedding_type']!r}: expected "
            "absolute ones"
        )
    require_known(config, COMMON | BERT, "config.json")
    full = BertConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        type_vocab_size=config["type_vocab_size"],
        epsilon=config["layer_norm_eps"],
        activation=config["hidden_act"],
        dropout=config["hidden_dropout_prob"],
        pad_token_id=int(roberta) if pad is None else pad,  # Hugging Face's defaults
        roberta=roberta,
        num_classes=len(config.get("id2label") or (0, 0)),
    )
    full = convert.with_options(full, options, ("pooling", "head", "dropout", "dtype"))
    dense = full.pooling == "dense" and full.head == "outputs"
    return convert.Family(bert(full, jax.random.key(0)), bert_names(dense), one_pooler)


def one_pooler(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors without a pooler that a classifier with its own does not use."""
    own = any(name.startswith("classifier.dense.") for name in tensors)
    pooler = re.compile(r"(?:\w+\.)?pooler\.dense\.\w+")
    return {n: t for n, t in tensors.items() if not (own and pooler.fullmatch(n))}
