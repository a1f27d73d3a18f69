"""`python -m runtime.serve`: an engine as an HTTP service."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from commands.errors import StoppedError
from commands.program import run_program, say
from runtime.engines.interface import Engine
from runtime.engines.opening import EngineOptions, open_engine
from runtime.process_flags import process_flags
from runtime.serve.flags import check_serve_flags, limits_of, serve_parser
from runtime.serve.guard import check_host, read_token
from runtime.serve.image_request import RequestTables
from runtime.serve.log import log_json_lines
from runtime.serve.slots import Slots
from runtime.serve.worker import Worker
from runtime.sign import check_required

_DEFAULT_SLOTS = 8


def main(argv: Sequence[str] | None = None, make_slots: Callable[..., Slots] = Slots) -> int:
    """Parse the command line, serve until a signal comes, and return the exit code."""
    return run_program(serve_parser(), lambda args: serve(args, make_slots), argv)


def serve(args: argparse.Namespace, make_slots: Callable[..., Slots] = Slots) -> dict[str, Any]:
    """Run the command; return its report. Another schedule than `Slots` is for measurements."""
    check_serve_flags(args)
    # Only here, where what is not installed is told in one line.
    from runtime.serve.app import make_app
    from runtime.serve.metrics import Metrics
    from runtime.serve.server import DrainingServer, listen, url_of

    token = read_token(args.token_file)
    check_host(args.host, token)
    with contextlib.closing(listen(args.host, args.port)) as sock:
        options = EngineOptions(
            args.device,
            args.threads,
            process_flags(args),
            args.allow_pickle,
            args.backend,
            args.precision,
            args.compile,
        )
        check_unchanged = check_required(args.require_signature, args.engine, *args.tables)
        engine = open_engine(args.engine, options)
        tables = RequestTables(engine.process, engine.precision, args.force, args.tables)
        check_unchanged()
        slots = make_slots(engine, _num_slots(engine, args.slots), args.threads)
        metrics = Metrics()
        worker = Worker(slots, tables, limits_of(args), metrics)
        metrics.watch(worker)
        log_json_lines()
        server = DrainingServer(make_app(engine, worker, metrics, token), worker)
        worker.start()
        url = url_of(sock)
        if (note := engine.digest_note()) is not None:
            say(f"note: {note}")
        for note in tables.notes_of_files:
            say(f"note: {note}")
        say(f"{args.engine}: {engine.name}, {slots.num_slots} slots: {url}")
        try:
            server.run(sockets=[sock])
        finally:
            worker.stop()
    if server.stopped:
        raise StoppedError(f"stopped; {worker.cancelled} requests were not finished")
    if worker.broken:
        raise RuntimeError(worker.broken)
    return {"summary": f"{url}: ended, with every request that it took answered", "url": url}


def _num_slots(engine: Engine, wanted: int | None) -> int:
    """The slots that were asked for, or as many as a network call is usually worth."""
    if wanted is not None:
        return wanted
    smallest, largest = engine.batch_range()
    return max(smallest, _DEFAULT_SLOTS if largest is None else min(_DEFAULT_SLOTS, largest))


if __name__ == "__main__":
    sys.exit(main())
