"""Where a model comes from: embedded in this package, a folder on this machine, or the Hub. Downloads nothing."""

import re
from pathlib import Path

from suite import zoo
from suite.spec.errors import RuleError, nearest
from suite.spec.matrix import ModelRef

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_path(ref: ModelRef) -> Path | None:
    """The folder of a model that is on this machine; None for a Hub id.

    A name without a slash is an embedded model; an existing folder wins over a Hub id of the same spelling.
    Raises: RuleError (a ValueError) for a name that is neither, or a folder that holds no model.
    """
    if ref.id in zoo.MODEL_SEEDS:
        return _model_folder(zoo.model_path(ref.id))
    folder = Path(ref.id).expanduser()
    if folder.is_dir():
        return _model_folder(folder)
    if _HUB_ID.fullmatch(ref.id):
        return None
    if ref.id.startswith((".", "/", "~")) or "/" in ref.id:
        raise RuleError("there is no such folder", "a folder is given relative to where the command runs")
    hint = nearest(ref.id, zoo.MODEL_SEEDS)
    raise RuleError("no embedded model and no folder is called so", f"{hint} (a Hub id is written owner/name)")


def _model_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise RuleError(f"{folder} holds no model: config.json is missing", "give the folder save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise RuleError(f"{folder} holds no *.safetensors weights", "convert the weights to safetensors")
    return folder
