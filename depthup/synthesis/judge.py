"""A process that compares answers with math-verify, one JSON line in, one out; :mod:`.verify` starts and ends it.

It runs as a file of its own (``python -P judge.py``), so it imports nothing of depthup. Each line in is
``[gold, answer]``, each line out ``[equal, gold as parsed, answer as parsed, failure]``; the first line out says that
math-verify is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import sys

MAX_MEMORY_BYTES = 4 << 30  # powers of powers fill any memory


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(3000)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError):
        pass  # no such limits on this system
    from math_verify import parse, verify

    parse("$1$", parsing_timeout=None), verify(1, 1, timeout_seconds=None)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            # The caller's clock ends this process, so the library's own alarms stay off.
            forms = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
            equal = bool(verify(forms[0], forms[1], timeout_seconds=None))
            reply = [equal, _shown(forms[0]), _shown(forms[1]), ""]
        except (Exception, RecursionError) as error:  # whatever it is, the two are not known to be equal
            reply = [False, "", "", f"{type(error).__name__}: {error}"[:200]]
        print(json.dumps(reply), file=answers, flush=True)


def _shown(form: object) -> str:
    found = form[0] if isinstance(form, list) and form else ""
    return str(found)[:200]


if __name__ == "__main__":
    main()
