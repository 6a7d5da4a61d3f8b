"""lm-eval made quick and quiet while depthup drives it: templates compiled once, remarks kept from the screen."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

from lm_eval import utils
from lm_eval.api import task as task_module


@contextmanager
def compiled_templates(remember: bool = False) -> Iterator[None]:
    """Let lm-eval render from templates that are compiled once; by itself it compiles one anew for each text.

    An ARC prompt of 25 examples takes it 80 compilations. Not for use in several threads at once.

    Args:
        remember: Whether a text that a document gave, and the list that was read from it, are kept for the next time;
            for documents that nobody changes.
    """
    stock, stock_ast = utils.apply_template, task_module.ast
    compiled: dict[str, Any] = {}
    texts: dict[tuple[str, int], tuple[Any, str]] = {}

    def render(template: str, doc: dict[str, Any]) -> str:
        if template not in compiled:
            compiled[template] = utils.env.from_string(template)
            compiled[template].globals = dict(compiled[template].globals)  # a plain dict is read several times faster
        if not remember:
            return compiled[template].render(**doc)
        key = (template, id(doc))
        if key not in texts:
            texts[key] = (doc, compiled[template].render(**doc))  # the document is kept, so that no other has its id
        return texts[key][1]

    utils.apply_template = render
    if remember:
        task_module.ast = SimpleNamespace(literal_eval=cache(ast.literal_eval))
    try:
        yield
    finally:
        utils.apply_template, task_module.ast = stock, stock_ast


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's remarks on its own tasks from the screen; errors are still shown."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
