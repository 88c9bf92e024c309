"""What is wrong on a command line or in a config file is one sentence with the nearest right key; what is legal can be set."""
import pathlib
import subprocess
import sys

from absl import flags
from ml_collections import ConfigDict
import pytest

from mcd_jax import config as config_lib
from mcd_jax.config import keys, overrides
from mcd_jax.run import workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOY = str(ROOT / "tests" / "configs" / "toy.py")


@pytest.fixture(scope="module")
def toy():
    return config_lib.from_file(TOY)


def applied(config, *texts):
    """The config that a command line makes, with all checks that train makes before it reads data."""
    config = overrides.apply(config, [tuple(text.split("=", 1)) for text in texts])
    return config_lib.resolved(config)


# ---- wrong ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, words", [
    # unknown keys, at any depth
    ("optimizer.learning_rate=1", "unknown key config.optimizer.learning_rate; did you mean config.optimizer.lr?"),
    ("optimiser.lr=1", "did you mean config.optimizer?"),
    ("lr=1", "did you mean config.optimizer.lr?"),
    ("batch_sise=8", "did you mean config.batch_size?"),
    ("epochs=3", "did you mean config.steps?"),
    ("checkpoint.evry=3", "did you mean config.checkpoint.every?"),
    ("mesh.fsd=2", "did you mean config.mesh.fsdp?"),
    ("init_locked.imag=x", "did you mean config.init_locked.image?"),
    ("objective.imagee=x", "of the method clip; did you mean config.objective.image?"),
    ("objective.form=ring", "did you mean config.objective.implementation?"),
    ("objective.weights.clpi=1", "config.objective.weights.clpi; did you mean config.objective.weights.clip?"),
    ("model.logit_scal=1", "did you mean config.model.logit_scale?"),
    ("model.image.wdiths=8,8", "of the resnet tower; did you mean config.model.image.widths?"),
    ("model.text.experts.nmu=4", "did you mean config.model.text.experts.num?"),
    ("data.source.splt=test", "of the emoji source; did you mean config.data.source.split?"),
    ("data.source.path=x", "of the emoji source; there are name, split, captions"),
    ("optimizer.optimizers.b3=0.9", "of the optimizer adamw; there are name, b1, b2"),
    ("optimizer.schedule.warmp=1", "did you mean config.optimizer.schedule.0.warmup?"),
    ("evals.retrieval.validatoin.ks=(1,)", "did you mean config.evals.retrieval.validation?"),
    ("evals.retrieval.validation.mtch=x", "of the evaluation retrieval; did you mean config.evals.retrieval.validation.match?"),
    ("evals.retrieval.validation.source.splt=x", "did you mean config.evals.retrieval.validation.source.split?"),
    ("evals.retrieval.new.every=3", "unknown key config.evals.retrieval.new"),
    # names of modules that there are not
    ("objective.name=.mcd", "config.objective.name: there is no method '.mcd'"),
    ("objective.name=os.path", "config.objective.name: the module os.path is no method: it has no Options"),
    ("objective.name=clp", "config.objective.name: there is no method 'clp'; did you mean 'clip'?"),
    ("model.image.name=vitt", "config.model.image.name: there is no tower 'vitt'; did you mean 'vit'?"),
    ("data.source.name=webdatset", "there is no source 'webdatset'; did you mean 'webdataset'?"),
    ("evals.retreival.x=dict()", "there is no evaluation 'retreival'; did you mean 'retrieval'?"),
    ("optimizer.optimizers.name=adamww", "there is no optimizer 'adamww'; did you mean 'adamw'?"),
    ("optimizer.optimizers=dict(name=\"adamww\")", "there is no optimizer 'adamww'; did you mean 'adamw'?"),
    # wrong types and malformed values
    ("batch_size=ten", "config.batch_size='ten' must be a whole number"),
    ("batch_size=1.5", "config.batch_size=1.5 must be a whole number"),
    ("batch_size=0", "config.batch_size=0 must be a whole number of at least 1"),
    ("ema=x", "config.ema='x' must be a number"),
    ("optimizer.lr=None", "config.optimizer.lr=None must be a number"),
    ("optimizer.lr=nan", "config.optimizer.lr=nan must be a finite number"),
    ("optimizer.lr=inf", "config.optimizer.lr=inf must be a finite number"),
    ("optimizer.lr=1e999", "config.optimizer.lr=inf must be a finite number"),
    ("optimizer.clip_norm=-inf", "config.optimizer.clip_norm=-inf must be a finite number or None"),
    ("profile_steps=(1e999, 2)", "must be made of finite numbers"),
    ("tensorboard=maybe", "config.tensorboard='maybe' must be True or False"),
    ("steps=3 fortnights", "config.steps='3 fortnights' is not a duration: write 200, '3 epochs'"),
    ("checkpoint.every=true", "config.checkpoint.every='true' is not a duration"),
    ("model.image.widths=(8,", "config.model.image.widths='(8,' must be a tuple"),
    ("model.image.widths=abc", "config.model.image.widths='abc' must be a tuple"),
    ("model.image=vit", "config.model.image='vit' must be a dict, as in dict(name=...)"),
    ("model.image.widths.5=8", "has 2 places, counted from 0"),
    ("data.source=dict(name=open('x'))", "\"open('x')\" is no value"),
    ("data.source=dict(name=\"emoji\", splt=\"test\")", "did you mean config.data.source.split?"),
    ("data.views=decode", "config.data.views='decode' must be a dict"),
    ("seed.x=1", "config.seed is a whole number and has no keys"),
    ("optimizer.optimizers.1.b2=0.9", "config.optimizer.optimizers.1: there are 1 (regex, value) pairs"),
    ("sharding.fsdp=1", "there are 2 (regex, value) pairs: say which, as in config.sharding.0.fsdp"),
    ("sharding=((1, 2),)", "config.sharding: (1, 2) is not a (regex, value) pair"),
    ("=1", "is no key; write --config.seed=1"),
    ("data..workers=1", "config.data..workers is no key"),
    # figures
    ("init_fresh=('(',)", "config.init_fresh: '(' is not a regular expression"),
])
def test_one_sentence_says_what_is_wrong(text, words, toy):
    with pytest.raises(ValueError) as caught:
        applied(toy, text)
    assert words in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_one_value_for_all_parameters_has_no_places():
    config = config_lib.default()
    for key, value in (("sharding", "fsdp"), ("optimizer.lr_mults", 0.5)):
        with pytest.raises(ValueError, match=rf"config\.{key}\.0\.1: config\.{key} is .* and has no keys"):
            overrides.apply(overrides.apply(config, [(key, str(value))]), [(f"{key}.0.1", "x")])


def test_a_key_before_a_name_is_set_asks_for_the_name():
    config = config_lib.default()
    for text, words in (("data.source.path=x", "set config.data.source.name first, one of array_record, "),
                        ("model.image.width=8", "set config.model.image.name first, one of "),
                        ("objective.ema_m=1", "set config.objective.name first, one of ")):
        with pytest.raises(ValueError, match="without a name: ") as caught:
            overrides.apply(config, [tuple(text.split("=", 1))])
        assert words in str(caught.value)


@pytest.mark.parametrize("body, arguments, words", [
    ("def get_config(:", "", r"file\.py, line 1: "),
    ("import nothing_like_this\ndef get_config(): pass", "", r"file\.py, line 1: ModuleNotFoundError: No module named"),
    ("def get_config():\n    return 1 / 0", "", r"file\.py, line 2: ZeroDivisionError: division by zero"),
    ("def get_config():\n    config = C.default()\n    config.optimiser.lr = 1\n    return config", "",
     r"file\.py, line 4: AttributeError: .*optimiser"),
    ("def get_config():\n    raise ValueError('only on Sundays')", "", r"file\.py: only on Sundays"),
    ("def get_config():\n    return bytes([255]).decode()", "", r"file\.py: 'utf-8' codec can't decode"),
    ("def get_confg(): pass", "", r"file\.py has no function get_config"),
    ("def get_config(): pass", "", r"get_config returned NoneType, not a config; does it end in `return config`"),
    ("def get_config(): return C.default()", ":xx", r"file\.py:xx: this config takes no arguments after a colon"),
    ("def get_config(which): return C.default()", "", r"this config needs arguments after a colon, .*:which"),
    ("def get_config():\n    config = C.default()\n    config.optimizer.learning_rate = 1\n    return config", "",
     r"unknown key config\.optimizer\.learning_rate; did you mean config\.optimizer\.lr\?"),
    ("def get_config():\n    config = C.default()\n    config.batch_size = '8'\n    return config", "",
     r"config\.batch_size='8' must be a whole number"),
])
def test_a_config_file_that_fails_is_one_sentence(body, arguments, words, tmp_path):
    path = tmp_path / "file.py"
    path.write_text(body if body.startswith(("import", "def get_config(:")) else f"from mcd_jax import config as C\n{body}")
    if "line 2: Zero" in words:
        path.write_text(body)
    with pytest.raises(ValueError, match=words) as caught:
        config_lib.from_file(f"{path}{arguments}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_python(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config=nothing/here\.py: there is no file nothing/here"):
        config_lib.from_file("nothing/here.py")
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(ValueError, match=r"its name ends in \.py"):
        config_lib.from_file(str(tmp_path / "config.txt"))


def test_the_best_checkpoint_is_the_best_in_a_figure_that_there_is():
    for best, words in (("retrieval/validatoin/text_to_image/MRR", "did you mean 'retrieval/validation'"),
                        ("retrieval/validation", "none of its figures"), ("loss", "'loss'"),
                        ("retrieval/validation/text_to_image/MR", "did you mean 'retrieval/validation/text_to_image/MRR'")):
        with pytest.raises(ValueError, match=words):
            config_lib.from_file(TOY, [f"--config.checkpoint.best={best}"])
    for best in ("", "None", "retrieval/validation/text_to_image/MRR", "-retrieval/validation/no_flags/image_to_text/R@5"):
        config_lib.from_file(TOY, [f"--config.checkpoint.best={best}"])


def test_a_workdir_is_named():
    for empty in ("", "  ", None):
        with pytest.raises(ValueError, match="--workdir= is empty: name the folder"):
            workdir.named(empty)
    assert workdir.named("~/x").endswith("/x") and "~" not in workdir.named("~/x")


# ---- right ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, key, value", [
    ("model.text.act=relu", "model.text.act", "relu"),
    ("model.logit_scale=1", "model.logit_scale", 1.0),
    ("model.logit_bias=None", "model.logit_bias", None),
    ("model.mean=0.4,0.5,0.6", "model.mean", (0.4, 0.5, 0.6)),
    ("model.text.experts.num=4", "model.text.experts.num", 4),
    ("model.image.widths=8,16", "model.image.widths", (8, 16)),
    ("model.image.widths.1=8", "model.image.widths", (8, 8)),
    ("optimizer.optimizers.0.1.b2=0.95", "optimizer.optimizers", ((".*", dict(name="adamw", b1=0.9, b2=0.95, eps=1e-8)),)),
    ("optimizer.optimizers.b2=0.95", "optimizer.optimizers", ((".*", dict(name="adamw", b1=0.9, b2=0.95, eps=1e-8)),)),
    ("optimizer.optimizers.mu_dtype=bfloat16", "optimizer.optimizers.mu_dtype", "bfloat16"),
    ("optimizer.optimizers.name=sgd", "optimizer.optimizers", ((".*", dict(name="sgd")),)),
    ("optimizer.schedule.warmup=2 epochs", "optimizer.schedule.warmup", "2 epochs"),
    ("optimizer.schedule=None", "optimizer.schedule", None),
    ("optimizer.clip_norm=None", "optimizer.clip_norm", None),
    ("optimizer.decay_mask=((\"a\", True), (\".*\", 0.5))", "optimizer.decay_mask", (("a", True), (".*", 0.5))),
    ("optimizer=dict(lr=1)", "optimizer.lr", 1.0),
    ("sharding.1=replicate", "sharding", ((".*/experts/.*", "expert"), (".*", "replicate"))),
    ("sharding.1.0=image/.*", "sharding.1.0", "image/.*"),
    ("sharding=((\"x\", (None, (\"data\", \"fsdp\"))),)", "sharding", (("x", (None, ("data", "fsdp"))),)),
    ("evals.retrieval.validation.ks=(1,)", "evals.retrieval.validation.ks", (1,)),
    ("evals.retrieval.validation.texts=2", "evals.retrieval.validation.texts", 2),
    ("evals.retrieval.other=dict(source=dict(name=\"emoji\"))", "evals.retrieval.other.source.name", "emoji"),
    ("evals={}", "evals", {}),
    ("data.source.vendors=('google',)", "data.source.vendors", ("google",)),
    ("data.source=dict(name=\"webdataset\", path=\"a b.tar\", where=dict(x=dict(min=-0.5)))", "data.source",
     dict(name="webdataset", path="a b.tar", where=dict(x=dict(min=-0.5)))),
    ("data.views.more=decode|crop(16, 0.5)", "data.views.more", "decode|crop(16, 0.5)"),
    ("data.cache=500", "data.cache", 500),
    ("data.cache=true", "data.cache", True),
    ("steps=500", "steps", "500"),
    ("steps=None", "steps", None),
    ("batch_size=1e3", "batch_size", 1000),
    ("wandb=None", "wandb", ""),
    ("profile_steps=None", "profile_steps", ()),
    ("objective.name=clip", "objective.weights", dict(clip=1.0)),
    ("objective=dict(name=(\"clip\", \"slip\"), slip=dict(ssl_temperature=0.5))", "objective.slip.ssl_temperature", 0.5),
    ("objective.warmup.clip=10", "objective.warmup.clip", "10"),
])
def test_every_legal_key_can_be_set(text, key, value, toy):
    assert overrides.field(applied(toy, text), key) == value


def test_the_order_of_flags_does_not_matter(toy):
    texts = ["data.source.path=x.tar", "data.source.name=webdataset", "data.source.caption_lines=yes"]
    for some in (texts, texts[::-1]):
        assert applied(toy, *some).data.source.to_dict() == dict(name="webdataset", path="x.tar", caption_lines=True)
    assert applied(toy, "optimizer.lr=2", "optimizer=dict(weight_decay=0)").optimizer.lr == 2.0


def test_durations_and_optional_keys_take_numbers_and_none_in_a_file(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(pathlib.Path(TOY).read_text().replace("    return config\n", """
    config.steps, config.data.cache, config.ema, config.optimizer.lr = 500, 64, 0, 1
    config.checkpoint = dict(every=2.5, keep=1, best=None)
    config.evals.retrieval.validation.every = None
    config.objective.warmup.clip = 3
    config.resume_from = config.wandb = config.init_fresh = None
    return config
"""))
    config = config_lib.resolved(config_lib.from_file(str(path)))
    assert config.steps == 500 and config.checkpoint.every == 2.5 and config.checkpoint.best == "" and config.init_fresh == ()
    assert config.objective.warmup.clip == 3 and config.data.cache == 64 and config.resume_from == ""
    assert type(config.optimizer.lr) is float and type(config.ema) is float


def test_what_a_command_line_says_is_split():
    rest, found = overrides.split(["train", "--config=x.py", "--config.seed=1", "-config.steps", "3 epochs", "--config.mesh.data",
                                   "-1", "--noconfig.tensorboard", "--config.data.cache", "--workdir=a b", "--config.x=a=b"])
    assert rest == ["train", "--config=x.py", "--workdir=a b"]
    assert found == [("seed", "1"), ("steps", "3 epochs"), ("mesh.data", "-1"), ("tensorboard", "false"), ("data.cache", None),
                     ("x", "a=b")]
    config = overrides.apply(config_lib.default(), [("tensorboard", None)])
    assert config.tensorboard is True
    with pytest.raises(ValueError, match=r"--config\.seed has no value: write --config\.seed=\.\.\., a whole number"):
        overrides.apply(config_lib.default(), [("seed", None)])


def test_values_that_nothing_runs():
    assert keys.literal("dict(a=[1, -2.5], b={'c': (None, True)})") == dict(a=(1, -2.5), b={"c": (None, True)})
    for wrong in ("a", "f(1)", "dict(1)", "dict(**x)", "1 + 1", "x.y", "(lambda: 1)()", "[x for x in y]", "f'{x}'", "b'1'",
                  "(" * 500):
        with pytest.raises(ValueError):
            keys.literal(wrong)


def test_flags_are_refused_in_one_sentence(monkeypatch, capsys):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    flags.DEFINE_string("config", None, "a file", flag_values=values)
    flags.DEFINE_multi_string("config_overrides", [], "", flag_values=values)
    flags.DEFINE_string("workdir", None, "the folder of the run", flag_values=values)
    flags.DEFINE_integer("parallel", 1, "runs", flag_values=values)
    for argv, words in ((["--wrkdir=x"], "unknown flag --wrkdir; did you mean --workdir?"),
                        (["config.seed=1"], "did you mean --config.seed=1?"), (["seed=1"], "did you mean --config.seed=1?"),
                        ([TOY], f"did you mean --config={TOY}?"),
                        (["--parallel=x"], "--parallel=x"), (["--workdir"], "workdir"),
                        (["--workdir", "--config.seed=1"], "--workdir has no value: write --workdir=... (the folder of the run)"),
                        (["--parallel", "--workdir=x"], "--parallel has no value")):
        with pytest.raises(SystemExit) as caught:
            overrides.parse(["train", *argv])
        assert str(caught.value).startswith("error: ") and words in str(caught.value) and "\n" not in str(caught.value)
    assert overrides.parse(["train", "--config=x", "--config.seed=1", "--config.tensorboard"]) == ["train"]
    assert overrides.parse(["train", "--parallel", "2", "--workdir", "a-b"]) == ["train"] and values.workdir == "a-b"
    assert overrides.given() == [("seed", "1"), ("tensorboard", None)]


@pytest.mark.parametrize("command", [["mcd_jax.sweep", "--workdir=x"], ["mcd_jax.data.tools.inspect"]])
def test_a_command_ends_in_one_line(command, tmp_path):
    command = [sys.executable, "-m", *command, f"--config={TOY}", "--config.optimizer.learning_rate=1"]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "error: unknown key config.optimizer.learning_rate; did you mean config.optimizer.lr?"
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_stored_config_of_an_older_version_is_still_accepted(toy):
    plain = toy.to_dict()
    plain["sharding"] = [[".*", "fsdp"]]      # as JSON has it
    plain["model"]["image"]["widths"] = [8, 16]
    settled = config_lib.resolved(ConfigDict(plain))
    assert settled.sharding == ((".*", "fsdp"),) and settled.model.image.widths == (8, 16)
