"""A model's file: safetensors with the parameters by name, as a run leaves it; where a study may start from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.numpy

from strategies.errors import ProtocolError, SettingError
from strategies.layout import Layout, Vector


def read_weights(path: Path, layout: Layout, *, sha256: str | None = None) -> Vector:
    """Return the weights of a model's file as one flat vector.

    Args:
        path: the file.
        layout: of the study's model; names and shapes must be these.
        sha256: what the file's hash must be, if it is known.

    Raises:
        SettingError: it cannot be read, is another model's, has another hash or holds a value that is not finite.
    """
    try:
        data = path.read_bytes()
        arrays = safetensors.numpy.load(data)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise SettingError(
            f"the model {path} cannot be read ({type(error).__name__}); give a .safetensors file"
        ) from None
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise SettingError(f"the model {path} is not the one that the study names: its SHA-256 is another")
    wanted = {slot.name: slot.shape for slot in layout.slots}
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    if found != wanted:
        name = min(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise SettingError(
            f"the model {path} does not fit the study: parameter '{name}' has shape {found.get(name, 'none')} there "
            f"and {wanted.get(name, 'none')} here; give the model of this study"
        )
    try:
        return layout.check(layout.join(arrays), f"the model {path}")
    except ProtocolError as error:
        raise SettingError(str(error)) from None
