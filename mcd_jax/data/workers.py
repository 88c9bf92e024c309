"""Worker processes of this package, all started here: training's readers, those of `pack` and of `index`.

A worker is an interpreter of its own that makes one function and then calls it with what it is sent. It leaves nothing behind,
however it or its parent ends:
* Signals are its parent's business. A Ctrl-C, a scheduler or a closed terminal signals the whole group; a worker ignores it from
  its first moment on, so that the parent can still save, close its files, or go on.
* It ends as soon as its socket is closed: by `Worker.close`, or because the parent is gone, even if it was killed.
* Arrays travel in memory that has no name, only holders (memfd_create), and nothing else is shared: there is neither a file nor a
  semaphore in /dev/shm that could stay there, and its size doesn't matter.

It imports nothing that takes long.
"""
from collections.abc import Hashable, Iterator, Sequence
import concurrent.futures
import contextlib
import importlib
import mmap
from multiprocessing import connection
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LENGTH = struct.Struct("<q")
_ALIGNED = 64   # bytes at which an array begins, so that JAX can take it as it is
_START = ("import sys; fd, threads, *sys.path[:] = sys.argv[1:]; "
          "from mcd_jax.data import workers; workers.serve(int(fd), int(threads))")


class Worker:
    """A process that calls one function, in so many threads, and answers in the order in which it was asked."""

    def __init__(self, make: str, arguments: Sequence = (), threads: int = 1):
        """
        Args:
          make: "module:name" of what makes the function, which is called there with `arguments` (they are pickled).
        """
        self._socket, theirs = socket.socketpair()
        with theirs:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)   # a child inherits it, and `serve` lifts it
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, str(theirs.fileno()), str(max(threads, 1)), *sys.path], stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()])
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.send((make, tuple(arguments)))

    def fileno(self) -> int:
        """Of what can be read when an answer is there, for `multiprocessing.connection.wait`."""
        return self._socket.fileno()

    def send(self, item: Any) -> None:
        """Asks for the function of `item`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):   # `receive` says so
            _send(self._socket, pickle.dumps(item))

    def receive(self) -> Any:
        """The next answer. Its arrays lie in the memory that the worker wrote.

        Raises:
          Exception: what the function raised. RuntimeError: the worker is gone; the sentence has its exit code.
        """
        message = _receive(self._socket)
        if message is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            raise RuntimeError(f"a worker process (pid {self._process.pid}) ended with exit code "
                               f"{self._process.returncode}: -9 is often a lack of memory, another cause stands in the lines above")
        done, value = _unpacked(*message)
        if not done:
            raise value
        return value

    def close(self) -> None:
        """Ends the process at once, whatever it is doing."""
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Ordered:
    """Iterator over function(first), function(first + 1), ... made by several workers, each `ahead` numbers ahead."""

    def __init__(self, make: str, arguments: Sequence, first: int, processes: int, threads: int, ahead: int):
        self._next, self._ahead, self._workers = first, ahead * processes, []
        try:
            for _ in range(processes):
                self._workers.append(Worker(make, arguments, threads))
        except BaseException:
            self.close()
            raise
        for number in range(first, first + self._ahead):
            self._workers[(number - first) % processes].send(number)
        self._first = first

    def __iter__(self):
        return self

    def __next__(self):
        if not self._workers:
            raise StopIteration
        worker = self._workers[(self._next - self._first) % len(self._workers)]
        made = worker.receive()
        worker.send(self._next + self._ahead)
        self._next += 1
        return made

    def close(self) -> None:
        """Ends the workers."""
        while self._workers:
            self._workers.pop().close()


def unordered(make: str, arguments: Sequence, items: Sequence[Hashable], processes: int) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) of each of `items`, as they are done, by at most so many workers. Close it to end them early.

    Raises:
      Exception: the first that a function raised.
    """
    waiting, workers, busy = list(items)[::-1], [], {}
    try:
        for _ in range(min(processes, len(waiting))):
            workers.append(Worker(make, arguments))
            busy[workers[-1]] = waiting.pop()
            workers[-1].send(busy[workers[-1]])
        while busy:
            for worker in connection.wait(list(busy)):
                item, result = busy.pop(worker), worker.receive()
                if waiting:
                    busy[worker] = waiting.pop()
                    worker.send(busy[worker])
                yield item, result
    finally:
        for worker in workers:
            worker.close()


# ---- in the worker -------------------------------------------------------------------------------------------------------------


def serve(fd: int, threads: int) -> None:
    """The whole life of a worker process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _many_files()
    with socket.socket(fileno=fd) as line:
        answers, function = queue.SimpleQueue(), concurrent.futures.Future()
        threading.Thread(target=_answer, args=(line, answers), daemon=True).start()
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        pool.submit(_make, function, *pickle.loads(_receive(line)[0]))
        while (message := _receive(line)) is not None:   # this thread does nothing else: it must hear when the parent is gone
            answers.put(pool.submit(_call, function, pickle.loads(message[0])))
    os._exit(0)


def _many_files():
    """Lets as many answers wait as there may be files: each is one until it is taken."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make(function, make, arguments):
    try:
        module, _, name = make.partition(":")
        function.set_result(getattr(importlib.import_module(module), name)(*arguments))
    except BaseException as error:
        function.set_exception(error)


def _call(function, item):
    try:
        return _packed((True, function.result()(item)))
    except BaseException as error:
        return _packed((False, _sendable(error)))


def _answer(line, answers):
    try:
        while True:
            payload, fd = answers.get().result()
            _send(line, payload, fd)
    except OSError:   # the parent is gone
        os._exit(1)


def _sendable(error):
    """`error`, or one of RuntimeError with its words where it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


# ---- messages ------------------------------------------------------------------------------------------------------------------


def _packed(value: Any) -> tuple[bytes, int | None]:
    """`value` as bytes, and a file of unnamed memory (or None) with the contents of its arrays."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    ends, places = 0, []
    for view in views:
        places.append((ends, view.nbytes))
        ends += -(-view.nbytes // _ALIGNED) * _ALIGNED
    fd = _memory(ends) if ends else None
    if ends:
        with mmap.mmap(fd, ends) as memory:
            for (start, size), view in zip(places, views):
                memory[start:start + size] = view
    return pickle.dumps((places, data)), fd


def _unpacked(payload: bytes, fd: int | None) -> Any:
    places, data = pickle.loads(payload)
    if fd is None:
        return pickle.loads(data, buffers=[bytearray(0) for _ in places])
    try:
        memory = memoryview(mmap.mmap(fd, 0))   # freed with the last array in it
    finally:
        os.close(fd)
    return pickle.loads(data, buffers=[memory[start:start + size] for start, size in places])


def _memory(size):
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("mcd_jax")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def _send(line: socket.socket, payload: bytes, fd: int | None = None) -> None:
    """One message: its length, with the file `fd` (closed here) if there is one, and its bytes."""
    try:
        socket.send_fds(line, [_LENGTH.pack(len(payload))], [] if fd is None else [fd])
    finally:
        if fd is not None:
            os.close(fd)
    line.sendall(payload)


def _receive(line: socket.socket) -> tuple[bytes, int | None] | None:
    """The next message and its file, or None when the other side is gone."""
    try:
        head, fds, _, _ = socket.recv_fds(line, _LENGTH.size, 1)
        if len(head) < _LENGTH.size:
            return None
        size, parts = _LENGTH.unpack(head)[0], []
        while size:
            parts.append(line.recv(min(size, 2 ** 20)))
            if not parts[-1]:
                return None
            size -= len(parts[-1])
    except ConnectionResetError:
        return None
    return b"".join(parts), (fds[0] if fds else None)
