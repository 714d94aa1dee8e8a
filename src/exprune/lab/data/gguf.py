"""Language models in one GGUF file, as llama.cpp reads them: each becomes a folder of transformers in the cache."""

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

_NEEDED = ("gguf", "accelerate")  # by transformers, to read such a file


def unpacked(file: Path, cache_dir: Path) -> Path:
    """The folder in the cache with the model (weights in float32) and the tokenizer of a GGUF file.

    It is made where there is none: transformers needs half a minute for 135M weights, and a second for the folder. The
    weights are what the quantised ones stand for, exactly; neither half precision would hold them all.

    Raises:
        SettingError: the file is missing or cut, of an architecture that transformers does not read from GGUF, or its
            tokenizer is not that of its weights; a package is missing; or the cache cannot be written to.
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
                log.info("%s, which was read once: %s", file, folder)
    return folder


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    """The fingerprint of the file's bytes, and of the transformers that reads them."""
    from transformers import __version__

    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(__version__.encode())
    return digest.hexdigest()[:16]


def _alone(folder: Path) -> AcquireReturnProxy:
    """Waits until no other process makes this folder, and holds it until the ``with`` ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f"{folder.name}.lock")).acquire()
    except OSError as error:
        raise CannotWriteError(folder, error.strerror or error) from error


def _check(folder: Path) -> bool:
    """Whether the folder is whole; raises what it meets where it is not."""
    for name in ("config.json", "tokenizer.json"):
        json.loads((folder / name).read_text("utf-8"))
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError("no weights")
    for part in weights:
        with safe_open(part, framework="pt"):  # compares the size of the file with what its head says
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
                "pip install -e '.[real]', or gguf, accelerate and sentencepiece alone"
            ) from error
    architecture = _checked_architecture(file)

    def load(what: str, of: Callable[..., Any], **options: Any) -> Any:
        try:
            return of(str(file.parent), gguf_file=file.name, local_files_only=True, **options)
        except Exception as error:  # a format with a reader for each architecture: no end to what they meet
            why = shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
            raise SettingError(
                f"model.pretrained={file}: transformers cannot read the {what} of a GGUF file of architecture "
                f"{architecture} ({why}); name a causal language model of one that it reads, such as llama"
            ) from error

    tokenizer = load("tokenizer", AutoTokenizer.from_pretrained)
    model = load("weights", AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    return _without_quantization(model), tokenizer


def _checked_architecture(file: Path) -> str:
    """What the file says it is, once it is known to be whole and its tokenizer to be that of its weights."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        rows = {tensor.name: int(tensor.shape[-1]) for tensor in reader.tensors}.get("token_embd.weight")
    except Exception as error:  # of numpy, as a rule, behind the end of what is left
        why = shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
        raise SettingError(f"model.pretrained={file}: no whole GGUF file, so cut or damaged ({why})") from error
    if tokens is None:
        raise SettingError(f"model.pretrained={file}: a GGUF file without a tokenizer (tokenizer.ggml.tokens)")
    if rows is not None and len(tokens.data) != rows:
        raise SettingError(
            f"model.pretrained={file}: its tokenizer has {len(tokens.data)} tokens and its embedding {rows}: it is "
            "another model's"
        )
    return architecture


def _without_quantization(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same network as one that was never quantised, which transformers agrees to save."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain
