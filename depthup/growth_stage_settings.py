"""What a recipe's stages may say that make a checkpoint without training: import, surgery, experts, loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .settings import Made, Settings, StageSettings


class RandomModel(Settings):
    """A random tiny model of the Llama architecture, one token a byte: to try a recipe in seconds."""

    num_layers: int = Field(8, gt=0, description="Depth.")
    hidden_size: int = Field(64, ge=16, multiple_of=16, description="Width.")


class ImportStage(StageSettings):
    """A GGUF file, or a random tiny model, becomes a checkpoint folder. Give `gguf` or `random`."""

    kind: Literal["import"]
    gguf: str | None = Field(
        None, description="Path of the file; `package:NAME/FILE` is a file inside an installed package."
    )
    random: RandomModel | None = Field(None, description="`num_layers` and `hidden_size` of a random model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights; `auto` is the narrowest that holds every value exactly."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ImportStage:
        if (self.gguf is None) == (self.random is None):
            raise ValueError("give exactly one of gguf, random")
        if self.random is not None and self.dtype != "auto":
            raise ValueError("dtype goes with gguf; a random model is float32")
        return self


class _Planned(StageSettings):
    """What works by a plan. Give one of the last four settings."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"base": "checkpoint"}
    base: str = Field(description="Stage or checkpoint folder.")
    remove: int | None = Field(None, ge=0, description="m: layers removed from each copy (SOLAR: 8 of 32).")
    target_layers: int | None = Field(None, gt=0, description="s = 2 (n - m).")
    layers: str | None = Field(None, description="The plan itself, as in `0-23,8-31`.")
    preset: str | None = Field(None, description="A published plan: see `depthup layers --help`.")

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        given = [key for key in ("remove", "target_layers", "layers", "preset") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of remove, target_layers, layers, preset (given: {given or 'none'})")
        return self


class UpcycleStage(StageSettings):
    """Sparse upcycling (arXiv:2212.05055): each feed-forward becomes experts, which compute the same at first."""

    INPUTS: ClassVar[Mapping[str, Made]] = {"base": "checkpoint"}
    kind: Literal["upcycle"]
    base: str = Field(description="Stage or checkpoint folder: a dense model.")
    experts: int = Field(ge=2, le=4096, description="Copies of the feed-forward in a layer.")
    experts_per_token: int = Field(2, ge=1, description="Copies that a token goes to.")
    granularity: int = Field(1, ge=1, description="Parts of a copy, each an expert of its own; a power of two.")
    every: int = Field(1, ge=1, description="Each so many-th layer becomes sparse (Qwen2 and Qwen3 only).")
    router_std: float | None = Field(
        None, gt=0, lt=10, description="Standard deviation of the routers' weights; the config's, where it is not said."
    )
    expert_noise: float = Field(
        0.0, ge=0, lt=1, description="Noise on all copies but the first, as a share of each matrix's own deviation."
    )

    @model_validator(mode="after")
    def _enough_experts(self) -> UpcycleStage:
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token} of experts = {self.experts}")
        return self


class UpscaleStage(_Planned):
    """Surgery: base checkpoint + plan -> target checkpoint. Give one of remove, target_layers, layers, preset."""

    kind: Literal["upscale"]
    config: dict[str, Any] = Field(
        {}, description="Keys of the target's `config.json` that are set to other values; null takes one out."
    )


class LoopStage(_Planned):
    """A looped model: the base's layers, stored once, run in the order of a plan, an adapter at each seam
    (docs/growth.md). Of the groups under `rates`, `seam` is the adapters, `original` the layers."""

    kind: Literal["loop"]
    adapter: Literal["linear", "bridge", "none"] = Field("linear", description="What stands at each seam.")
    rank: int = Field(16, gt=0, le=65536, description="Width inside each adapter.")
