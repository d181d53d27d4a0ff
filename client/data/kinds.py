"""A silo's files to records, by the study's kind of data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pyarrow

from client.data import images, sequences, signals, tabular, text
from client.data.records import Loaded, Records, split
from strategies.study import Study


class Loader(Protocol):
    """Reads one kind of data; without `labelled` the target is not read, and `Loaded.y` is all zero."""

    def __call__(
        self, path: Path, study: Study, rename: Mapping[str, str], scratch: Path, *, labelled: bool = True
    ) -> Loaded: ...


LOADERS: dict[str, Loader] = {
    "tabular": tabular.load,
    "images": images.load,
    "signals": signals.load,
    "sequences": sequences.load,
    "text": text.load,
}


def load(path: Path, study: Study, rename: Mapping[str, str], scratch: Path) -> Records:
    """Return the records that lie at `path`, in two parts.

    Args:
        path: a file or a folder, as the kind of data has it.
        study: says what is read.
        rename: this silo's own column names to the study's.
        scratch: folder of the silo for what is too large for memory; nothing stays there.

    Raises:
        DataError: the files do not fit the study; the sentence names file or row and never leaves the silo.
    """
    loaded = LOADERS[study.file.data.kind](path, study, rename, scratch)
    pyarrow.default_memory_pool().release_unused()
    return split(loaded, seed=study.file.study.seed, test_share=study.file.data.test_share)
