"""The Flower App Bundle of a deployed run: names of the two apps, and no code.

Coordinator and silos run the code that they have installed; the bundle only tells Flower where to find it. Its bytes
are a function of Fedsilo's version alone (files stored, dates fixed), so its SHA-256 is what a silo compares.
"""

from __future__ import annotations

import hashlib
import io
import zipfile

from strategies.manifest import CODE_VERSION

_DATE = (2024, 1, 1, 0, 0, 0)
_PROJECT = f"""[project]
name = "fedsilo"
version = "{CODE_VERSION}"
description = "Fedsilo, as installed"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedsilo"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
out = "runs"
page = true
test = ""
resume = ""
"""


def bundle() -> bytes:
    """Return the bundle's bytes."""
    project = _PROJECT.encode()
    content = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{8 * len(project)}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("pyproject.toml", project), (".info/CONTENT", content)):
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
    return buffer.getvalue()


def digest() -> str:
    """Return the SHA-256 of the bundle, 64 hex digits."""
    return hashlib.sha256(bundle()).hexdigest()
