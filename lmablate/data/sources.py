"""The sources of text: one class each, chosen by the class of the settings."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from lmablate.core.errors import DataError
from lmablate.data.documents import Document
from lmablate.data.folder import DatasetFolder
from lmablate.data.hub import HubDataset
from lmablate.data.kjv import Kjv
from lmablate.data.local_files import LocalFiles
from lmablate.data.sotu import Sotu
from lmablate.data.stamp import Stamp
from lmablate.data.synthetic import Markov
from lmablate.schema.data import FilesData, HubData, KjvData, OneText, SotuData


class Source(Protocol):
    """Documents in any order. `where` begins messages; `entropy_floor` is in nats per token of tokenizer=bytes, if known."""

    where: str

    @property
    def entropy_floor(self) -> float | None: ...

    @property
    def held_out(self) -> Iterable[Document] | None:
        """Return the validation text of a source that divides its text itself, or None: a document's hash decides."""
        ...

    def stamp(self) -> Stamp: ...

    def documents(self) -> Iterator[Document]: ...

    def notices(self) -> list[str]:
        """Return notices for the user on the text, after the documents were read."""
        ...


def open_source(settings: OneText) -> Source:
    """Return the source of `settings`. Raises DataError if it does not exist."""
    if isinstance(settings, KjvData):
        return Kjv(settings)
    if isinstance(settings, SotuData):
        return Sotu(settings)
    if isinstance(settings, FilesData):
        return LocalFiles(settings)
    if isinstance(settings, HubData):
        return _dataset(settings)
    return Markov(settings)


def _dataset(settings: HubData) -> Source:
    name = settings.name or ""
    folder = Path(name).expanduser()
    if os.path.isdir(folder):  # also False for a folder without permission
        return DatasetFolder(settings, folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise DataError(
            f"data.name={name}: there is no such folder (looked from {Path.cwd()}), and a name on the Hub is OWNER/NAME"
        )
    return HubDataset(settings)
