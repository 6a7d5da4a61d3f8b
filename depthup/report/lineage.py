"""What the records of a run tell of one another: who comes from whom, tokens seen, which model is the control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from ..artifacts.record import Record

Records = Mapping[str, Record]
Role = Literal["model", "data", "measure"]
TRAINING = ("pretrain", "sft", "dpo", "sdpo")


def role_of(record: Record) -> Role:
    """What a stage leaves: a model, data, or figures of others."""
    if "files" in record.results:
        return "data"
    return "model" if "num_layers" in record.results and "model" not in record.results else "measure"


def lineage(names: Iterable[str], records: Records) -> list[Record]:
    """The records of ``names`` and of all that they come from, in the order of the recipe."""
    wanted = set(names)
    for name in reversed(list(records)):
        if name in wanted:
            wanted |= records[name].inputs.keys()
    return [record for name, record in records.items() if name in wanted]


def models_behind(name: str, records: Records) -> list[Record]:
    """The model and every model whose weights went into it, in the order of the recipe; data are not followed."""
    wanted = {name}
    for other in reversed(list(records)):
        if other in wanted:
            wanted |= {source for source in records[other].inputs if _is_model(source, records)}
    return [record for other, record in records.items() if other in wanted and role_of(record) == "model"]


def tokens_seen(name: str, records: Records) -> int:
    """Training tokens since the base: those of the model and of every model that it comes from, each once."""
    return sum(
        run.get("num_tokens_seen", 0)
        for record in models_behind(name, records)
        for run in (record.results, *record.results.get("chunks", ()))  # the steps of sDPO are runs of their own
    )


def tokens_trained(record: Record) -> int:
    """Training tokens of this stage alone."""
    return sum(run.get("num_tokens_seen", 0) for run in (record.results, *record.results.get("chunks", ())))


def surgery_of(name: str, records: Records) -> Record | None:
    """The last stage behind a model that changed its layers; None for a model that was not grown."""
    found = [one for one in models_behind(name, records) if "plan" in one.results]
    return found[-1] if found else None


def trained_target(shown: Iterable[Record], records: Records) -> Record | None:
    """The first continued pretraining of a grown model."""
    return next((one for one in shown if one.kind == "pretrain" and surgery_of(one.stage, records)), None)


def control_of(shown: Iterable[Record], records: Records) -> Record | None:
    """The base of the first grown model, trained on without growing: what tells depth from data; None for none."""
    shown = list(shown)
    surgery = next((one for one in shown if "plan" in one.results), None)
    if surgery is None:
        return None
    bases = {one.stage for one in models_behind(surgery.stage, records)} - {surgery.stage}
    return next(
        (
            one for one in shown
            if one.kind == "pretrain" and surgery_of(one.stage, records) is None
            and (one.identity.get("model") == surgery.identity.get("base", "")
                 or bases & {behind.stage for behind in models_behind(one.stage, records)})
        ),
        None,
    )  # fmt: skip


def _is_model(name: str, records: Records) -> bool:
    return name in records and role_of(records[name]) == "model"
