"""Language models in a GGUF file, the format of llama.cpp. Each is converted to a transformers folder in the cache."""

import hashlib
import importlib
import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from filelock import AcquireReturnProxy, FileLock
from safetensors import safe_open

from exprune.core.errors import SettingError
from exprune.files import CannotWriteError, kept, write_whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_NEEDED = ("gguf", "accelerate")  # packages that transformers requires to read such a file


def unpacked(file: Path, cache_dir: Path) -> Path:
    """The folder in the cache with the model (weights in float32) and the tokenizer of a GGUF file.

    It is created if necessary. transformers takes half a minute to read a GGUF file with 135M weights, and a second for
    the folder. The weights are the exact values of the quantised ones; neither half precision could represent all of
    them.

    Raises:
        SettingError: If the file is missing or truncated, if transformers cannot read its architecture from GGUF, if
            its tokenizer does not fit its weights, if a package is missing, or if the cache is not writable.
    """
    if not file.is_file():
        raise SettingError(f"model.pretrained={file}: no such GGUF file")
    state = file.stat()
    folder = cache_dir / "gguf" / f"{file.stem}-{_digest(file, state.st_size, state.st_mtime_ns)}"
    if kept(folder, _check, "it is made anew") is None:
        with _alone(folder):
            if kept(folder, _check, "it is made anew") is None:  # another job may have made it meanwhile
                model, tokenizer = _read(file)
                write_whole_folder(folder, lambda partial: _save(model, tokenizer, partial))
                log.info("%s was converted once: %s", file, folder)
    return folder


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    """The fingerprint of the file's bytes and of the version of transformers."""
    from transformers import __version__

    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(__version__.encode())
    return digest.hexdigest()[:16]


def _alone(folder: Path) -> AcquireReturnProxy:
    """Wait until no other process creates this folder, and lock it until the ``with`` block ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f"{folder.name}.lock")).acquire()
    except OSError as error:
        raise CannotWriteError(folder, error.strerror or error) from error


def _check(folder: Path) -> bool:
    """Check that the folder is complete; raises an exception if it is not."""
    for name in ("config.json", "tokenizer.json"):
        json.loads((folder / name).read_text("utf-8"))
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError("no weights")
    for part in weights:
        with safe_open(part, framework="pt"):  # compares the size of the file with its header
            pass
    return True


def _save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for package in _NEEDED:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SettingError(
                f"model.pretrained={file}: reading a GGUF file needs the package {package}; "
                "pip install -e '.[real]', or only gguf, accelerate and sentencepiece"
            ) from error
    architecture = _checked_architecture(file)

    def load(what: str, of: Callable[..., Any], **options: Any) -> Any:
        try:
            return of(str(file.parent), gguf_file=file.name, local_files_only=True, **options)
        except Exception as error:  # each architecture has its own reader, which may raise anything
            why = shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
            raise SettingError(
                f"model.pretrained={file}: transformers cannot read the {what} of a GGUF file of architecture "
                f"{architecture} ({why}); name a causal language model of one that it reads, such as llama"
            ) from error

    tokenizer = load("tokenizer", AutoTokenizer.from_pretrained)
    model = load("weights", AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    return _without_quantization(model), tokenizer


def _checked_architecture(file: Path) -> str:
    """The architecture that the file names, after checking that it is complete and its tokenizer fits its weights."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        rows = {tensor.name: int(tensor.shape[-1]) for tensor in reader.tensors}.get("token_embd.weight")
    except Exception as error:  # usually numpy's, when reading beyond the end of the file
        why = shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
        raise SettingError(f"model.pretrained={file}: not a whole GGUF file, truncated or damaged ({why})") from error
    if tokens is None:
        raise SettingError(f"model.pretrained={file}: a GGUF file without a tokenizer (tokenizer.ggml.tokens)")
    if rows is not None and len(tokens.data) != rows:
        raise SettingError(
            f"model.pretrained={file}: its tokenizer has {len(tokens.data)} tokens and its embedding {rows}: it "
            "belongs to another model"
        )
    return architecture


def _without_quantization(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same network without the record of its quantisation, so that transformers allows saving it."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain
