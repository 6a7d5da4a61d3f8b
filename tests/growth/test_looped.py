"""Looped models: what `depthup upscale` makes is the oracle for what they compute; transformers loads them alone."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from short_runs import SETTINGS, make_rows

from depthup import modeling_looped
from depthup.checkpoint.reader import open_checkpoint
from depthup.cli import main
from depthup.errors import CheckpointError, DepthupError, PlanError
from depthup.evaluation.requests import Continuation
from depthup.evaluation.scorer import LocalScorer
from depthup.generation.backend import Sampling
from depthup.generation.cache import allowed
from depthup.generation.greedy import forward
from depthup.generation.local import LocalBackend
from depthup.growth.freeze import read_freeze_map
from depthup.growth.looped import loop, plan_loop, unroll
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.models import findings_on_loading, load_model
from depthup.planning.compute import training_flops
from depthup.planning.shapes import shape_of
from depthup.training.loop import train
from depthup.training.objectives import choose_attention, require_document_mask, summed_loss
from depthup.training.optimizers import GroupRate
from depthup.training.parallel import alone as alone_world
from depthup.training.parallel import lay_out
from depthup.training.schedule import Schedule

PLAN = LayerPlan.upscale(pico.NUM_LAYERS, 2)
# Windows by layer; learnt places, another name for a layer's number; unlike layers, experts that are renamed.
USUAL = ("gemma2", "gpt_neo", "qwen2_moe")
NOT_LOOPED = {"bloom": "logits_to_keep", "mamba": "keeps more than keys", "gpt_neox": "another name on disk"}
FAMILIES = [
    pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow)
    for name in pico.FAMILIES
    if name not in NOT_LOOPED
]

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(base: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made("llama", adapter="bridge")``: a looped model of :data:`PLAN`; ``made("llama", adapter=None)``: copies."""
    root, folders = tmp_path_factory.mktemp("looped"), dict[Any, Path]()

    def build(family: str = "llama", adapter: str | None = "linear") -> Path:
        key = (family, adapter)
        if key not in folders:
            folders[key] = root / f"{family}-{adapter}"
            source = base(family, tokenizer=True)
            upscale(source, folders[key], PLAN) if adapter is None else loop(
                source, folders[key], PLAN, adapter=adapter, rank=4
            )
        return folders[key]

    return build


def awake(model: Any, seed: int = 0) -> Any:
    """The model with adapters that change something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.seams.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def texts(model: Any, num_tokens: int = 8) -> torch.Tensor:
    ids = pico.tokens(9)
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None
    )


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_at_first_it_computes_what_copied_layers_do(made: Made, family: str) -> None:
    """Logits to the bit, and generation with a cache, in which each visit has a place of its own."""
    looped, copied = load_model(made(family, "bridge")), pico.load(made(family, None))
    with torch.no_grad():
        one, other = (model(pico.tokens(40), output_hidden_states=True) for model in (looped, copied))
        assert torch.equal(one.logits, other.logits) and len(one.hidden_states) == len(other.hidden_states) == 11
        if family == "qwen2_moe":  # each visit's router is asked once
            one, other = (model(pico.tokens(), output_router_logits=True) for model in (looped, copied))
            assert len(one.router_logits) == len(other.router_logits) and one.aux_loss == other.aux_loss
    assert torch.equal(texts(looped), texts(copied))
    assert findings_on_loading(made(family, "bridge")) == []


@pytest.mark.parametrize(("family", "adapter"), [("llama", "linear"), ("gemma2", "bridge")])
def test_with_a_cache_as_without(made: Made, family: str, adapter: str) -> None:
    model = awake(load_model(made(family, adapter)))
    ids, found = pico.tokens(9), texts(model)
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)
    assert not torch.equal(found, texts(load_model(made(family, adapter))))
    assert allowed(model, forward).padding


def test_a_shared_layer_gets_the_gradients_of_both_its_copies(made: Made) -> None:
    looped, copied = load_model(made("gemma2")), pico.load(made("gemma2", None))
    for model in (looped, copied):
        model(pico.tokens(), labels=pico.tokens()).loss.backward()
    parts = dict(copied.named_parameters())
    for name, parameter in looped.named_parameters():
        if ".layers." not in name:
            continue
        layer, suffix = name.partition(".layers.")[2].split(".", 1)
        copies = [parts[f"model.layers.{target}.{suffix}"].grad for target in PLAN.targets_of(int(layer))]
        torch.testing.assert_close(parameter.grad, sum(copies), rtol=1e-4, atol=1e-6)
    down, up = looped.seams["5"].down.weight, looped.seams["5"].up.weight
    assert up.grad.abs().sum() > 0 and down.grad.abs().sum() == 0  # B is zero, so A does not matter yet


@pytest.mark.parametrize("recompute", ["none", "full", pytest.param("selective", marks=pytest.mark.slow)])
def test_packed_documents_are_as_alone_and_recomputed_as_kept(made: Made, recompute: str) -> None:
    """The loss of rows that hold several documents is the sum of their own losses; so are the gradients."""
    model = awake(load_model(made("gemma2", "bridge"))).train()
    require_document_mask(model)
    choose_attention(model)
    batch = make_rows().batch_of_step(0, 4, 0)
    lay_out(model, alone_world(), recompute=recompute)  # type: ignore[arg-type]
    loss = summed_loss(model, batch)
    loss.backward()
    alone = awake(load_model(made("gemma2", "bridge")))
    expected = torch.zeros(())
    for ids, places, labels in zip(batch.input_ids, batch.position_ids, batch.labels, strict=True):
        begins = [*(i for i, place in enumerate(places) if place == 0), len(ids)]
        for begin, end in itertools.pairwise(begins):
            wanted = torch.tensor(labels[begin:end])[None]
            logits = alone(torch.tensor(ids[begin:end])[None].long()).logits
            expected = expected + torch.nn.functional.cross_entropy(
                logits[0], wanted[0].long(), ignore_index=-100, reduction="sum"
            )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for (name, one), (_, other) in zip(model.named_parameters(), alone.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_shared_beginnings_are_computed_once_and_scored_as_alone(made: Made) -> None:
    drawn = random.Random(0)
    words = ["the", "user", "asks", "question", "what", "is", "sum", "of", "first", "and", "second"]
    header = " ".join(drawn.choices(words, k=30))
    requests = [Continuation(f"{header} {drawn.choice(words)}:", f" {word}") for word in words]
    folder = made("llama", "bridge")
    scorer = LocalScorer(awake(load_model(folder)), _tokenizer(folder))
    together = scorer.answer(requests)
    assert scorer.shares
    model = awake(load_model(folder))
    for request, (score, _) in zip(requests, together, strict=True):
        path = scorer.encoder.continuations([request])[0]
        ids = torch.tensor(path.tokens.astype("int64"))[None]
        with torch.no_grad():
            found = model(ids[:, :-1]).logits[0].log_softmax(-1)
        wanted = found[-path.num_scored :].gather(1, ids[0, -path.num_scored :, None]).sum()
        assert score == pytest.approx(wanted.item(), abs=1e-4)
    prompts = [request.context for request in requests]
    backend = LocalBackend(model, _tokenizer(folder))
    single = [backend.generate([prompt], Sampling(5))[0] for prompt in prompts]
    assert backend.generate(prompts, Sampling(5)) == single


def _tokenizer(folder: Path) -> Any:
    from depthup.models import load_tokenizer

    return load_tokenizer(folder)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_every_layer_is_stored_once_by_its_bytes_and_name(made: Made, base: Made) -> None:
    source, held = pico.raw(base("llama", tokenizer=True)), pico.raw(made("llama"))
    adapters = {name for name in held if name.startswith("seams.")}
    assert adapters == {"seams.5.down.weight", "seams.5.up.weight"}
    assert {name: held[name] for name in held.keys() - adapters} == source
    looping = plan_loop(open_checkpoint(base("llama", tokenizer=True)), PLAN, rank=4)
    assert looping.num_adapter == 2 * 4 * 32
    assert looping.num_equal == open_checkpoint(made("llama", None)).num_parameters
    assert looping.surgery.num_parameters == open_checkpoint(made("llama")).num_parameters


def test_layers_that_no_visit_needs_are_left_out(base: Made, tmp_path: Path) -> None:
    plan = LayerPlan.parse("0-2,1-2,5-6", pico.NUM_LAYERS)
    looping = loop(base("gemma2"), tmp_path / "looped", plan)
    upscale(base("gemma2"), tmp_path / "copied", plan)
    model = load_model(tmp_path / "looped")
    assert model.config.visits == [0, 1, 2, 1, 2, 3, 4] and list(model.seams) == ["3", "5"]
    with torch.no_grad():
        logits = pico.load(tmp_path / "copied")(pico.tokens(40)).logits
        assert torch.equal(model(pico.tokens(40)).logits, logits)
    assert "5 stored layers" in looping.describe()


ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
assert "depthup" not in sys.modules and type(model).__module__.startswith("transformers_modules")
ids = torch.arange(1, 19).view(2, 9)
found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None)
model.save_pretrained(sys.argv[2])
torch.save((model(ids).logits.detach(), found), sys.argv[3])
"""


@pytest.mark.slow
def test_transformers_loads_and_saves_it_without_depthup(made: Made, tmp_path: Path) -> None:
    model = awake(load_model(made("gemma2", "bridge")))
    model.save_pretrained(tmp_path / "saved")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    places = [str(tmp_path / name) for name in ("saved", "again", "found.pt")]
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, *places], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    logits, found = torch.load(tmp_path / "found.pt")
    ids = torch.arange(1, 19).view(2, 9)
    again = load_model(tmp_path / "again")
    for one in (model, again):
        with torch.no_grad():
            assert torch.equal(one(ids).logits, logits)
        assert torch.equal(
            one.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None
            ),
            found,
        )
    assert pico.read_json(tmp_path / "again" / "config.json")["text_config"]["num_hidden_layers"] == pico.NUM_LAYERS
    assert findings_on_loading(tmp_path / "again") == []


def test_code_that_is_not_depthups_is_named_and_not_run(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made("llama"), tmp_path / "other")
    code = tmp_path / "other" / Path(modeling_looped.__file__).name
    code.write_text("raise SystemExit\n")
    with pytest.warns(UserWarning, match="which runs its own"):
        model = load_model(tmp_path / "other")
    assert type(model) is modeling_looped.LoopedForCausalLM
    assert "which runs its own" in str(findings_on_loading(tmp_path / "other")[0])


def test_unrolled_it_is_what_upscale_writes(made: Made, tmp_path: Path) -> None:
    for family in ("llama", "qwen2_moe"):
        unroll(made(family), tmp_path / family)
        names = {path.name for path in (tmp_path / family).iterdir()}
        assert names == {path.name for path in made(family, None).iterdir()}
        for name in names - {"depthup.json"}:
            assert (tmp_path / family / name).read_bytes() == (made(family, None) / name).read_bytes()
    awake(load_model(made("llama"))).save_pretrained(tmp_path / "trained")
    with pytest.raises(CheckpointError, match="visit 5 changes the stream"):
        unroll(tmp_path / "trained", tmp_path / "no")
    unroll(tmp_path / "trained", tmp_path / "yes", drop_adapters=True)
    assert pico.raw(tmp_path / "yes") == pico.raw(made("llama", None))
    with pytest.raises(CheckpointError, match="is no looped model"):
        unroll(tmp_path / "yes", tmp_path / "no")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "options", "said"),
    [
        ("0-6", {}, "visits no layer twice"),
        ("0-4,4:identity,5-6", {}, "starts layers as identity"),
        ("0-4,2-6", {"adapter": "brige"}, "did you mean 'bridge'"),
        ("0-4,2-6", {"rank": 0}, "rank 0"),
    ],
)
def test_wrong_plans_are_refused(base: Made, plan: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_loop(open_checkpoint(base("llama")), LayerPlan.parse(plan, pico.NUM_LAYERS), **options)


@pytest.mark.parametrize("family", NOT_LOOPED)
def test_families_that_cannot_be_looped_are_refused(base: Made, family: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot be looped.*{NOT_LOOPED[family]}"):
        plan_loop(open_checkpoint(base(family)), PLAN)


def test_a_layer_that_would_be_of_another_kind_is_refused(base: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in any family's config does this, once surgery has carried it: the carried config is bent here."""
    from depthup.growth import looped

    given = looped._config
    monkeypatch.setattr(looped, "_config", lambda *arguments: _bent(given(*arguments)))
    with pytest.raises(PlanError, match=r"base layer 2 would be visited as layer 5, .*layer_type is sliding"):
        plan_loop(open_checkpoint(base("gemma2")), PLAN)


def _bent(config: dict[str, Any]) -> dict[str, Any]:
    kinds = config["visited"]["layer_types"]
    kinds[5] = next(kind for kind in kinds if kind != kinds[5])
    return config


def test_it_is_not_grown_as_if_its_layers_were_its_depth(made: Made, tmp_path: Path) -> None:
    for make in (upscale, loop):
        with pytest.raises(DepthupError, match="depthup unroll"):
            make(made("llama"), tmp_path / "out", PLAN)


# -- training ----------------------------------------------------------------------------------------------------------


def test_adapters_alone_are_trained_and_a_stopped_run_goes_on(made: Made, tmp_path: Path) -> None:
    folder = made("llama", "bridge")
    rates = {"original": GroupRate(0), "outside": GroupRate(0)}
    settings = replace(SETTINGS, schedule=Schedule("constant", 4), rates=rates, checkpoint_every=2)

    def run(name: str, stop_at: int = 0) -> Any:
        model, calls = load_model(folder), 0

        def objective(model: Any, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise RuntimeError("stopped")
            from depthup.training.objectives import causal_lm

            return causal_lm(model, batch)

        groups = read_freeze_map(folder).groups(name for name, _ in model.named_parameters())
        (tmp_path / name).mkdir(exist_ok=True)
        train(model, make_rows(), objective, settings, tmp_path / name, groups=groups, progress=False)
        return model

    whole, before = run("whole"), dict(load_model(folder).named_parameters())
    changed = {name for name, value in whole.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"seams.5.gate", "seams.5.up.weight", "seams.5.down.weight"}
    with pytest.raises(RuntimeError, match="stopped"):
        run("stopped", stop_at=4)
    for name, value in run("stopped").named_parameters():
        assert torch.equal(value, dict(whole.named_parameters())[name])


def test_its_costs_are_the_bases_weights_and_the_plans_work(made: Made, base: Made) -> None:
    looped, copied = (shape_of(open_checkpoint(made("gemma2", adapter))) for adapter in ("linear", None))
    assert looped.num_parameters == open_checkpoint(made("gemma2")).num_parameters
    assert training_flops(looped, 64) == training_flops(copied, 64)
    assert [layer.window for layer in looped.layers] == [layer.window for layer in copied.layers]


def test_the_verbs(base: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(base("llama", tokenizer=True)), tmp_path / "looped"
    command = ["loop", source, str(out), "--remove", "2", "--adapter", "bridge", "--rank", "4", "--link"]
    assert main([*command, "--dry-run"]) == 0 and not out.exists()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "10 of 7 stored layers" in shown and "(385 in adapters)" in shown
    weights = [path for path in out.glob("*.safetensors") if path.stat().st_nlink > 1]
    assert len(weights) == 1  # the base's own file; the adapter has another
    assert main(["check", str(out)]) == 0 and main(["generate", str(out), "--prompt", "the user"]) == 0
    assert main(["check", str(out), "--against", source]) == 2
    assert main(["unroll", str(out), str(tmp_path / "unrolled")]) == 0
    assert main(["check", str(tmp_path / "unrolled"), "--against", source]) == 0
    assert main(["loop", source, str(tmp_path / "no"), "--layers", "0-6"]) == 2
    manifest = json.loads((out / "depthup.json").read_text())
    assert manifest["made_by"] == "looping" and manifest["visits"]["layers"] == "0-4,2-6"
