"""docs/your_data.md: every command that it shows is run, shortened, on small made-up data; what it says is printed is printed."""
import json
import pathlib
import re
import shlex

import fsspec
import own_data
import pytest
import tiny

from mcd_jax import config as config_lib
from mcd_jax import evaluate, job, report, train
from mcd_jax.data.tools import index, pack
from mcd_jax.run import metrics
from mcd_jax.search import __main__ as search

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your_data.md").read_text()
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line.strip() for kind, block in BLOCKS if not kind for line in block.splitlines()]
TRAIN = [line for line in COMMANDS if line.startswith("mcd-jax train ")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What the page calls /data, and a bucket."""
    root = tmp_path_factory.mktemp("data")
    for name, make in {"my_pairs": own_data.files, "other_pairs": own_data.csv_table, "my_table": own_data.csv_table,
                       "my_classes": own_data.class_folders, "flickr8k": own_data.five_captions, "karpathy": own_data.karpathy,
                       "cc3m": own_data.tars, "my_images": own_data.sidecars}.items():
        make(root / name)
    table = root / "my_table" / "captions.csv"
    table.write_text(table.read_text().replace("filename,title,likes", "where,what,likes"))
    for file in (root / "cc3m").glob("00001*"):
        file.rename(file.with_name(file.name.replace("00001", "00331")))
    (root / "prompts.txt").write_text("a {} for sale\n\na drawing of {}\n")
    (root / "names.json").write_text(json.dumps({"red_things": ["tomato", "fire engine"]}))
    memory = fsspec.filesystem("memory")
    for file in (root / "cc3m").glob("*.tar"):
        memory.pipe_file(f"/bucket/cc3m/{file.name}", file.read_bytes())
    yield root
    memory.rm("/bucket", recursive=True)


@pytest.fixture(autouse=True)
def no_measured_peak(monkeypatch):
    """A run first measures the machine's product of matrices, which takes seconds."""
    monkeypatch.setattr(metrics, "peak_flops", lambda: 1e12)


def words(line, data, runs):
    """The words of a command, with places of this test."""
    given = [word.replace("gs://bucket/runs", f"{runs}/bucket").replace("gs://", "memory://").replace("/data/", f"{data}/")
             for word in shlex.split(line)]
    return [re.sub(r"(^|=)runs/", rf"\g<1>{runs}/", word) for word in given]


def config_of(given):
    path = next(word.partition("=")[2] for word in given if word.startswith("--config="))
    return config_lib.from_file(path, [word for word in given if word.startswith("--config.")])


def run(line, data, runs):
    """Runs a command of the page; training takes two steps of a tiny model."""
    given = words(line, data, runs)
    command, rest = given[1], given[2:]
    if command == "train":
        config = config_of(rest)
        config.steps, config.batch_size, config.microbatches = "2 steps", 4, 1
        config.model.image, config.model.text = tiny.IMAGE, tiny.TEXT
        if "locked" in config.model:
            del config.model["locked"]
        config.tensorboard = False
        for probe in config.evals.get("probe", {}).values():
            with probe.unlocked():
                probe.max_iter = 20
        return train.train(config, next(word.partition("=")[2] for word in rest if word.startswith("--workdir=")))
    mains = dict(evaluate=evaluate.main, report=report.main, search=search.main, index=index.main, pack=pack.main)
    return mains[command](rest)


def test_every_command_is_known_and_every_config_fits(data, tmp_path, capsys):
    """No step is taken: views, model and objective of every training command are built, and shapes agree."""
    assert len(TRAIN) >= 8
    assert {line.split()[1] for line in COMMANDS if line} == {"train", "report", "search", "evaluate", "index", "pack"}
    for line in TRAIN:
        if "packed" in line:
            continue   # by the whole day below
        built = job.build(config_of(words(line, data, tmp_path)))
        assert built.total_steps > 0 and (built.config.evals.get("retrieval") or built.config.evals.get("probe"))
        built.pipeline.close()
    printed = capsys.readouterr().out
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
    for row in shown.splitlines():
        head = row[:13] if row.startswith("  ") else row
        assert head in printed, head


@pytest.mark.full
def test_classes_of_ones_own_from_training_to_report(data, tmp_path, capsys):
    """A run without captions has no retrieval; it is evaluated as classes are, and its report shows that."""
    line, = [line for line in TRAIN if "my_classes" in line]
    assert run(line, data, tmp_path) == 0
    figures = json.loads((tmp_path / "my_classes" / "evals.json").read_text())
    assert {"zeroshot/held_out/top1", "probe/held_out/top1"} <= set(figures)
    assert not any(key.startswith("retrieval") for key in figures)
    assert figures["probe/held_out/top1"] > 0.6 and figures["zeroshot/held_out/classes"] == 4
    for line in COMMANDS:
        if "--evals=zeroshot:" in line and "templates=" in line:
            run(line.replace("runs/mine", "runs/my_classes"), data, tmp_path)
    figures = json.loads((tmp_path / "my_classes" / "evals.json").read_text())
    assert figures["zeroshot/my_classes/images"] == 40
    report.main(["--workdir", str(tmp_path / "my_classes")])
    text = (tmp_path / "my_classes" / "report.html").read_text()
    assert "Images and their classes" in text and "Text queries" not in text
    assert "red things" in text and "probe held out top1" in text


@pytest.mark.full
def test_a_day_with_your_data(data, tmp_path, capsys):
    """Every command of the page, in its order."""
    for line in filter(None, COMMANDS):
        if "packed" in line and " pack " not in line:
            before = json.loads((tmp_path / "mine" / "config.json").read_text())["data"]["source"]
        try:
            status = run(line, data, tmp_path)
        except SystemExit as stopped:
            status = stopped.code
        assert not status, f"{line}: {status}"
    figures = json.loads((tmp_path / "mine" / "evals.json").read_text())
    asked = ("held_out", "other_pairs", "dataset_mine", "my_pairs")
    assert {f"retrieval/{name}/text_to_image/R@1" for name in asked} <= set(figures)
    assert figures["retrieval/dataset_mine/text_to_image/queries"] == 16   # two captions of eight images
    from mcd_jax.data import sources
    packed = json.loads((tmp_path / "mine_packed" / "config.json").read_text())["data"]["source"]
    keys = [[row["key"] for row in sources.open(spec)] for spec in (before, packed)]
    assert keys[0] == keys[1]   # the same part is held out of the packed set
