"""Disco rules from the .npz files in which their authors publish them. The weights themselves are not part of this package."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from learned_objectives.disco import SHAPES, Disco
from learned_objectives.library import ObjectiveFileError

DISCO103_SHA256 = "dac840a15b81e8805326363458c33979626172618f620d9e6e170315388530aa"
LIFE = "lstm/~/meta_lstm/~unroll/"

# Part of a Disco: its module in such a file, whose arrays end on /w and /b.
MODULES = {
    "core": "lstm/lstm/linear",
    "scale": "lstm/linear",
    "note": "lstm/linear_1",
    "y_head": "lstm/linear_2",
    "z_head": "lstm/linear_3",
    "policy_in": "lstm/sequential_1/conv1_d",
    "policy_out": "lstm/linear_4",
    "y_in": "lstm/mlp/~/linear_0",
    "y_out": "lstm/mlp/~/linear_1",
    "z_in": "lstm/mlp_1/~/linear_0",
    "z_out": "lstm/mlp_1/~/linear_1",
    "action_in": "lstm/sequential/conv1_d",
    "action_out": "lstm/sequential/conv1_d_1",
    "life": f"{LIFE}lstm/linear",
    "life_in": f"{LIFE}mlp_2/~/linear_0",
    "life_y_in": f"{LIFE}mlp/~/linear_0",
    "life_y_out": f"{LIFE}mlp/~/linear_1",
    "life_z_in": f"{LIFE}mlp_1/~/linear_0",
    "life_z_out": f"{LIFE}mlp_1/~/linear_1",
    "life_action_in": f"{LIFE}sequential/conv1_d",
    "life_action_out": f"{LIFE}sequential/conv1_d_1",
}


def load_disco103(path: str | os.PathLike) -> Disco:
    """The rule Disco103 from the file `disco_103.npz` that its authors publish.

    The file is not part of this package. Its authors publish it under CC BY 4.0 in their repository disco_rl, with Oh et al.
    2025, Nature, doi 10.1038/s41586-025-09761-x.

    Raises ObjectiveFileError for any other file; `load_disco` reads every rule of this shape.
    """
    data = _bytes(path)
    found = hashlib.sha256(data).hexdigest()
    if found != DISCO103_SHA256:
        raise ObjectiveFileError(
            f"{os.fspath(path)} is not the published Disco103: its sha256 should be {DISCO103_SHA256} and is {found}; "
            "the authors publish the file disco_103.npz with Oh et al. 2025, Nature, doi 10.1038/s41586-025-09761-x, in the "
            "disco_rl repository."
        )
    return _rule(data, path)


def load_disco(path: str | os.PathLike) -> Disco:
    """Any rule in a .npz file of the same 42 arrays as the published one.

    Raises ObjectiveFileError for a file that is missing, is no .npz, or holds other arrays.
    """
    return _rule(_bytes(path), path)


def _bytes(path: str | os.PathLike) -> bytes:
    path = Path(path)
    if path.is_dir():
        raise ObjectiveFileError(f"{path} is a directory; give the .npz file in it.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ObjectiveFileError(
            f"There is no file {path}; the authors of Disco103 publish disco_103.npz in the disco_rl repository."
        ) from None
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        raise ObjectiveFileError(f"{path} cannot be read ({error}).") from None


def _rule(data: bytes, path: str | os.PathLike) -> Disco:
    try:
        with np.load(io.BytesIO(data)) as file:
            arrays = {name: file[name] for name in file.files}
    # Pickled objects too, and whatever NumPy and its zip reader raise for bytes that are no .npz.
    except Exception:
        raise ObjectiveFileError(f"{os.fspath(path)} is not a complete .npz file.") from None
    names = {f"{part}_{kind}": f"{module}/{kind}" for part, module in MODULES.items() for kind in "wb"}
    _require_arrays(arrays, {names[field]: shape for field, shape in SHAPES.items()}, os.fspath(path))
    return Disco(**{field: jnp.asarray(arrays[names[field]]) for field in SHAPES})


def _require_arrays(arrays: dict[str, np.ndarray], wanted: dict[str, tuple[int, ...]], path: str) -> None:
    """ObjectiveFileError where names, shapes or types are others."""
    if arrays.keys() != wanted.keys():
        gone, more = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
        what = f"lacks {gone[0]}" if gone else f"has {more[0]} besides"
        raise ObjectiveFileError(f"{path} is no Disco rule: it holds {len(arrays)} arrays, of 42, and {what}.")
    for name, shape in wanted.items():
        found = arrays[name]
        if found.shape != shape or found.dtype != np.float32:
            raise ObjectiveFileError(
                f"{path} is no Disco rule: {name} should be float32 of shape {shape}, and is {found.dtype} of shape "
                f"{found.shape}."
            )
