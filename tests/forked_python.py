"""A Python that has its libraries loaded already: `python FILE` and `python -m MODULE` run in forks of one process.

Importing torch takes a new Python seconds, a fork of one that has it milliseconds. Programs get the arguments, folder,
environment, standard streams and signals that they were started with, and leave their exit status.

    python forked_python.py serve SOCKET PYTHON    until its stdin ends; PYTHON is what forks find as sys.executable
    python forked_python.py start SOCKET -m dptr …
"""

from __future__ import annotations

import os
import signal
import socket
import sys

_STREAMS = (0, 1, 2)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(path: str, arguments: list[str]) -> int:
    """Have a program run by the server at ``path``; return its exit status."""
    import marshal

    streams = [number for number in _STREAMS if _is_open(number)]
    with socket.socket(socket.AF_UNIX) as server:  # takes the place of a stream that is closed
        server.connect(path)
        asked = marshal.dumps((arguments, os.getcwd(), dict(os.environ), streams))
        server.sendall(len(asked).to_bytes(8, "big") + asked)
        socket.send_fds(server, [b"streams"], streams)
        program = int.from_bytes(server.recv(8), "big")
        for number in _FORWARDED:
            signal.signal(number, lambda received, _: os.kill(program, received))
        status = server.recv(8)
    if not status:
        return 1
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def serve(path: str, executable: str) -> None:
    """Answer ``start`` until stdin ends."""
    import select

    _load_libraries()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        children: list[int] = []
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            if (child := os.fork()) == 0:
                listening.close()
                _answer(client, executable)
                os._exit(0)
            client.close()
            children = [child, *(child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0))]
    for child in children:
        os.waitpid(child, 0)


def _load_libraries() -> None:
    import duckdb
    import faiss
    import lmdb
    import pyarrow.parquet
    import scipy.stats
    import torch
    import transformers

    import dptr.cli
    import dptr.trainer.evaluate
    import dptr.trainer.finetune
    import dptr.trainer.pretrain
    import dptr.trainer.report

    assert all((duckdb, faiss, lmdb, pyarrow.parquet, scipy.stats, torch, transformers.CLIPModel, dptr))


def _answer(client: socket.socket, executable: str) -> None:
    import marshal

    size = int.from_bytes(client.recv(8, socket.MSG_WAITALL), "big")
    arguments, folder, environment, streams = marshal.loads(client.recv(size, socket.MSG_WAITALL))
    _, given, _, _ = socket.recv_fds(client, 7, len(_STREAMS))
    program = os.fork()
    if program == 0:
        client.close()
        for number in set(_STREAMS) - set(streams):
            os.close(number)
        for number, opened in zip(streams, given, strict=True):
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.executable = executable
        _run(arguments)
    client.sendall(program.to_bytes(8, "big"))
    _, status = os.waitpid(program, 0)
    client.sendall(status.to_bytes(8, "big"))


def _run(arguments: list[str]) -> None:
    """Run a module or a file as Python does, and end this process."""
    import atexit
    import runpy
    import traceback

    # As in a new Python, whatever the signals that a test's shell ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name, mode in zip(_STREAMS, ("stdin", "stdout", "stderr"), "rww", strict=True):
        stream = open(number, mode, encoding="utf-8", closefd=False) if _is_open(number) else None  # noqa: SIM115
        setattr(sys, name, stream)
    if arguments[0] == "-u":  # torchrun asks for it; all is written at the end
        arguments = arguments[1:]
    code: object = None
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        sys.exit(start(sys.argv[2], sys.argv[3:]))
