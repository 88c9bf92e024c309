"""launch/: shellcheck, and the commands that --dry-run prints against the arguments that gcloud and xpk know."""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib

import pytest

from mcd_jax import job
from mcd_jax.config import overrides

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "GKE_", "MCD_", "JAX_", "XLA_"))}
TPU = ["--name=mcd", "--zone=us-west4-a", "--project=lab-1"]
GKE = ["--cluster=mcd", "--zone=us-west4-a", "--project=lab-1"]
TRAIN = ["--", "mcd-jax", "train", "--config=mcd_emoji", "--workdir=gs://lab/my run"]

# Flags by command, `=` marks those that take a value (of `storage rsync` a part). Copied from data/cli/gcloud_completions.py of
# Google Cloud SDK 528.0.0, gcloud's own table of its flags; it leaves out tpu-vm create's --version, which is in the reference:
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/{create,ssh,scp,delete,describe} and
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/{create,ssh,scp,delete,describe}.
_SSH = ("--dry-run --force-key-file-overwrite --internal-ip --plain --ssh-key-expiration= --ssh-key-expire-after= --ssh-key-file= "
        "--strict-host-key-checking= --worker= --zone= ")
_CREATE = ("--accelerator-type= --async --data-disk= --description= --internal-ips --labels= --metadata= --metadata-from-file= "
           "--network= --range= --reserved --scopes= --service-account= --shielded-secure-boot --spot --subnetwork= --tags= "
           "--topology= --type= --zone= ")
FLAGS = {
    "compute tpus tpu-vm create": _CREATE + "--preemptible --queue-count= --version=",
    "compute tpus tpu-vm ssh": _SSH + "--command= --output-directory= --ssh-flag=",
    "compute tpus tpu-vm scp": _SSH + "--compress --recurse --scp-flag=",
    "compute tpus tpu-vm delete": "--async --zone=",
    "compute tpus tpu-vm describe": "--zone=",
    "compute tpus queued-resources create": _CREATE + (
        "--guaranteed --node-count= --node-id= --node-prefix= --reservation-host-folder= --reservation-host-organization= "
        "--reservation-host-project= --runtime-version= --valid-after-duration= --valid-after-time= --valid-until-duration= "
        "--valid-until-time="),
    "compute tpus queued-resources ssh": _SSH + (
        "--batch-size= --command= --node= --output-directory= --ssh-flag= --tunnel-through-iap"),
    "compute tpus queued-resources scp": _SSH + "--batch-size= --compress --node= --recurse --scp-flag= --tunnel-through-iap",
    "compute tpus queued-resources delete": "--async --force --zone=",
    "compute tpus queued-resources describe": "--zone=",
    "container clusters get-credentials": "--dns-endpoint --internal-ip --location= --region= --zone=",
    "auth configure-docker": "",
    "storage rsync": "--recursive --exclude= --delete-unmatched-destination-objects --no-clobber --dry-run",
}
_WIDE = "--account= --configuration= --format= --project= --quiet --verbosity="
_NEEDED = {"tpu-vm create": {"--version"}, "queued-resources create": {"--runtime-version", "--accelerator-type"}}


def gcloud(argv):
    """(command, positionals, flags) of a gcloud command line; raises on what gcloud would refuse."""
    assert argv[0] == "gcloud", argv
    command = next((c for c in FLAGS if argv[1:1 + len(c.split())] == c.split()), None)
    assert command, f"not in the table: {argv}"
    known, flags, positionals = f"{FLAGS[command]} {_WIDE}".split(), {}, []
    for word in argv[1 + len(command.split()):]:
        if not word.startswith("-"):
            positionals.append(word)
            continue
        flag, equals, value = word.partition("=")
        assert flag + equals in known, f"{command} has no {flag}{equals}"
        assert flag not in flags, f"{flag} twice"
        flags[flag] = value
    for suffix, needed in _NEEDED.items():
        assert not command.endswith(suffix) or needed <= flags.keys(), f"{command} needs {needed}"
    if command.startswith("compute tpus"):
        assert len(positionals) == (2 if command.endswith("scp") else 1) and {"--zone", "--project"} <= flags.keys(), argv
    if command.endswith("queued-resources create"):
        assert ("--node-id" in flags) != ("--node-count" in flags)
    return command, positionals, flags


def script(name, *arguments, env=None, **options):
    return subprocess.run([LAUNCH / name, *map(str, arguments)], env={**ENV, **(env or {})}, capture_output=True, text=True,
                          timeout=60, **options)


def dry(name, *arguments, env=None):
    """The commands that --dry-run prints: argument lists, and the comments as they are."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    done = script(name, *arguments[:at], "--dry-run", *arguments[at:], env={"PATH": "/usr/bin:/bin", **(env or {})})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return [shlex.split(line) for line in lines if line[0] != "#"], [line for line in lines if line[0] == "#"]


@pytest.mark.parametrize("name", sorted(p.name for p in LAUNCH.glob("*.sh")))
def test_shellcheck(name):
    path = os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ["PATH"]])
    done = subprocess.run([shutil.which("shellcheck", path=path) or "shellcheck", "-x", "-P", ROOT, LAUNCH / name],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ================================================================================================================================
# tpu.sh: what it prints
# ================================================================================================================================

COMMANDS = [["create", "--accelerator=v5e-256"], ["create", "--accelerator=v4-32", "--spot"], ["sync"], ["setup"], ["stop"],
            ["status"], ["delete"], ["delete", "--yes"], ["mount", "--bucket=gs://lab/data/cc12m"],
            ["mount", "--bucket=gs://lab/data", "--copy"], ["run", *TRAIN], ["logs"], ["logs", "--worker=all", "--lines", "5"],
            ["watch", "--accelerator=v6e-64", "--bucket=gs://lab", "--reserved", *TRAIN]]


@pytest.mark.parametrize("queued", [[], ["--queued"], ["--queued", "--slices=4", "--valid-for=6h"]], ids=["vm", "queued", "slices"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_gcloud_knows_every_argument(arguments, queued):
    commands, _ = dry("tpu.sh", arguments[0], *TPU, *queued, *arguments[1:])
    assert commands
    group = "queued-resources" if queued else "tpu-vm"
    for argv in commands:
        if argv[0] == "git":
            assert argv[3:5] == ["archive", "--format=tar.gz"]
            continue
        command, positionals, flags = gcloud(argv)
        assert command.split()[2] == group
        assert positionals[-1].split(":")[0] == "mcd" and flags["--zone"] == "us-west4-a" and flags["--project"] == "lab-1"
        if command.endswith(("ssh", "scp")):
            assert "--worker" in flags and ("--node" in flags) == bool(queued)
            if arguments[0] in ("sync", "setup", "stop", "mount", "watch"):
                assert flags["--worker"] == "all" and flags.get("--node", "all") == "all"


def test_an_argument_gcloud_does_not_know_is_found():
    good = ["gcloud", "compute", "tpus", "tpu-vm", "delete", "mcd", "--zone=z", "--project=p"]
    gcloud(good)
    for wrong in (["--node=all"], ["--async=yes"], ["--quite"], ["other"]):
        with pytest.raises(AssertionError):
            gcloud(good + wrong)


@pytest.mark.parametrize("accelerator, runtime", [
    ("v5e-256", "v2-alpha-tpuv5-lite"), ("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v5p-128", "v2-alpha-tpuv5"),
    ("v6e-256", "v2-alpha-tpuv6e"), ("v4-8", "tpu-ubuntu2204-base"), ("v3-32", "tpu-ubuntu2204-base")])
def test_runtime_of_the_accelerator(accelerator, runtime):
    """The table of https://cloud.google.com/tpu/docs/runtimes ("PyTorch and JAX")."""
    (argv,), _ = dry("tpu.sh", "create", *TPU, "--accelerator", accelerator)
    flags = gcloud(argv)[2]
    assert flags["--version"] == runtime and flags["--accelerator-type"] == accelerator.replace("v5e", "v5litepod")


def test_settings_come_from_the_environment_too_and_flags_win():
    env = {"TPU_NAME": "a", "TPU_ZONE": "z", "TPU_PROJECT": "p", "TPU_ACCELERATOR": "v5p-8", "TPU_QUEUED": "1", "TPU_SLICES": "2"}
    (argv,), _ = dry("tpu.sh", "create", "--name=b", "--spot", "--", "--network=mine", env=env)
    command, positionals, flags = gcloud(argv)
    assert (command.split()[2], positionals) == ("queued-resources", ["b"])
    assert flags == {"--zone": "z", "--project": "p", "--accelerator-type": "v5p-8", "--runtime-version": "v2-alpha-tpuv5",
                     "--node-count": "2", "--node-prefix": "b", "--spot": "", "--network": "mine"}


def test_the_job_reaches_the_workers_word_for_word_after_what_is_stale_is_gone():
    commands, comments = dry("tpu.sh", "run", *TPU, *TRAIN)
    remote = gcloud(commands[0])[2]["--command"]
    assert shlex.split(remote) == ["bash", "mcd_jax/launch/worker.sh", "start", "ID", *TRAIN[1:]]
    steps = [c.removeprefix("# on each worker: ") for c in comments]
    assert [s.split()[0] for s in steps] == ["kill", "sudo", "setsid"] and steps[1] == "sudo rm -f /tmp/libtpu_lockfile"
    assert shlex.split(steps[2]) == ["setsid", "nohup", "env", "JAX_DISTRIBUTED=auto", *TRAIN[1:]]
    assert gcloud(commands[1])[2]["--worker"] == "0"


def test_watch_makes_the_resource_again_and_repeats_every_step():
    commands, _ = dry("tpu.sh", "watch", *TPU, "--queued", "--accelerator=v5e-256", "--spot", "--bucket=gs://lab", *TRAIN)
    verbs = [gcloud(c)[0].split()[-1] if c[0] == "gcloud" else c[0] for c in commands]
    assert verbs == ["describe", "ssh", "delete", "create", "describe", "git", "scp", "ssh", "ssh", "ssh", "ssh"]
    delete = gcloud(commands[2])[2]
    assert "--quiet" in delete and "--force" in delete


def test_bucket_data():
    _, comments = dry("tpu.sh", "mount", *TPU, "--bucket=gs://lab/data/cc12m", "--dir=/tmp/x")
    words = shlex.split(comments[-1])
    assert words[words.index("gcsfuse"):][:4] == ["gcsfuse", "-o", "ro", "--implicit-dirs"] and words[-2:] == ["lab", "/tmp/x"]
    assert words[words.index("--only-dir") + 1] == "data/cc12m"
    _, comments = dry("tpu.sh", "mount", *TPU, "--bucket=gs://lab/data", "--copy", "--dir=/dev/shm/d")
    argv = shlex.split(comments[-1].removeprefix("# on each worker: "))
    assert gcloud(argv)[:2] == ("storage rsync", ["gs://lab/data", "/dev/shm/d"])


@pytest.mark.parametrize("how, runs, out, clip", [
    (["--scale=0.01"], 10, "table", "30 steps"), (["--equal", "--rows=clip declip"], 2, "table", "2000 steps"),
    (["--large", "--steps=5", "--rows=clip mcd declip"], 3, "large", "5 steps")])
def test_the_rows_of_the_comparison_on_scenes(how, runs, out, clip):
    """Every command is a config that can be built."""
    commands, _ = dry("scenes_table.sh", "--seeds=0 1", *how)
    assert [c[:2] for c in commands] == [["mcd-jax", "train"]] * 2 * runs + [["mcd-jax", "results"]]
    steps = {}
    for words in commands[:runs]:
        [name] = [word.partition("=")[2] for word in words if word.startswith("--config=")]
        changes = [word for word in words if word.startswith("--config.")]
        config = overrides.apply(overrides.load(name), overrides.split(changes)[1])
        if "--equal" not in how:
            job.build(config)
        steps[words[2].partition("/scenes_")[2]] = config.steps
    assert steps[f"{out}/clip-0"] == clip


@pytest.mark.parametrize("name, arguments, says", [
    ("tpu.sh", ["create", "--zone=z", "--project=p"], "--name or TPU_NAME"),
    ("tpu.sh", ["create", "--name=mcd", "--project=p"], "--zone or TPU_ZONE"),
    ("tpu.sh", ["status", "--name=mcd", "--zone=z"], "--project or TPU_PROJECT"),
    ("tpu.sh", ["create", *TPU], "--accelerator or TPU_ACCELERATOR"),
    ("tpu.sh", ["create", *TPU, "--accelerator=h100-8"], "v5e-256"),
    ("tpu.sh", ["create", *TPU, "--accelerator=tpu7x-64"], "launch/gke.sh"),
    ("tpu.sh", ["create", *TPU, "--accelerator=v5e-256", "--slices=2"], "--queued"),
    ("tpu.sh", ["create", *TPU, "--accelerator=v5e-256", "--spot", "--reserved"], "not both"),
    ("tpu.sh", ["sync", "--name=a;rm", "--zone=z", "--project=p"], "lower-case"),
    ("tpu.sh", ["frob", *TPU], "create sync setup"),
    ("tpu.sh", ["run", *TPU], "after --"),
    ("tpu.sh", ["logs", *TPU, "--frob=1"], "--frob"),
    ("tpu.sh", ["logs", *TPU, "--lines=$(id)"], "whole number"),
    ("tpu.sh", ["mount", *TPU], "gs://"),
    ("gke.sh", ["frob", *GKE], "cluster-create image"),
    ("gke.sh", ["list", "--zone=z", "--project=p"], "--cluster or GKE_CLUSTER"),
    ("gke.sh", ["run", *GKE, "--accelerator=v5e-8", *TRAIN], "--workload or GKE_WORKLOAD"),
    ("gke.sh", ["run", *GKE, "--workload=a", *TRAIN], "--accelerator or TPU_ACCELERATOR"),
    ("gke.sh", ["cluster-create", *GKE, "--accelerator=v5e-8"], "--spot"),
    ("gke.sh", ["cluster-create", *GKE, "--accelerator=v5e-8", "--spot", "--reservation=r"], "one of"),
    ("local.sh", ["two", "--", "true"], "number of processes"),
    ("local.sh", ["2"], "after --"),
    ("local.sh", ["2", "--frob", "1", "--", "true"], "--frob"),
    ("scenes_table.sh", ["--frob"], "--help"),
    ("scenes_table.sh", ["--steps", "few"], "whole number"),
    ("scenes_table.sh", ["--rows", "clib"], "clip"),
])
def test_bad_input_is_answered_with_what_to_give(name, arguments, says, tmp_path):
    at = arguments.index("--") if "--" in arguments else len(arguments)
    done = script(name, *arguments[:at], "--dry-run", *arguments[at:], cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and done.stderr.startswith("error: ") and not done.stdout
    assert len(done.stderr.splitlines()) == 1


# ================================================================================================================================
# gke.sh: xpk's own parser reads every command
# ================================================================================================================================

# xpk without its dependencies: its parser needs none of them, but the modules it imports do.
_XPK = textwrap.dedent("""
    import argparse, importlib.abc, importlib.machinery, json, sys
    from unittest import mock

    class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] not in sys.stdlib_module_names | {"xpk"}:
                return importlib.machinery.ModuleSpec(name, self, is_package=True)
        def create_module(self, spec):
            return mock.MagicMock(name=spec.name, __path__=[], __spec__=spec)
        def exec_module(self, module):
            pass

    sys.meta_path.insert(0, Absent())
    from xpk.parser.core import set_parser
    class Exact(argparse.ArgumentParser):
        def __init__(self, **options):
            super().__init__(**options, allow_abbrev=False)
    parser = Exact(prog="xpk")
    set_parser(parser)
    read = []
    for argv in json.load(sys.stdin):
        try:
            read.append({k: v for k, v in vars(parser.parse_args(argv)).items() if k != "func"})
        except SystemExit:
            read.append(None)
    print(json.dumps(read))
""")


def xpk(commands):
    """What xpk's parser makes of each command; None where it refuses."""
    path = os.pathsep.join([os.path.join(sys.prefix, "xpk"), os.environ.get("PYTHONPATH", "")])
    version = re.search(r"^xpk==(.*)$", (ROOT / "requirements-xpk.txt").read_text(), re.M)[1]
    done = subprocess.run([sys.executable, "-c", _XPK], input=json.dumps(commands), capture_output=True, text=True,
                          env={**ENV, "PYTHONPATH": path, "XPK_VERSION_OVERRIDE": version})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_xpk_reads_every_command():
    run = ["run", "--workload=mcd-1", "--accelerator=v5e-256", "--slices=2", "--max-restarts=7", *TRAIN]
    commands = []
    for arguments in (["cluster-create", "--accelerator=v5e-256", "--slices=2", "--spot"],
                      ["cluster-create", "--accelerator=v5p-8", "--reservation=r"], ["mount", "--bucket=gs://lab"], run,
                      ["inspect", "--workload=mcd-1"], ["list"], ["delete", "--workload=mcd-1", "--yes"],
                      ["cluster-delete", "--yes"]):
        printed, _ = dry("gke.sh", arguments[0], *GKE, *arguments[1:])
        assert all(c[0] == "xpk" for c in printed)
        commands += [c[1:] for c in printed]
    wrong = [[w for w in commands[3] if not w.startswith("--command")], [*commands[0], "--node-count=3"],
             [w.replace("v5litepod-256", "v5litepod-255") for w in commands[0]], ["workload", "frob"]]
    read, errors = xpk(commands + wrong)
    assert None not in read[:len(commands)] and read[len(commands):] == [None] * len(wrong), errors
    job = read[3]
    assert shlex.split(job["command"]) == ["exec", *TRAIN[1:]]
    assert (job["num_slices"], job["max_restarts"], job["restart_on_exit_codes"]) == (2, "7", "75")
    assert job["env"] == ["JAX_DISTRIBUTED=auto"]
    assert job["tpu_type"] == "v5litepod-256" and job["docker_image"].startswith("us-west4-docker.pkg.dev/lab-1/")
    assert (read[0]["num_slices"], read[0]["spot"], read[1]["reservation"]) == (2, True, "r")
    assert read[2]["bucket"] == "lab" and read[2]["readonly"] is True


def test_the_other_commands_of_gke():
    (login, build, push), _ = dry("gke.sh", "image", *GKE, "--image=us-docker.pkg.dev/lab-1/r/i:1")
    assert gcloud(login)[1] == ["us-docker.pkg.dev"]
    assert build[:2] == ["docker", "build"] and push == ["docker", "push", build[4].removeprefix("--tag=")]
    assert build[3] == f"--file={LAUNCH}/Dockerfile" and build[5] == str(ROOT)
    (login, logs), _ = dry("gke.sh", "logs", *GKE, "--workload=mcd-1", "--slice=all")
    assert gcloud(login)[2]["--location"] == "us-west4"
    assert logs[:2] == ["kubectl", "logs"] and logs[2].endswith("jobset-name=mcd-1,batch.kubernetes.io/job-completion-index=0")


# ================================================================================================================================
# What is installed
# ================================================================================================================================

@pytest.mark.parametrize("file, argument", [("worker.sh", r'--editable "\$\(dirname "\$here"\)\[(.*)\]"'),
                                            ("Dockerfile", r'--editable "\.\[(.*)\]"')])
def test_workers_get_what_a_job_with_a_bucket_needs(file, argument):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(argument, (LAUNCH / file).read_text())[1].split(",")
    assert set(named) <= extras.keys()
    packages = {re.match(r"[\w.-]+(\[.*\])?", line)[0] for name in named for line in extras[name]}
    assert {"jax[tpu]", "gcsfs"} <= packages   # the documented workdir is gs://


def test_setup_installs_the_synced_checkout():
    _, comments = dry("tpu.sh", "setup", *TPU)
    install = shlex.split(comments[-1].partition(": ")[2])
    assert install[1:3] == ["pip", "install"] and install[-2:] == ["--editable", f"{ROOT}[tpu,gcs]"]
