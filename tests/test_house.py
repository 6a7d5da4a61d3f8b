"""The rules of the house, read from the sources: who may import whom, which engine has which door, what starts fast.

To add a room, add its row to ``MAY_IMPORT``; to add a heavy or optional package, its row to ``DOORS``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import depthup

ROOT = Path(depthup.__file__).parent
ANY = "*"
VERBS = frozenset(path.stem for path in ROOT.glob("*_verb.py"))  # each verb that has a module of its own

STAGES = frozenset(path.stem for path in ROOT.glob("*_stage.py"))  # each stage kind that has one

# Every room may import these; what they may import themselves stands in the table.
COMMON = frozenset({"errors", "files", "layers", "models"})
# room (a package or a module of depthup) -> the others that it may import besides COMMON; a dotted name allows that
# module alone. A lazy import inside a function counts: it is an edge all the same. TYPE_CHECKING does not.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "layers": frozenset(),
    "composition": frozenset(),
    "drawing": frozenset(),
    "grammar": frozenset(),
    "files": frozenset(),
    "modeling_looped": frozenset(),
    "models": frozenset({"checkpoint", "modeling_looped"}),
    "gguf_models": frozenset(),
    "blending": frozenset(),
    "presets": frozenset(),
    "plan_options": frozenset({"presets", "growth", "blending"}),
    "checkpoint": frozenset(),
    "artifacts": frozenset(),
    "data": frozenset(),
    "generation": frozenset(),
    "growth": frozenset({"checkpoint", "modeling_looped"}),
    "merging": frozenset({"checkpoint"}),
    "probe": frozenset({"checkpoint", "growth.norms", "growth.residual", "growth.history"}),
    "conversion": frozenset({"checkpoint", "gguf_models"}),
    "costs": frozenset({"checkpoint"}),
    "planning": frozenset({"checkpoint", "costs"}),
    "training": frozenset({"data"}),
    "evaluation": frozenset({"data", "training.objectives", "generation.backend", "generation.greedy"}),
    "synthesis": frozenset({"generation"}),
    "contamination": frozenset({"artifacts.fingerprint"}),
    "fitting": frozenset({"artifacts", "checkpoint", "planning"}),
    "choosing": frozenset(
        {
            "artifacts",
            "checkpoint",
            "costs",
            "data",
            "evaluation.distributions",
            "fitting",
            "growth",
            "probe",
            "training",
        }
    ),
    "report": frozenset(
        {
            "evaluation.scores",
            "evaluation.statistics",
            "evaluation.compare",
            "evaluation.strengths",
            "evaluation.paper_tables",
            "evaluation.paper_merges",
            "evaluation.results",
            "artifacts",
            "costs",
            "fitting",
        }
    ),
    "settings": frozenset(),
    "data_settings": frozenset({"settings"}),
    "data_stage_settings": frozenset({"settings"}),
    "growth_stage_settings": frozenset({"settings"}),
    "stage_settings": frozenset({"presets", "settings", "data_stage_settings", "growth_stage_settings"}),
    "recipe_file": frozenset(),
    "recipe": frozenset(
        {"presets", "settings", "data_settings", "data_stage_settings", "stage_settings", "recipe_file"}
    ),
    "alignment": frozenset({"synthesis", "data"}),
    "stage_data": frozenset({ANY}),
    "data_stages": frozenset({ANY}),
    **{stage: frozenset({ANY}) for stage in STAGES},
    "training_run": frozenset({ANY}),
    "training_stages": frozenset({ANY}),
    "training_verbs": frozenset({ANY}),
    "stages": frozenset({ANY}),
    "pipeline": frozenset({ANY}),
    "reference": frozenset(
        {
            "cli",
            "stage_settings",
            "data_settings",
            "data_stage_settings",
            "growth_stage_settings",
            "presets",
            "drawing",
            "report",
        }
    ),
    "why": frozenset({"artifacts", "pipeline"}),
    "adoption": frozenset({ANY}),
    "jobs": frozenset({"artifacts", "launching", "pipeline", "recipe", "stages"}),
    "launching": frozenset({"stage_settings"}),
    "live_view": frozenset({"pipeline"}),
    "workloads": frozenset(
        {
            "recipe",
            "stages",
            "presets",
            "checkpoint",
            "conversion.gguf_header",
            "growth.freeze",
            "planning",
            "evaluation.suites",
            "data_settings",
            "stage_settings",
            "data_stage_settings",
            "growth_stage_settings",
        }
    ),
    "recipe_verbs": frozenset({ANY}),
    **{verb: frozenset({ANY}) for verb in VERBS},
    "cli": frozenset({ANY}),
    "__main__": frozenset({"cli"}),
}
# The ground floor imports only what stands here.
GROUND = {
    "errors": set(), "composition": {"errors"}, "drawing": set(), "grammar": {"errors"},
    "layers": {"errors", "composition", "drawing", "grammar"},
    "files": {"errors"},
    "models": {"errors", "files", "checkpoint", "modeling_looped"},
}  # fmt: skip
# Nobody imports from above: recipe is for stages and what stands on them, stages for pipeline, pipeline for cli.
_RECIPES = {
    "recipe", "stage_data", *STAGES, "data_stages", "training_run", "training_stages", "stages", "pipeline",
    "workloads", "reference",
}  # fmt: skip
ABOVE = {
    "settings": {"data_settings", "data_stage_settings", "growth_stage_settings", "stage_settings", *_RECIPES},
    "data_settings": _RECIPES,
    "data_stage_settings": {"stage_settings", *_RECIPES},
    "growth_stage_settings": {"stage_settings", "adoption", *_RECIPES},
    "alignment": {"data_stages", *VERBS},
    "data_stages": {"stages", *VERBS},
    **{stage: {"stages", *VERBS} for stage in STAGES},
    "stage_settings": {
        *STAGES,
        "push_verb",
        "data_stages",
        "recipe",
        "stage_data",
        "score_stage",
        "training_run",
        "training_stages",
        "stages",
        "pipeline",
        "workloads",
        "reference",
        "adoption",
        "launching",
    },
    "recipe": {
        "data_stages",
        "report_stage",
        "adoption",
        "jobs",
        "stage_data",
        "score_stage",
        "training_stages",
        "stages",
        "pipeline",
        "workloads",
        "recipe_verbs",
        *VERBS,
    },
    "stage_data": {
        *STAGES,
        "data_stages",
        "training_run",
        "training_stages",
        "stages",
        "pipeline",
    },
    "training_run": {"training_stages", *STAGES, "stages", "adoption"},
    "training_stages": {"stages", "training_verbs"},
    "training_verbs": {"cli"},
    "stages": {"pipeline", "workloads", "jobs"},
    "pipeline": {"why", "adoption", "jobs", "live_view", "recipe_verbs", "training_verbs", *VERBS},
    "workloads": {"plan_verb"},
    "recipe_verbs": {*VERBS, "training_verbs", "cli"},
    **{verb: {"cli", *VERBS} for verb in VERBS},
    "cli": {"__main__", "reference"},
    "reference": set(),
    "__main__": set(),
}
# package -> the only modules that may import it (a room stands for all its modules).
DOORS: dict[str, set[str]] = {
    # modeling_looped.py must stand alone
    "transformers": {"models", "gguf_models", "modeling_looped", "checkpoint.filled"},
    "lm_eval": {"evaluation.harness", "evaluation.harness_tasks", "evaluation.harness_templates",
                "evaluation.harness_lm"},
    "torch": {"models", "gguf_models", "modeling_looped", "training", "data", "generation", "evaluation", "probe",
              "growth.learned", "growth.norms", "growth.upcycle", "growth.looped", "conversion",
              "contamination.membership", "contamination.embeddings", "choosing.probes", "stages", "training_run",
              "training_stages", "pipeline"},
    "httpx": {"generation.server", "checkpoint.remote"},
    "huggingface_hub": {"checkpoint.remote", "checkpoint.listing", "checkpoint.upload"},
    "urllib": {"checkpoint.web", "checkpoint.answers", "checkpoint.listing"},
    "http": {"checkpoint.web", "checkpoint.answers"},
    "pydantic": {"recipe", "settings", "data_settings", "data_stage_settings",
                 "growth_stage_settings", "stage_settings", "artifacts"},
    "fsspec": {"artifacts.mirror"},
    "yaml": {"recipe_file", "report.card", "growth.mergekit", "growth.mergekit_import"},
    "gguf": {"conversion.gguf", "gguf_models"},
    "jinja2": {"report"},
    "numba": {"contamination.text"},
}  # fmt: skip
# Modules that must load without torch, even indirectly.
LIGHT = (
    "cli", "recipe_verbs", "recipe", "pipeline", "why", "adoption", "jobs", "launching", "live_view",
    "plan_options", "layers",
    "blending", "presets", "checkpoint",
    "growth.surgery", "growth.upcycle", "growth.adapters", "artifacts", "costs", "files", "errors", "report",
    "planning", "workloads",
    *VERBS, "conversion.gguf_header", "merging", "synthesis", "evaluation.scores",
    "evaluation.requests", "evaluation.suites", "evaluation.sources", "evaluation.prepared", "evaluation.harness",
    "evaluation.distributions", "evaluation.statistics", "evaluation.pairs", "evaluation.compare", "evaluation.results",
    "evaluation.results_form", "evaluation.foreign_results", "evaluation.samples", "evaluation.paper_tables",
    "evaluation.paper_merges", "evaluation.strengths",
    "contamination.audit", "contamination.scanner", "contamination.rules", "generation.backend", "generation.server",
    "evaluation.backend_scorer",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import statement: ``where`` imports ``what``; both absolute, in depthup without that prefix."""

    where: str
    what: str
    inside: bool  # of depthup
    line: int

    def __str__(self) -> str:
        return f"{self.where}:{self.line} imports {self.what}"


@cache
def module_names() -> dict[str, Path]:
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(name: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    skipped = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                inside = alias.name.split(".")[0] == "depthup"
                yield Import(name, alias.name.removeprefix("depthup."), inside, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            inside = node.level > 0 or (node.module or "").split(".")[0] == "depthup"
            origin = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*origin, *([(node.module or "").removeprefix("depthup.")] if node.module else [])])
            known = module_names()
            for alias in node.names:
                full = f"{module}.{alias.name}".strip(".")
                yield Import(name, full if inside and full in known else module, inside, node.lineno)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for name, path in module_names().items() for found in imports_of(name, path))


def room(module: str) -> str:
    return module.split(".")[0]


def within(module: str, names: set[str] | frozenset[str]) -> bool:
    """Whether a module is one of the names, or stands in one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def test_every_room_has_a_row_in_the_table() -> None:
    rooms = {room(name) for name in module_names() if name}
    assert rooms <= MAY_IMPORT.keys(), rooms - MAY_IMPORT.keys()


def test_rooms_import_only_the_rooms_that_the_table_allows() -> None:
    wrong = []
    for found in all_imports():
        if not found.inside or not found.what or room(found.where) == room(found.what):
            continue
        allowed = MAY_IMPORT.get(room(found.where), frozenset()) | COMMON
        if room(found.where) in GROUND:
            allowed = GROUND[room(found.where)]
        if ANY not in allowed and not within(found.what, allowed):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_nothing_is_imported_from_above() -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if found.inside and room(found.what) in ABOVE and room(found.where) != room(found.what)
        and room(found.where) not in ABOVE[room(found.what)]
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_rooms_stand_in_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for found in all_imports():
        if found.inside and found.what and room(found.where) != room(found.what):
            edges.setdefault(room(found.where), set()).add(room(found.what))
    done: set[str] = set()
    while ready := {name for name, others in edges.items() if name not in done and others - edges.keys() <= others
                    and not (others & edges.keys()) - done}:  # fmt: skip
        done |= ready
    assert done == edges.keys(), f"a circle among {sorted(edges.keys() - done)}"


@pytest.mark.parametrize("package", DOORS)
def test_each_engine_has_its_doors(package: str) -> None:
    wrong = [
        str(found) for found in all_imports()
        if not found.inside and room(found.what) == package and not within(found.where, DOORS[package])
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after running code in a fresh interpreter."""
    code += "\nimport sys; print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_light_rooms_load_no_torch() -> None:
    modules = sorted(name for name in module_names() if within(name, set(LIGHT)))
    assert {"cli", "recipe", "layers", "checkpoint.reader", "growth.surgery"} <= set(modules)
    loaded = loaded_by("; ".join(f"import depthup.{name}" for name in modules))
    assert not loaded & {"torch", "transformers", "accelerate", "lm_eval", "datasets"}


def test_surgery_needs_the_standard_library_alone() -> None:
    loaded = loaded_by("import depthup.growth.surgery, depthup.checkpoint.check, depthup.presets")
    assert loaded - set(sys.stdlib_module_names) - {"depthup", "__main__", "sitecustomize"} <= loaded_by("pass")


def test_help_loads_neither_torch_nor_pydantic() -> None:
    code = "import runpy, sys; sys.argv = ['depthup', '--help']\ntry: runpy.run_module('depthup', None, '__main__')\n"
    loaded = loaded_by(code + "except SystemExit as end: assert not end.code")
    assert "depthup" in loaded and not loaded & {"torch", "transformers", "pydantic", "numpy", "yaml", "jinja2"}


def test_every_module_states_what_it_is_for_and_keeps_the_budgets() -> None:
    """A docstring, under 400 lines, functions of at most 60 (design, section 4)."""
    wrong = []
    for name, path in module_names().items():
        text = path.read_text()
        tree = ast.parse(text)
        if text.strip() and not ast.get_docstring(tree):
            wrong.append(f"{name}: no docstring")
        if text.count("\n") > 400:
            wrong.append(f"{name}: {text.count(chr(10))} lines")
        wrong += [
            f"{name}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
        ]
    assert not wrong, "\n".join(wrong)
