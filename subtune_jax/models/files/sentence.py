"""What sentence-transformers writes beside an encoder: how its features are pooled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtune_jax.errors import InputError, listed
from subtune_jax.models.files.folder import json_object

POOLINGS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}


def pooling_of(folder: Path) -> dict[str, str]:
    """Returns the option `pooling` of a sentence encoder's folder, else nothing.

    Raises `InputError` for a pooling, or a module, that is not known here."""
    if not (folder / "modules.json").exists():
        return {}
    try:
        modules = json.loads((folder / "modules.json").read_text())
        kinds = {str(m["type"]).split(".")[-1]: str(m["path"]) for m in modules}
    except (ValueError, TypeError, KeyError, OSError):
        raise InputError(f"{folder}/modules.json lists no modules") from None
    others = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if others:
        raise InputError(
            f"{folder}/modules.json has modules that are not known: "
            f"{listed(sorted(others))}; pooling='mean' or 'cls' leaves them out"
        )
    if "Pooling" not in kinds:
        return {}
    home = (folder / kinds["Pooling"]).resolve()
    if folder.resolve() not in home.parents:
        raise InputError(f"{folder}/modules.json names a folder outside: {home}")
    return {"pooling": _pooling(json_object(home / "config.json"), home)}


def _pooling(config: Mapping[str, Any], home: Path) -> str:
    prefix = "pooling_mode_"
    modes = [
        n.removeprefix(prefix)
        for n, on in config.items()
        if n.startswith(prefix) and on
    ]
    modes += [str(config["pooling_mode"])] if config.get("pooling_mode") else []
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise InputError(
            f"{home}/config.json pools by {listed(modes) or 'nothing'}: expected one of "
            "mean_tokens, cls_token"
        )
    return POOLINGS[modes[0]]
