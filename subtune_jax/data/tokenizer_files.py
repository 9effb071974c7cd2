"""The tokenizer of a folder: its vocabulary, and what its configuration says of it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from subtune_jax.errors import InputError, listed, require_path

# Tables may be larger than their tokenizer's vocabulary: round sizes are faster.
PADDING = 1024
WHOLE, WORDS, CONFIG = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
SPECIAL = {  # entry of a configuration: BERT's own token
    **{"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]"},
    **{"pad_token": "[PAD]", "mask_token": "[MASK]"},
}
BERT_SETTINGS = {  # entry: the argument of BertWordPieceTokenizer, of a BertNormalizer
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
ADDED = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")
SIDES = ("truncation_side", "padding_side")
# Names, lengths and types that callers give, and rules that fast tokenizers pass over.
UNUSED = frozenset(
    """add_bos_token add_eos_token backend bos_token clean_up_tokenization_spaces
    do_basic_tokenize eos_token errors extra_ids full_tokenizer_file from_slow
    gradient_checkpointing is_local keep_accents language legacy local_files_only max_len
    max_length model_input_names model_max_length name_or_path never_split pad_to_max_length
    pad_to_multiple_of pad_token_type_id processor_class return_token_type_ids
    sep_token_extra sp_model_kwargs special_tokens special_tokens_map_file stride
    tokenizer_class tokenizer_file trim_offsets truncation truncation_strategy use_fast
    vocab_file vocab_size wordpieces_prefix chat_template padding""".split()
)
READ = (*SPECIAL, *BERT_SETTINGS, *ADDED, *SIDES, "add_prefix_space")
# Those that split a text as BERT's does; others have words of their own before.
WORD_PIECES = re.compile(
    "(Bert|DistilBert|Electra|MPNet|MobileBert|ConvBert|LayoutLM(v2)?|Funnel|Lxmert|Retri"
    "Bert|SqueezeBert|PreTrained)Tokenizer(Fast)?|TokenizersBackend"
)


def tokenizer(folder: str | Path, vocabulary: int | None = None) -> Any:
    """Returns the fast tokenizer of a folder: `tokenizer.json`, or BERT's from `vocab.txt`.

    What `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say is
    done: case, accents, added and special tokens, the side that is cut. vocabulary: how
    many words the network knows. Raises `InputError` when there is neither file, one is
    damaged or says what is not known here, a vocabulary in capitals does not say its case,
    or the tokenizer is of another network: it gives ids that the network does not know, or
    leaves more of them unused than padding explains.
    """
    require_path(folder=folder)
    folder = Path(folder)
    if not (folder / WHOLE).exists() and not (folder / WORDS).exists():
        raise InputError(f"{folder} has no {WHOLE} and no {WORDS}")
    config = _config(folder)
    if (folder / WHOLE).exists():
        loaded = _whole(folder, config)
    else:
        loaded = _word_pieces(folder, config)
    _add_tokens(loaded, config, folder)
    _require_vocabulary(loaded, vocabulary, folder)
    side = config.get("truncation_side") or (loaded.truncation or {}).get("direction")
    if side not in (None, "left", "right"):
        raise InputError(f"{folder} cuts texts at {side!r}: expected left or right")
    loaded.enable_truncation(512, direction=side or "right")  # the side alone is read
    loaded.no_padding()
    _require_own_ids(loaded, folder)
    return loaded


def _json(file: Path) -> dict[str, Any]:
    """Returns a JSON object, {} where there is no file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):  # UnicodeDecodeError too
        raise InputError(f"{file} is not a JSON file") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} is a JSON {type(value).__name__}: expected an object")
    return value


def _config(folder: Path) -> dict[str, Any]:
    """Returns the entries of all files, those of `tokenizer_config.json` first."""
    config = _json(folder / "special_tokens_map.json") | _json(folder / CONFIG)
    others = [
        f"{name}={value!r}"
        for name, value in config.items()
        if name not in (*READ, *UNUSED) and value not in (None, False, 0, "", [], {})
    ]
    if config.get("padding_side") not in (None, "right"):
        others.append(f"padding_side={config['padding_side']!r}")
    if others:
        raise InputError(
            f"{folder}/{CONFIG} has entries that are not known: {listed(others)}; remove "
            "from a copy of it those that change no token"
        )
    tokens = _json(folder / "added_tokens.json")
    return config | {"added_tokens": tokens}


def _whole(folder: Path, config: Mapping[str, Any]) -> Any:
    """Returns the tokenizer of `tokenizer.json`, with the settings of a configuration."""
    import tokenizers  # a tenth of a second, only where there is text

    data = _json(folder / WHOLE)
    normalizer, splitter = data.get("normalizer"), data.get("pre_tokenizer")
    kind = str(config.get("tokenizer_class", ""))
    # transformers rewrites these of its own classes, and of no other. It also lower-cases a
    # file that keeps capitals where do_lower_case is missing, which is not done here: such
    # a file was saved without its configuration, and says itself what it does.
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        for theirs, ours in BERT_SETTINGS.items():
            if theirs in config and not kind.startswith("PreTrained"):
                normalizer[ours] = config[theirs]
    if isinstance(splitter, dict) and splitter.get("type") == "ByteLevel":
        splitter |= {k: config[k] for k in ("add_prefix_space",) if k in config}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{folder} has no readable tokenizer: {error}") from None


def _word_pieces(folder: Path, config: Mapping[str, Any]) -> Any:
    import tokenizers

    kind = config.get("tokenizer_class") or "BertTokenizer"
    if not WORD_PIECES.fullmatch(str(kind)):
        raise InputError(
            f"{folder} has a {WORDS} of {kind}, which splits texts in ways that are not "
            f"known here: save its fast form, {WHOLE}"
        )
    words = _vocabulary(folder / WORDS)
    names = {
        entry: _content(config.get(entry) or own) for entry, own in SPECIAL.items()
    }
    missing = [
        n for entry, n in names.items() if n not in words and entry != "mask_token"
    ]
    if missing:
        raise InputError(f"{folder}/{WORDS} has no {listed(missing)}")
    if "do_lower_case" not in config:
        _require_lower_case(words, names.values(), folder)
    settings = {o: config[t] for t, o in BERT_SETTINGS.items() if t in config}
    try:
        pieces = tokenizers.BertWordPieceTokenizer(words, **names, **settings)
        return tokenizers.Tokenizer.from_str(pieces.to_str())  # which can be cut left
    except Exception as error:
        raise InputError(f"{folder} has no readable tokenizer: {error}") from None


def _vocabulary(file: Path) -> dict[str, int]:
    """Returns the number of each line; a byte order mark is no part of the first."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} is not a text in UTF-8: {error}") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return {word: i for i, word in enumerate(lines)}


def _require_lower_case(
    words: Iterable[str], special: Iterable[str], folder: Path
) -> None:
    """Raises `InputError` for a vocabulary in capitals whose folder does not say so: BERT's
    rule, which is lower case, would make unknown words of them in silence."""
    plain = [w for w in words if re.search("[A-Z]", w) and w not in set(special)]
    capitals = [w for w in plain if not re.fullmatch(r"[\[<].*[\]>]", w)]
    if capitals:
        raise InputError(
            f"{folder}/{WORDS} has words in capitals ({listed(capitals, 3)}) and no {CONFIG} "
            'that says the case: write one, {"do_lower_case": false} if the network is cased'
        )


def _content(token: Any) -> str:
    """Returns a token that may be written with how it is matched."""
    return str(token["content"] if isinstance(token, Mapping) else token)


def _add_tokens(loaded: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Adds the tokens that files add to a vocabulary, in the order of their numbers."""
    import tokenizers

    for number, content, how in sorted(_added(config, folder), key=lambda t: t[0]):
        if loaded.token_to_id(content) is None:
            made = tokenizers.AddedToken(content, **how)
            (loaded.add_special_tokens if how["special"] else loaded.add_tokens)([made])
        got = loaded.token_to_id(content)
        if number not in (got, UNNUMBERED):
            raise InputError(
                f"{folder} gives the added token {content!r} the number {number}, and its "
                f"vocabulary {got}: they are of different tokenizers"
            )


UNNUMBERED = 1 << 62  # after all others
MATCHING = ("single_word", "lstrip", "rstrip", "normalized")


def _added(
    config: Mapping[str, Any], folder: Path
) -> Iterable[tuple[int, str, dict[str, bool]]]:
    """Yields (number, token, how it is matched) of every added token."""
    try:
        for number, token in (config.get("added_tokens_decoder") or {}).items():
            how = {name: bool(token[name]) for name in MATCHING if name in token}
            special = bool(token.get("special", False))
            yield int(number), _content(token), {"special": special} | how
        for content, number in config["added_tokens"].items():
            yield int(number), content, {"special": False}
        for entry in ("additional_special_tokens", "extra_special_tokens"):
            tokens = config.get(entry) or ()
            tokens = tokens.values() if isinstance(tokens, Mapping) else tokens
            for token in tokens:
                yield UNNUMBERED, _content(token), {"special": True}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{folder} lists its added tokens wrongly: {error!r}"
        ) from None


def _require_vocabulary(loaded: Any, vocabulary: int | None, folder: Path) -> None:
    size = max(loaded.get_vocab().values(), default=-1) + 1
    if vocabulary is not None and not 0 <= vocabulary - size < PADDING:
        raise InputError(
            f"the tokenizer in {folder} has ids up to {size - 1}, the network "
            f"{vocabulary} words: expected {max(vocabulary - PADDING, 0)} to "
            f"{vocabulary - 1}, so it belongs to another network"
        )


def _require_own_ids(loaded: Any, folder: Path) -> None:
    """Raises `InputError` where the tokens around texts, whose numbers a tokenizer.json says
    apart from its vocabulary, are not of it."""
    around, words = loaded.encode("", "").ids, loaded.get_vocab().values()
    others = [str(i) for i in sorted(set(around) - set(words))]
    if others:
        raise InputError(
            f"{folder}/{WHOLE} puts tokens with the numbers {listed(others)} around texts, "
            "which are not of its vocabulary"
        )
