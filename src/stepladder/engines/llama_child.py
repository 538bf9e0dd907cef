"""The process that holds one GGUF model: ``python -m stepladder.engines.llama_child``.

It reads one JSON line of settings on stdin, loads the model, and answers with one JSON line on stdout: ``{"port": …}``
once the server answers, or ``{"error": …, "kind": "import" | "load"}``. Then it serves OpenAI's HTTP API on the
loopback address until stdin closes or its parent is gone. llama.cpp may abort the process that it lives in; here it
takes nothing else with it.

Settings: ``model`` (path), ``n_ctx`` (tokens over all slots; 0: the model's own, shared by the slots), ``n_parallel``
(slots), ``threads``, ``load_timeout_s``, and if wanted ``api_key``, ``alias`` (the model's name in replies) and
``speculation``: ``path`` (a drafter's file; null: n-grams), ``n_max``, ``p_min``, ``n_match``.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, NoReturn
from urllib.parse import urlsplit

PARENT_CHECK_S = 1.0
"""Stdin's end is seen at once; this is for a parent whose pipe some other process has inherited."""

ERRORS_ONLY = 1
"""llama.cpp's verbosity that prints why a file cannot be loaded, and nothing in ordinary work."""

LAST_WORDS_S = 0.3
"""llama.cpp writes its log in a thread of its own; who left at once would cut off why a file cannot be loaded."""


def main() -> int:
    """Serve until stdin closes; the exit status is 0, or 1 where the model could not be loaded."""
    settings = json.loads(_first_line())
    watcher = threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True)
    watcher.start()
    try:
        server = _serve(settings)
        port = _wait_until_healthy(server.listening_address, float(settings["load_timeout_s"]))
    except ImportError as error:
        return _say(1, error=str(error), kind="import")
    except (RuntimeError, ValueError, OSError) as error:
        time.sleep(LAST_WORDS_S)
        return _say(1, error=str(error), kind="load")
    _say(0, port=port)
    watcher.join()
    return 0


def _first_line() -> bytes:
    """Read byte by byte, since anything buffered here would be hidden from ``select`` later."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


def _serve(settings: Mapping[str, Any]) -> Any:
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else an abort attaches a debugger where one is installed
    import xllamacpp

    params = _params(xllamacpp.CommonParams(), settings)
    if settings.get("speculation"):
        _speculate(params, xllamacpp.common_speculative_type, settings["speculation"])
    return xllamacpp.Server(params)


def _speculate(params: Any, kinds: Any, wanted: Mapping[str, Any]) -> None:
    """Name the kind of drafter: llama.cpp's other kinds abort the process with models that were not made for them.

    It must be done here: llama.cpp reads no request's wish to speculate or not.
    """
    speculative = params.speculative
    if wanted["path"] is None:
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        speculative.ngram_simple.size_n = int(wanted["n_match"])
        speculative.ngram_simple.size_m = int(wanted["n_max"])
        return
    draft, threads = speculative.draft, params.cpuparams.n_threads
    speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    draft.mparams.path = wanted["path"]
    draft.n_max, draft.p_min = int(wanted["n_max"]), float(wanted["p_min"])
    draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads


def _params(params: Any, settings: Mapping[str, Any]) -> Any:
    slots = int(settings["n_parallel"])
    params.model.path = settings["model"]
    params.model_alias = {settings.get("alias") or "local"}  # else every reply names the path
    params.n_ctx = int(settings["n_ctx"])
    params.kv_unified = params.n_ctx == 0
    params.n_parallel = slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(settings["threads"])
    params.n_threads_http = 2 * slots + 4  # a kept-alive connection holds one of these even while it is idle
    params.api_keys = [settings["api_key"]] if settings.get("api_key") else []
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.check_tensors = True
    params.verbosity = ERRORS_ONLY
    params.cache_ram_mib = 0  # prompts of finished requests would be kept, up to 8 GiB of them
    params.fit_params = False  # would shrink the context that was asked for
    params.offline = True
    params.ui = False
    return params


def _wait_until_healthy(address: str, timeout_s: float) -> int:
    """The port, once /health says 200; also a server dropped before its first answer can hang llama.cpp."""
    port = urlsplit(address).port
    if port is None:
        raise RuntimeError(f"the server names no port: {address}")
    deadline = time.monotonic() + timeout_s
    while not _healthy(port):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server was not healthy within {timeout_s:g} s")
        time.sleep(0.01)
    return port


def _healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _leave_with_parent(parent: int) -> NoReturn:
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], PARENT_CHECK_S)
        if readable and not os.read(0, 4096):
            break
    os._exit(0)  # no destructors: taking llama.cpp's server down in order can hang, and nothing here needs saving


def _say(status: int, **line: Any) -> int:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    # Not sys.exit: the interpreter's tear-down would destroy the server, which can hang.
    os._exit(main())
