"""Joining the processes of one job, noticing that one is gone, and barriers that name whoever is late.

Which job a process belongs to is said by the environment, so that the same command runs on one machine and on a pod:

    JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0    as `launch/local.sh` sets them
    JAX_DISTRIBUTED=auto                                                      Cloud TPU: JAX finds the others by itself

With neither it is the only one. JAX's own start-up ends an incomplete job by an abort in C++ that names nobody, and notices a
killed process after a minute and a half; hence the roll call before it and the lifeline after it, plain TCP between process 0 and
the others.
"""
import collections
from collections.abc import Iterator
import contextlib
import os
import socket
import sys
import threading
import time
import uuid

import jax
from jax._src import distributed as jax_distributed  # the key-value store and the barriers of the coordinator have no public name

from mcd_jax import command

TIMEOUT = 120            # seconds to wait for the others at the start
HEARTBEAT_TIMEOUT = 60   # seconds after which JAX gives up on a process that the lifeline can't see, such as a frozen one
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(environ=os.environ, timeout=TIMEOUT):
    """Joins this process to its job. Call it before anything else uses JAX; a process on its own returns at once.

    Raises:
      ValueError: the environment names a job in part, or numbers that do not fit.
      TimeoutError: after `timeout` seconds; the sentence names the processes that never came.
    """
    given = [name for name in NAMES if environ.get(name)]
    if not given and environ.get("JAX_DISTRIBUTED") != "auto":
        return
    if not given:
        with _deadline(timeout, f"not all processes of this job came within {timeout} s of worker "
                                f"{environ.get('TPU_WORKER_ID', '?')} of {environ.get('TPU_WORKER_HOSTNAMES', 'unknown workers')}: "
                                "look for the one whose log has not got this far (launch/tpu.sh logs --worker all)"):
            jax.distributed.initialize(initialization_timeout=2 * timeout, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    else:
        if len(given) < len(NAMES):
            raise ValueError(f"{', '.join(given)} set, but not {', '.join(n for n in NAMES if n not in given)}: "
                             "a process of several needs all three")
        address, count, me = environ[NAMES[0]], _number(environ, NAMES[1]), _number(environ, NAMES[2])
        if not 0 <= me < count:
            raise ValueError(f"JAX_PROCESS_ID={me} must lie from 0 to {count - 1} for JAX_NUM_PROCESSES={count}")
        if count == 1:
            return
        roll_call(address, count, me, timeout)
        jax.distributed.initialize(address, count, me, initialization_timeout=timeout, coordinator_bind_address=address,
                                   heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    lifeline()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Context of a command's work as one process of its job; when the work fails the others end too, not only after a time-out.

    Raises:
      ValueError, TimeoutError: as `join` does.
    """
    try:
        join()
        yield
    except Exception as error:
        if jax.distributed.is_initialized():
            command.tell(error)
            leave(1)
        raise


def _number(environ, name):
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name}={environ[name]!r} must be a whole number") from None


@contextlib.contextmanager
def _deadline(seconds, sentence):
    """Ends the process with `sentence` if the block takes longer: for calls that no exception can reach."""
    timer = threading.Timer(seconds, _end, (sentence,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(sentence):
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


# ============================================================================================================================
# Roll call: everybody is there, or everybody says who is missing
# ============================================================================================================================

def roll_call(address, count, me, timeout):
    """Returns once all `count` processes have called in at process 0, which listens on `address`.

    Raises:
      TimeoutError: names the missing processes, on every process that came.
      ValueError: two processes with one number, or with different ideas of how many there are.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address!r} must be host:port")
    deadline = time.monotonic() + timeout
    place = host.strip("[]"), int(port)
    answer = _call_in(*place, count, me, deadline) if me else _listen(*place, count, deadline)
    if answer != "go":
        missing = answer.startswith("process")
        raise (TimeoutError if missing else ValueError)(f"{answer} within {timeout} s" if missing else answer)


def _listen(host, port, count, deadline):
    there, answer = {}, "go"
    with socket.create_server((host, port), backlog=count) as server:
        while answer == "go" and len(there) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, OSError):
                connection, _ = server.accept()
                connection.settimeout(5)
                words = _read_line(connection).split()
                if len(words) != 3 or words[0] != "mcd_jax" or not all(w.isdigit() for w in words[1:]):
                    connection.close()
                    continue
                number, of = int(words[1]), int(words[2])
                if of != count:
                    answer = f"process {number} expects {of} processes and process 0 {count}: JAX_NUM_PROCESSES must agree"
                elif number in there or not 0 < number < count:
                    answer = f"two processes call themselves {number}: JAX_PROCESS_ID must differ"
                there[number if number not in there else -1] = connection
    missing = [i for i in range(1, count) if i not in there]
    if answer == "go" and missing:
        which = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(map(str, missing))}"
        answer = f"{which} of {count} did not start"
    for connection in there.values():
        with contextlib.suppress(OSError):
            connection.sendall(f"{answer}\n".encode())
        connection.close()
    return answer


def _call_in(host, port, count, me, deadline):
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())) as connection:
                connection.sendall(f"mcd_jax {me} {count}\n".encode())
                connection.settimeout(max(0.1, deadline - time.monotonic()) + 5)   # process 0's clock may be behind
                if answer := _read_line(connection):
                    return answer
        except OSError:
            pass
        time.sleep(0.2)
    return f"process 0 of {count}, the coordinator at {host}:{port}, did not start"


def _read_line(connection):
    data = b""
    while not data.endswith(b"\n") and len(data) < 500:
        if not (more := connection.recv(100)):
            return ""
        data += more
    return data.decode("ascii", "replace").strip()


# ============================================================================================================================
# Lifeline: a connection from every process to process 0 that breaks when one of the two dies
# ============================================================================================================================

def lifeline():
    """Watches over the job from a background thread until `leave`: when a process dies without it, all others end with its name."""
    client, me, count = jax_distributed.global_state.client, jax.process_index(), jax.process_count()
    if me == 0:
        host = (jax_distributed.global_state.coordinator_address or "127.0.0.1").rpartition(":")[0].strip("[]")
        server = socket.create_server((host, 0), backlog=count)
        token = uuid.uuid4().hex
        client.key_value_set("mcd_jax/lifeline", f"{host} {server.getsockname()[1]} {token}")
        threading.Thread(target=_watch_all, args=(server, token, count), daemon=True).start()
    else:
        host, port, token = client.blocking_key_value_get("mcd_jax/lifeline", TIMEOUT * 1000).split()
        connection = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        connection.settimeout(None)
        connection.sendall(f"{token} {me}\n".encode())
        threading.Thread(target=_watch_lead, args=(connection,), daemon=True).start()
        _OPEN.append(connection)


_OPEN = []        # this process's connections, closed by `leave`
_LEFT = threading.Event()


def leave(status):
    """Leaves the job at the end of this process's work. After a failure it ends the process at once, and the others with it."""
    if not jax.distributed.is_initialized():
        return
    if status not in (0, 75):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    barrier("the end of the job")
    _LEFT.set()
    for connection in _OPEN:
        with contextlib.suppress(OSError):
            connection.sendall(b"bye\n")
    jax.distributed.shutdown()


def dissolve():
    """From here on each process may end without the lifeline's word: all know why."""
    _LEFT.set()


def _watch_all(server, token, count):
    connections, lock = {}, threading.Lock()

    def follow(connection):
        word, _, number = _read_line(connection).partition(" ")
        if word != token or not number.isdigit():
            connection.close()
            return
        with lock:
            connections[int(number)] = connection
            _OPEN.append(connection)
        try:
            goodbye = _read_line(connection)
        except OSError:
            goodbye = ""
        if goodbye != "bye" and not _LEFT.is_set():
            with lock:
                for other, peer in connections.items():
                    if other != int(number):
                        with contextlib.suppress(OSError):
                            peer.sendall(f"process {number}\n".encode())
            _died(f"process {number}")
    with contextlib.suppress(OSError), server:
        while len(connections) < count - 1:
            connection, _ = server.accept()
            threading.Thread(target=follow, args=(connection,), daemon=True).start()
            time.sleep(0.01)


def _watch_lead(connection):
    try:
        word = _read_line(connection)
    except OSError:
        word = ""
    if word != "bye" and not _LEFT.is_set():
        _died(word or "process 0")


def _died(who):
    time.sleep(1.0)   # what this process has to say about it comes first
    if not _LEFT.is_set():
        _end(f"{who} of this job has died, and without it the others can't go on; its own log says why; "
             "start the same command on all of them again: it continues from the newest checkpoint")


# ============================================================================================================================
# Barriers
# ============================================================================================================================

_BARRIERS = collections.Counter()   # how often each has been used: names may come again


def coordinator():
    """The client of the coordinator's key-value store and barriers; None for a process on its own."""
    client = jax_distributed.global_state.client
    return None if client is None or jax.process_count() == 1 else client


def barrier(name, timeout=600):
    """Waits until every process has called `barrier` with this name as often, at most `timeout` seconds. No device is involved.

    Raises:
      TimeoutError: names the processes that did not come.
    """
    client = coordinator()
    if client is None:
        return
    _BARRIERS[name] += 1
    place = f"mcd_jax/barrier/{name}/{_BARRIERS[name]}"
    client.key_value_set(f"{place}/{jax.process_index()}", "here")
    try:
        client.wait_at_barrier(place, timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        here = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(f"{place}/")}
        late = [i for i in range(jax.process_count()) if i not in here]
        if not late:
            raise
        who = f"process {late[0]}" if len(late) == 1 else f"processes {', '.join(map(str, late))}"
        raise TimeoutError(f"{who} did not reach {name!r} within {timeout} s of the others") from error


def together(value, name):
    """What process 0 passes as `value` (a str), on every process."""
    client = coordinator()
    if client is None:
        return value
    if jax.process_index() == 0:
        client.key_value_set(f"mcd_jax/together/{name}", value, allow_overwrite=True)
    return client.blocking_key_value_get(f"mcd_jax/together/{name}", TIMEOUT * 1000)
