"""Several processes of one job on this machine, as several hosts of a pod."""
import os
import pathlib
import socket
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "configs" / "toy.py"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Pair:
    """`count` processes of one job with `devices` fake devices each."""

    def __init__(self, args, count=2, devices=2, cwds=None):
        port, self.done = free_port(), []
        shared = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
        if count > 1:
            shared |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
        self.all = [subprocess.Popen([sys.executable, *args], env={**shared, "JAX_PROCESS_ID": str(i)} if count > 1 else shared,
                                     cwd=cwds[i] if cwds else ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    for i in range(count)]

    def wait(self, timeout=240):
        """[(exit status, stdout, stderr)] of the processes."""
        results = [None] * len(self.all)

        def collect(i):
            results[i] = (*self.all[i].communicate(timeout=timeout), self.all[i].returncode)
        threads = [threading.Thread(target=collect, args=(i,)) for i in range(len(self.all))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for process in self.all:
            process.kill()
        return [(status, out, err) for out, err, status in results]
