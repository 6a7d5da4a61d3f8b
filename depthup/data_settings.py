"""What a recipe's data may say: one class for each source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from .settings import Settings, free


class _Data(Settings):
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of documents that is held out, chosen by hash.")
    max_documents: int | None = Field(None, gt=0, description="Use at most so many documents of each side.")
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="Stop reading a side behind the document that reaches so many tokens: a data set on the"
        " hub is streamed only so far. Not for preference pairs.",
    )
    licence: str | None = free(None, "Of the data, for cards; of what stages make, that of the rows.")


class InstalledDocsData(_Data):
    """Documentation that Python and installed packages carry: real text on every machine, without a network."""

    source: Literal["installed-docs"]
    packages: tuple[str, ...] = Field(
        ("python",),
        min_length=1,
        description="`python` is the language reference, `stdlib` the standard library's docstrings, any other name"
        " the docstrings of that package.",
    )
    min_characters: int = Field(400, ge=0, description="Shorter docstrings are left out.")


class FilesData(_Data):
    """Local files: .jsonl, .json, .txt (each also with .gz), .parquet, or folders of them."""

    source: Literal["files"]
    paths: tuple[str, ...] = Field(
        min_length=1,
        description="Files or folders, relative to the working folder; `$DEPTHUP_DATA/...` lies in the folder that this"
        " variable names.",
    )
    field: str = Field("text", description="The row's field that holds the text.")


class HubData(_Data):
    """A data set by its name on the Hugging Face Hub, streamed."""

    source: Literal["hub"]
    name: str = Field(description="As in `HuggingFaceFW/fineweb-edu`.")
    config: str | None = Field(None, description="The data set's configuration.")
    split: str = Field("train", description="The data set's split.")
    field: str = Field("text", description="The column that holds the text.")
    revision: str | None = Field(None, description="A commit, so that the text cannot change.")


class StageData(_Data):
    """What a stage above makes: the rows of `synthesize`, the pairs of `alignment`, what `decontaminate` keeps."""

    source: Literal["stage"]
    stage: str = Field(description="Name of the stage.")
    field: str = Field("text", description="The row's field that holds the text, for plain text.")


class JoinedData(Settings):
    """Preference pairs of several of the data above, one after the other; sDPO's chunks by source are these parts."""

    source: Literal["joined"]
    parts: tuple[str, ...] = Field(min_length=2, description="Names of entries.")


class MixtureData(Settings):
    """Several of the data above, mixed by rows in exact shares."""

    source: Literal["mixture"]
    parts: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=2, description="Weight of each entry, by its name; only their ratios count."
    )


DataSettings = Annotated[
    InstalledDocsData | FilesData | HubData | StageData | MixtureData | JoinedData, Field(discriminator="source")
]
PlainData = InstalledDocsData | FilesData | HubData | StageData
DATA_KINDS: dict[str, type[Settings]] = {
    "installed-docs": InstalledDocsData, "files": FilesData, "hub": HubData, "stage": StageData,
    "mixture": MixtureData, "joined": JoinedData,
}  # fmt: skip


def parts_of(data: Mapping[str, Any], name: str) -> dict[str, float]:
    """The entries that an entry is mixed or joined of, with their weights; itself, where it is neither."""
    entry = data[name]
    if isinstance(entry, MixtureData):
        return dict(entry.parts)
    return dict.fromkeys(entry.parts, 1.0) if isinstance(entry, JoinedData) else {name: 1.0}
