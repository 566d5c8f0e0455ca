"""Tensors of a transformers folder, read one at a time, with their names and layouts there and in our models.

Formats: one file or several with an index, safetensors or pickle; a pickle is loaded without running code from it.
Parameter names are the same, apart from prefixes of wrappers. transformers stores the matrices of attention and MLP as
(in, out), ours are (out, in); its head is the token embedding, which is stored under either name or both; old folders
lack the prefix and store masks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Size, Tensor

from model_core.checkpoint import clean_name, load_file
from model_core.errors import CheckpointDamaged, CheckpointRefused, InvalidData
from model_core.hf.export_folder import WEIGHTS
from model_core.hf.hf_config import read_object
from model_core.storage.files import is_lfs_pointer, refuse_lfs_pointer

PICKLE, INDEX = "pytorch_model.bin", ".index.json"
_SUFFIX = ".safetensors"
PREFIX, HEAD, EMBEDDING = "transformer.", "lm_head.weight", "transformer.wte.weight"
_TRANSPOSED = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_FIRST_PARTS = ("transformer", "wte", "wpe", "h", "ln_f", "lm_head")  # what precedes is the name of a wrapper
_OTHER_FORMATS = (".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".pt", ".pth")
_MASK = re.compile(r"\.attn\.(masked_)?bias$")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: Name of the file.
        shape: Shape of the stored tensor.
        read: Reads the tensor. It can be called once, because a pickled tensor is then released.
    """

    file: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@contextmanager
def stored_tensors(folder: Path) -> Iterator[dict[str, StoredTensor]]:
    """Open the tensors of a folder.

    Args:
        folder: Folder with safetensors or a pickle; safetensors win.

    Yields:
        Every tensor by its name in the file.

    Raises:
        InvalidData: There are no tensor files, one of the index is missing, or one is damaged or holds other objects.
    """
    with ExitStack() as stack:
        yield _merged(folder, weight_files(folder), stack)


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold the tensors of a folder.

    Args:
        folder: The folder.

    Returns:
        Their paths.

    Raises:
        InvalidData: There are none, the index names one that does not exist, or all are pointers of Git LFS.
    """
    pointers: list[Path] = []
    for name in (WEIGHTS, PICKLE):
        files = _files_of(folder, name)
        if files and not any(map(is_lfs_pointer, files)):
            return files
        pointers = pointers or files
    if pointers:
        return pointers  # whoever reads them is told
    names = ", ".join(name + end for name in (WEIGHTS, PICKLE) for end in ("", INDEX))
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix in _OTHER_FORMATS]
    there = f", and {others[0]} is of another format" if others else ""
    raise InvalidData(f"{folder.name} has no weights: it should hold one of {names}{there}")


def our_name(theirs: str) -> str | None:
    """Translate the name of a stored tensor.

    Args:
        theirs: Name in the file.

    Returns:
        Name in our state_dict; None for a mask, which is no parameter.
    """
    parts = clean_name(theirs).split(".")
    first = next((index for index, part in enumerate(parts) if part in _FIRST_PARTS), 0)
    name = ".".join(parts[first:])
    name = name if name == HEAD or name.startswith(PREFIX) else PREFIX + name
    return None if _MASK.search(name) else name


def transposed(name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor from one layout to the other.

    Args:
        name: Name in our state_dict.
        tensor: The tensor in either layout.

    Returns:
        The tensor in the other layout, copied if the two differ.
    """
    return tensor.T.contiguous() if _TRANSPOSED.search(name) else tensor.contiguous()


def stored_shape(name: str, ours: Size) -> tuple[int, ...]:
    """Return the shape of a parameter in a file of transformers.

    Args:
        name: Name in our state_dict.
        ours: Shape in our model.

    Returns:
        Its shape there.
    """
    return tuple(reversed(ours)) if _TRANSPOSED.search(name) else tuple(ours)


def stored_shapes(ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a folder must have for one of our models.

    Args:
        ours: State_dict of the model; only its shapes are read.

    Returns:
        Shapes by our names, without the head.
    """
    return {name: stored_shape(name, tensor.shape) for name, tensor in ours.items() if name != HEAD}


def _files_of(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_file():
        return [folder / name]
    return _of_index(folder, name + INDEX) if (folder / (name + INDEX)).is_file() else []


def _of_index(folder: Path, index: str) -> list[Path]:
    weight_map = read_object(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidData(f"{index} has no weight_map from tensors to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InvalidData(f"{index} names the file {name!r}, which is not in the folder")
    return [folder / name for name in names]


def _merged(folder: Path, files: Iterable[Path], stack: ExitStack) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for path in files:
        refuse_lfs_pointer(path)
        part = _safetensors(path, stack) if path.suffix == _SUFFIX else _pickled(path)
        if twice := found.keys() & part.keys():
            raise InvalidData(f"{folder.name} stores {min(twice)} twice, the second time in {path.name}")
        found |= part
    return found


def _safetensors(path: Path, stack: ExitStack) -> Mapping[str, StoredTensor]:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InvalidData(f"{path.name} is damaged: {error}") from None
    return {name: StoredTensor(path.name, shape, partial(file.get_tensor, name)) for name, shape in shapes.items()}


def _pickled(path: Path) -> Mapping[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            content = load_file(file, path.name)
    except CheckpointDamaged as error:
        raise InvalidData(str(error)) from None
    except CheckpointRefused as error:
        raise InvalidData(f"{error}; a folder with {WEIGHTS} needs no pickle") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InvalidData(f"{path.name} holds more than tensors by name")
    named: dict[Any, Tensor] = dict(content)
    return {str(n): StoredTensor(path.name, tuple(t.shape), partial(named.pop, n)) for n, t in content.items()}
