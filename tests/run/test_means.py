"""Means over seeds: what is one group, what a table shows, and that docs/results is what the command writes."""
import csv
import io
import json
import pathlib
import statistics

import pytest

from mcd_jax import results as command
from mcd_jax.report import results as pages
from mcd_jax.run import means
from tests.report.test_report import HOSTILE, Document

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORED = sorted((ROOT / "docs" / "results" / "figures").glob("*.json"))
R10, R1, LOW = (f"retrieval/heldout_vendor/text_to_image/{name}" for name in ("R@10", "R@1", "chance_R@1"))


def leave(folder, name, seed, recall, objective="mcd", width=8, **evals):
    """The files of an evaluated run; returns its path."""
    path = folder / name
    path.mkdir(parents=True)
    config = {"seed": seed, "total_steps": 7, "objective": {"name": objective},
              "model": {"image": {"width": width}, "inputs": {"n": seed}}}
    (path / "config.json").write_text(json.dumps(config))
    if recall is not None:
        figures = {"step": 10, R10: recall, R1: recall / 2, LOW: 0.01, "gap/heldout_vendor/distance": 0.5, "odd": None, **evals}
        (path / "evals.json").write_text(json.dumps(figures))
    return str(path)


def runs(folder):
    return [leave(folder, f"mcd{i}", i, value) for i, value in enumerate((0.3, 0.4, 0.56))] + [
        leave(folder, "clip0", 0, 0.2, "clip"), leave(folder, "clip1", 1, 0.24, "clip"), leave(folder, "wide", 0, 0.5, "mcd", 16)]


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    groups = means.group([means.read_run(path) for path in runs(tmp_path)])
    assert [(g.runs, dict(g.labels)) for g in groups] == [
        (3, {"objective.name": "mcd", "model.image.width": 8}), (2, {"objective.name": "clip", "model.image.width": 8}),
        (1, {"objective.name": "mcd", "model.image.width": 16})]
    mean, deviation, count = groups[0].figures[R10]
    assert mean == pytest.approx(0.42) and deviation == pytest.approx(statistics.stdev([0.3, 0.4, 0.56])) and count == 3
    assert groups[2].figures[R10] == (0.5, None, 1) and "odd" not in groups[0].figures


def test_by_groups_and_labels_by_config_keys_and_says_what_it_mixes(tmp_path, capsys):
    read = [means.read_run(path) for path in runs(tmp_path)]
    groups = means.group(read, ("objective.name",))
    assert [(dict(g.labels), g.runs) for g in groups] == [({"objective.name": "mcd"}, 4), ({"objective.name": "clip"}, 2)]
    assert means.mixed(read, groups) == {read[0].name: ["model.image.width"]}
    command.of_runs(read, ("objective.name",))
    assert "differ in model.image.width" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--by=objective\.nam: .*did you mean 'objective\.name'"):
        means.group(read, ("objective.nam",))


def test_a_difference_is_paired_by_seed():
    """Student's sleep data (1908), as scipy.stats.ttest_rel and R's t.test(paired=TRUE) give it: t = 4.0621, p = 0.002833."""
    drug = {1: 0.7, 2: -1.6, 3: -0.2, 4: -1.2, 5: -0.1, 6: 3.4, 7: 3.7, 8: 0.8, 9: 0.0, 10: 2.0, "alone": 9.0}
    other = {10: 3.4, 9: 4.6, 8: 1.6, 7: 5.5, 6: 4.4, 5: -0.1, 4: 0.1, 3: 1.1, 2: 0.8, 1: 1.9}
    found = means.difference(other, drug)
    assert found == pytest.approx((1.58, 0.7001142, 2.4598858, 0.00283289, 10), rel=1e-5)
    assert means.difference({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0}) is None
    assert means.difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5})[::3] == (0.5, 0)


def test_against_compares_the_rows_with_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = ["--by=objective.name", f"--figures={R10}", "--formats=md,html", "--store=kept.json"]
    command.main([*runs(tmp_path)[:5], *how, "--against=clip"])
    want = "+13.0 [-25.1, 51.1], p 0.14"   # of 0.3 - 0.2 and 0.4 - 0.24: the third run has no partner
    assert want in capsys.readouterr().out
    assert want in pathlib.Path("results/results.md").read_text() and want in pathlib.Path("results/results.html").read_text()
    command.main(["kept.json", "--formats=md"])
    assert want in pathlib.Path("results/kept.md").read_text()
    with pytest.raises(SystemExit, match="--against=clib: no row of this table has that name; there are mcd, clip"):
        command.main([*runs(tmp_path / "again")[:5], *how, "--against=clib"])


def test_figures_are_chosen_by_globs(tmp_path):
    groups = means.group([means.read_run(path) for path in runs(tmp_path)])
    assert [c.figure for c in means.choose(groups)] == [R10, R1, "gap/heldout_vendor/distance"]   # no counts and no chance
    assert [c.figure for c in means.choose(groups, ["gap/*", "retrieval/*/text_to_image/R@*"])] == [
        "gap/heldout_vendor/distance", R10, R1]
    with pytest.raises(ValueError, match=r"--figures=retrieval/heldout/\*: no figure"):
        means.choose(groups, ["retrieval/heldout/*"])


def test_the_command_prints_and_writes_markdown_csv_and_html(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = runs(tmp_path / "runs")
    command.main([*paths, "--by=objective.name,model.image.width", "--figures=retrieval/*/R@10,gap/*"])
    screen = capsys.readouterr().out
    assert "42.0 ± 13.1" in screen and "22.0 ± 2.8" in screen and "results/results.html" in screen
    folder = tmp_path / "results"
    text = (folder / "results.md").read_text()
    assert "| mcd, 8 | 3 | 42.0 ± 13.1 | 0.500 ± 0.000 |" in text and "| mcd, 16 | 1 | 50.0 | 0.500 |" in text
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [row["objective.name"] for row in rows] == ["mcd", "clip", "mcd"] and float(rows[1][R10]) == pytest.approx(0.22)
    assert rows[2][f"{R10} deviation"] == "" and rows[0]["runs"] == "3"
    page = Document((folder / "results.html").read_text())
    assert page.tags.count("svg") == 2 and {"table", "plots"} <= page.ids and "script" not in page.tags


@pytest.mark.parametrize("values, drawn", [((1, 2, 3), "model.image.width"), (("a", "b", "c"), "b, 8")])
def test_a_plot_stands_over_numbers_or_over_names(tmp_path, values, drawn):
    paths = [leave(tmp_path, f"{i}-{value}", i, 0.1 * k + 0.01 * i, width=value if isinstance(value, int) else 8,
                   objective=value if isinstance(value, str) else "mcd") for k, value in enumerate(values) for i in (0, 1)]
    table = command.of_runs([means.read_run(path) for path in paths], ("objective.name", "model.image.width"))[0]
    assert drawn in pages.plot(table, means.Column(R10))


def test_runs_without_figures_are_left_out_and_named(tmp_path, capsys):
    paths = [leave(tmp_path, "new", 0, None), leave(tmp_path, "done", 1, 0.5)]
    command.main([*paths, f"--out={tmp_path}", "--formats=md"])
    assert "new has no figures" in capsys.readouterr().err and not (tmp_path / "results.csv").exists()
    for args, words in ((paths[:1], "none of these runs has been evaluated"), ([str(tmp_path)], "has no config.json"),
                        ([*paths, "--formats=pdf"], "pdf is not one of md, csv, html")):
        with pytest.raises(SystemExit, match=words):
            command.main(args)


def test_stored_figures_of_runs_are_read_back(tmp_path):
    paths, path = runs(tmp_path), tmp_path / "kept.json"
    command.main([*paths, f"--out={tmp_path}", f"--store={path}", "--title=Kept", "--formats=md"])
    kept, direct = means.read_table(path), means.group([means.read_run(p) for p in paths])
    assert kept.title == "Kept" and [g.figures[R10] for g in kept.groups] == [g.figures[R10] for g in direct]
    assert [run["seed"] for run in json.loads(path.read_text())["rows"][0]["runs"]] == [0, 1, 2]
    path.write_text("{}")
    with pytest.raises(ValueError, match="holds no stored results"):
        means.read_table(path)


def test_hostile_names_stay_text(tmp_path):
    path = leave(tmp_path, "run", 0, 0.5, objective=HOSTILE, **{f"gap/{HOSTILE.replace('/', '')}": 0.5})
    table = command.of_runs([means.read_run(path)], ("objective.name",))[0]
    page = Document(pages.as_html(table))
    assert "script" not in page.tags and "img" not in page.tags and page.events == []


def test_docs_results_is_what_the_command_writes(tmp_path):
    assert len(STORED) >= 12
    command.main([*map(str, STORED), f"--out={tmp_path}", "--formats=md"])
    made = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert made == {path.name: path.read_text() for path in (ROOT / "docs" / "results").glob("*.md")}


def test_the_published_figures_say_what_they_are():
    for path in STORED:
        stored = json.loads(path.read_text())
        if any("published" in row for row in stored["rows"]):
            assert "published" in stored["origin"] and "not kept" in stored["origin"], path
        for row in stored["rows"]:
            for name, value in row.get("published", {}).items():
                assert ("deviation" in value) <= (row["seeds"] > 1), (path, name)   # one seed has none


def test_what_follows_from_other_keys_or_was_named_otherwise_does_not_part_seeds(tmp_path):
    paths = [leave(tmp_path, f"mcd{i}", i, 0.3 + 0.1 * i) for i in range(2)]
    older, newer = (json.loads((pathlib.Path(path) / "config.json").read_text()) for path in paths)
    older["objective"] |= {"form": "ring"}
    newer["objective"] |= {"implementation": "ring"}
    newer |= {"batch_shapes": {"image": [[8, 8, 3], "uint8"]}, "ema": 0.0}   # keys that the older version didn't have
    for path, config in zip(paths, (older, newer)):
        (pathlib.Path(path) / "config.json").write_text(json.dumps(config))
    assert [group.runs for group in means.group([means.read_run(path) for path in paths])] == [2]


def test_a_run_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    paths = [leave(tmp_path, name, i, 0.3 + 0.1 * i) for i, name in enumerate("ab")]
    monkeypatch.chdir(tmp_path)
    table, = command.tables([*paths, "b", "a/"])
    assert [group.runs for group in table.groups] == [2]
    assert [run.name for run in command.runs_at([*paths, "b", "a/"])] == paths
