"""Damaged shards of every kind: no crash, no hang, nothing leaks, and what was not damaged comes out bit for bit at its place."""
import collections
import json
import pathlib
import subprocess
import sys
import time

import pytest
import shards

HERE = pathlib.Path(__file__).resolve().parents[1]


def run(kinds, count, folder, seconds):
    """(lines of `fuzzing.py`, sentences on children that died); one that dies is started again behind the case that did it."""
    lines, deaths, start, end = [], [], 0, time.monotonic() + seconds
    while start < count * len(kinds):
        command = [sys.executable, str(HERE / "fuzzing.py"), ",".join(kinds), str(count), str(start), str(folder)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=end - time.monotonic(), cwd=HERE.parent,
                               env={"PYTHONPATH": str(HERE.parent), "PYTHONFAULTHANDLER": "1"})
        done = child.stdout.splitlines()
        lines += map(json.loads, done)
        start += len(done)
        if child.returncode:
            deaths.append(f"{kinds[start // count]} {start % count}: exit status {child.returncode}: {child.stderr[-1500:]}")
            assert len(deaths) < 5, deaths
            start += 1
    return lines, deaths


def check(count, folder, seconds):
    kinds = list(shards.WRITERS)
    lines, deaths = run(kinds, count, folder, seconds)
    assert not deaths
    assert not [line for line in lines if "wrong" in line]
    assert [(line["kind"], line["case"]) for line in lines] == [(kind, number) for kind in kinds for number in range(count)]
    for kind in kinds:
        own = [line for line in lines if line["kind"] == kind]
        first, last = own[count // 4:count // 2], own[-count // 4:]
        assert min(line["descriptors"] for line in last) <= max(line["descriptors"] for line in first)
        assert last[-1]["memory"] - max(line["memory"] for line in first) < 20 * 2 ** 20
        rows = sum((collections.Counter(line.get("rows", {})) for line in own), collections.Counter())
        outcomes = collections.Counter(line["outcome"] for line in own)
        print(kind, dict(outcomes), dict(rows), {key: last[-1][key] - first[-1][key] for key in ("memory", "descriptors")})
        assert outcomes["opened"] > count / 4 and outcomes["refused"] and rows["same"] > 5 * count and rows["replaced"] > count / 8


def test_some_damaged_shards(tmp_path):
    check(30, tmp_path, 60)


@pytest.mark.full
def test_many_damaged_shards(tmp_path):
    check(400, tmp_path, 900)
