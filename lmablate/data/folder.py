"""A local folder instead of a dataset's name: one from ``save_to_disk``, or one with the layout of the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmablate.core.errors import DataError, first_line
from lmablate.core.files import read_json
from lmablate.data.documents import Document
from lmablate.data.hub import as_documents, dataset_rows, dataset_texts
from lmablate.data.hub_client import quiet_datasets
from lmablate.data.hub_files import json_files
from lmablate.data.local_files import SAVED, file_texts
from lmablate.data.stamp import Stamp, stamp_files
from lmablate.data.tally import Tally
from lmablate.schema.data import HubData

_SPLITS, _STATE = SAVED


class DatasetFolder:
    """One split of a dataset in a folder, with the same text as from any other place."""

    entropy_floor = None
    held_out = None

    def __init__(self, settings: HubData, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.where = f"data=hub data.name={settings.name}"
        self.tally = Tally(settings.text_field, skip=bool(settings.skip_bad_lines))
        if settings.revision is not None:
            raise DataError(
                f"{self.where} is a folder here, which has no revision: leave data.revision={settings.revision} out, or start "
                "elsewhere if the dataset on the Hub is meant"
            )

    def stamp(self) -> Stamp:
        return stamp_files(sorted(path for path in self.folder.rglob("*") if path.is_file()))

    def documents(self) -> Iterator[Document]:
        """Yield the documents. Raises DataError for a missing split, subset or field, or files that cannot be read."""
        return as_documents(self._rows(), self.settings)

    def notices(self) -> list[str]:
        return [f"{self.where}: {notice}" for notice in self.tally.notices()]

    def _rows(self) -> Iterator[Document]:
        try:
            if (saved := self._saved()) is not None:
                yield from file_texts(saved, self.tally)
            else:
                yield from self._laid_out()
        except DataError:
            raise
        except Exception as error:  # the readers may raise anything
            raise DataError(f"{self.where}: cannot be loaded: {first_line(error)}") from error

    def _saved(self) -> list[Path] | None:
        """The files of the split, if ``save_to_disk`` wrote this folder: of one split, or one folder per split."""
        place, split = self.folder, self.settings.split
        if (self.folder / _SPLITS).is_file():
            splits: list[str] = read_json(self.folder / _SPLITS)["splits"]
            if split not in splits:
                raise DataError(f"{self.where}: there is no split {split}; data.split is one of {', '.join(splits)}")
            place = self.folder / split
        elif not (self.folder / _STATE).is_file():
            return None
        state: dict[str, Any] = read_json(place / _STATE)
        own = state.get("_split")
        if split not in ("train", own) and place == self.folder:
            raise DataError(
                f"{self.where}: the folder holds the split {own or 'train'} alone: leave data.split={split} out"
            )
        return [place / Path(file["filename"]).name for file in state["_data_files"]]

    def _laid_out(self) -> Iterator[Document]:
        import datasets

        with quiet_datasets():
            builder = datasets.load_dataset_builder(str(self.folder), self.settings.subset)
            names = json_files(builder, self.settings.split)
            if names is not None:
                yield from file_texts(map(Path, names), self.tally)
            else:
                rows = dataset_rows(builder, self.settings.split, streaming=False)
                yield from dataset_texts(rows, self.where, self.tally)
