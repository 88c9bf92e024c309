"""What a compiled program moves: collectives and memory traffic, read from its HLO text, loops counted as often as they run.

The compiler's own `cost_analysis` counts the body of a loop once; here the trip count of every `while` multiplies what is inside:
as the compiler noted it, or else the number that its condition compares the counter with (TPU programs note none). Traffic is
counted at the borders of fusions: what an operation reads and writes in memory, a slice of a large buffer as the slice. It is an
estimate: buffers that stay in on-chip memory from one operation to the next are counted as if they went out.
"""
import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
         "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1, "f8e4m3": 1}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id", "replica-id")
_SHAPE = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OP = re.compile(r"\s([a-z][\w\-]*)\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
                    r"(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Op(NamedTuple):
    name: str
    kind: str
    bytes: int        # of its result
    operands: tuple   # names
    calls: tuple      # names of computations
    trips: int        # of a while loop as the compiler noted it, else 0
    root: bool
    line: str


def parse(text):
    """({computation: [Op]}, name of the entry) of an HLO module's text."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            op = _op(found[2], found[3], bool(found[1]), line)
            if op:
                current.append(op)
    return computations, entry


def _op(name, rest, root, line):
    kind = _OP.search(" " + rest)
    if not kind:
        return None
    start = kind.end() - 1   # of the operands in `rest`: the blank put in front moves them by one
    shape, depth, end = rest[:kind.start()], 0, len(rest)
    for i in range(start - 1, len(rest)):
        depth += {"(": 1, ")": -1}.get(rest[i], 0)
        if depth == 0 and rest[i] == ")":
            end = i
            break
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:end]))
    calls = tuple(c for group in _CALLS.findall(rest[end:]) for c in re.findall(r"%?([\w.\-]+)", group))
    trips = _TRIPS.search(rest[end:])
    return Op(name, kind[1], size(shape), operands, calls, int(trips[1]) if trips and kind[1] == "while" else 0, root, line)


def size(shape):
    """Bytes of a shape's text such as "f32[8,16]{1,0}" or a tuple of them."""
    return sum(BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in _SHAPE.findall(shape))


def runs(computations, entry):
    """{computation: how often one call of the program runs it}, and the set of those that run inside a fusion or a reduction."""
    times, inner, queue = {}, set(), [(entry, 1, False)]
    while queue:
        name, count, inside = queue.pop()
        times[name] = times.get(name, 0) + count
        if inside:
            inner.add(name)
        for op in computations.get(name, ()):
            trips = (op.trips or _counted(op, computations)) if op.kind == "while" else 1
            for called in op.calls:
                if called in computations:
                    within = inside or op.kind not in ("while", "conditional", "call", "async-start")
                    queue.append((called, count * trips, within))
    return times, inner


def _counted(op, computations):
    """Iterations of a loop that counts from 0 by 1 to the only whole number in its condition; 1 where it doesn't look like that."""
    queue, numbers = re.findall(r"condition=%?([\w.\-]+)", op.line), []
    while queue:
        for inner in computations.get(queue.pop(), ()):
            queue += inner.calls
            if inner.kind == "constant" and (number := re.search(r"= [su](?:32|64)\[\]\S* constant\((\d+)\)", inner.line)):
                numbers.append(int(number[1]))
    return numbers[0] if len(numbers) == 1 else 1


def looped(computations):
    """Names of all computations that run inside a while loop."""
    queue, found = [c for ops in computations.values() for op in ops if op.kind == "while" for c in op.calls], set()
    while queue:
        if (name := queue.pop()) not in found:
            found.add(name)
            queue += [c for op in computations.get(name, ()) for c in op.calls]
    return found


def collectives(text, loops_only=False):
    """{kind: {"count", "bytes", "async", "hidden"}}: how often a device takes part, bytes of the results, how many are
    asynchronous, and how many of those have a matmul (or a loop) scheduled between start and end, behind which they can hide.

    With `loops_only`, of those inside loops.
    """
    computations, entry = parse(text)
    inside = looped(computations)
    times, _ = runs(computations, entry)
    result = {}
    for name, ops in computations.items():
        for op in ops:
            kind = op.kind.removesuffix("-start")
            if kind in COLLECTIVES and times.get(name) and (name in inside or not loops_only):
                own = result.setdefault(kind, {"count": 0, "bytes": 0, "async": 0, "hidden": 0})
                own["count"] += times[name]
                own["bytes"] += times[name] * _moved(op, kind, ops)
                own["async"] += times[name] * (op.kind.endswith("-start") or "async_collective_name" in op.line
                                               or name.startswith("async"))
                own["hidden"] += times[name] * (op.kind.endswith("-start") and _works_before_done(op, ops, computations))
    return result


def _works_before_done(start, ops, computations):
    """Whether something worth the wait is scheduled between an asynchronous start and its end, in a module that is scheduled."""
    place = ops.index(start)
    for op in ops[place + 1:]:
        if start.name in op.operands:
            return False
        bodies = [op, *(inner for name in op.calls for inner in computations.get(name, ()))] if op.kind == "fusion" else [op]
        if any(o.kind in ("while", "convolution", "dot") for o in bodies):
            return True
    return False


def _moved(op, kind, ops):
    """Bytes that matter of a collective: the larger of what goes in and what comes out (a start's result holds both)."""
    sizes = {o.name: o.bytes for o in ops}
    before = sum(sizes.get(name, 0) for name in op.operands)
    after = op.bytes - before if op.kind.endswith("-start") and kind != "all-reduce" else op.bytes
    return max(before, after, 0)


def traffic(text):
    """Bytes that one call of the program reads from and writes to memory, estimated."""
    computations, entry = parse(text)
    times, inner = runs(computations, entry)
    total = 0
    for name, count in times.items():
        if name not in inner:
            sizes = {op.name: op.bytes for op in computations[name]}
            total += count * sum(_touched(op, sizes, computations) for op in computations[name])
    return total


def _touched(op, sizes, computations):
    if op.kind in (*_FREE, "while", "conditional", "call") or op.kind.endswith("-done"):
        return 0
    operands = [sizes.get(name, 0) for name in op.operands]
    if op.kind == "dynamic-slice":
        return 2 * op.bytes
    if op.kind == "dynamic-update-slice":
        return 2 * (operands[1] if len(operands) > 1 else 0)
    if op.kind == "fusion" and op.calls and op.calls[0] in computations:
        return _fused(op, operands, computations[op.calls[0]])
    return op.bytes + sum(operands)


def _fused(op, operands, body):
    """Reads and writes of a fusion: slices of large buffers as slices, buffers updated in place as the update."""
    by_name = {o.name: o for o in body}
    users = {}
    for o in body:
        for name in o.operands:
            users.setdefault(name, []).append(o)
    written = op.bytes
    for o in body:
        if o.kind == "dynamic-update-slice" and o.operands:
            update = by_name.get(o.operands[1]) if len(o.operands) > 1 else None
            if update is not None and (o.root or any(u.root for u in users.get(o.name, ()))):
                written += update.bytes - o.bytes
    read = 0
    for o in body:
        number = re.search(r"parameter\((\d+)\)", o.line) if o.kind == "parameter" else None
        if number and int(number[1]) < len(operands):
            uses = _uses(o, users)
            if uses and all(u.kind == "dynamic-slice" or (u.kind == "dynamic-update-slice" and u.operands[0] in names)
                            for u, names in uses):
                read += sum(u.bytes for u, _ in uses if u.kind == "dynamic-slice")
            else:
                read += operands[int(number[1])]
    return max(written, 0) + read


def _uses(parameter, users):
    """[(user, names under which it knows the parameter)], seen through bitcasts."""
    names, queue, found = {parameter.name}, [parameter.name], []
    while queue:
        for user in users.get(queue.pop(), ()):
            if user.kind == "bitcast" and user.name not in names:
                names.add(user.name)
                queue.append(user.name)
            elif user.kind != "bitcast":
                found.append(user)
    return [(user, names) for user in found]


def largest(text, count=5):
    """[(bytes, kind, name, source)] of the largest results of operations outside of fusions, the same name once."""
    computations, entry = parse(text)
    times, inner = runs(computations, entry)
    found = {}
    for name in times:
        for op in computations[name] if name not in inner else ():
            if op.kind not in (*_FREE, "while", "conditional", "call", "copy-start", "copy-done"):
                source = re.search(r'op_name="([^"]*)"', op.line)
                found[op.name] = (op.bytes, op.kind, op.name, source[1] if source else "")
    return sorted(found.values(), reverse=True)[:count]
