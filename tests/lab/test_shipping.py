"""Shipped weights and recorded replies: made by a command, used only as the file of their card."""

import json
import subprocess
import types

import pytest
import torch

from lib import TenfoldError
from lib.core.chat import Decoding, Reply
from lib.lab import keys, provenance, shipping
from lib.zoo import shipped


@pytest.fixture
def ships(monkeypatch, tmp_path):
    """Let a folder stand for the checkout, and a function for a paper's study."""
    monkeypatch.setattr(shipped.lib, "root", lambda: tmp_path)
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    study = types.SimpleNamespace()
    monkeypatch.setattr(shipping, "_study", lambda paper, module: study)
    return study


def test_replies_are_recorded_once_and_replayed_without_a_server(ships, chat_server):
    chat_server.answer = lambda request: request["messages"][-1]["content"].upper()
    ships.record = lambda client: client.complete_many(["one", "two"], Decoding(temperature=0))
    assert shipping.record_replies("usergpt", model="m", url=chat_server.url) == 2
    ships.record = lambda client: client.complete_many(["two", "three"], Decoding(temperature=0))
    assert shipping.record_replies("usergpt", model="m", url=chat_server.url) == 2
    assert [r["messages"][-1]["content"] for r in chat_server.asked].count("two") == 1, "it was asked twice"
    replayed = shipped.replies("usergpt", decoding=Decoding(temperature=0))
    assert replayed.complete("three").text == "THREE"
    assert replayed.model == "m"
    with pytest.raises(TenfoldError, match="holds no reply of m to 'one'|holds no reply of m to \"one\""):
        replayed.complete("one")
    card = shipped.card_of(shipped.folder("usergpt") / shipped.REPLIES)
    assert card["replies"] == 2
    assert card["command"] == "make replies PAPER=usergpt MODEL=m"


def test_a_recording_that_was_stopped_keeps_what_was_answered(ships, chat_server):
    def record(client):
        client.complete("one")
        raise KeyboardInterrupt

    ships.record = record
    with pytest.raises(KeyboardInterrupt):
        shipping.record_replies("usergpt", model="m", url=chat_server.url)
    ships.record = lambda client: client.complete_many(["one", "two"])
    shipping.record_replies("usergpt", model="m", url=chat_server.url)
    assert len(chat_server.asked) == 2


def test_replies_are_recorded_of_a_model_in_this_process_where_a_study_can_load_it(ships):
    class Local:
        model, decoding, asked = "m", Decoding(temperature=0), 0

        def complete(self, messages, decoding=None, *, attempt=0):
            return self.complete_many([messages], decoding)[0]

        def complete_many(self, questions, decoding=None, *, attempt=0):
            self.asked += len(questions)
            return [Reply((text.upper(),), ("stop",)) for text in questions]

    local = Local()
    ships.record = lambda client: client.complete_many(["one", "two"], Decoding(temperature=0))
    with pytest.raises(TenfoldError, match="give its address, URL=http"):
        shipping.record_replies("usergpt", model="m")
    ships.local = lambda name: local
    assert shipping.record_replies("usergpt", model="m") == 2
    assert shipping.record_replies("usergpt", model="m") == 2
    assert local.asked == 2, "it was asked twice"
    assert shipped.replies("usergpt", decoding=Decoding(temperature=0)).complete("two").text == "TWO"


def trained(folder, *, seed):
    from safetensors.torch import save_file

    save_file({"w": torch.full((4,), float(seed))}, folder / "base.safetensors")
    return {"base": {"presence": 0.93}}


def test_weights_have_a_card_and_are_refused_where_they_are_not_its_file(ships):
    ships.train = trained
    (path,) = shipping.train("multilora", seed=3)
    assert shipped.weights("multilora", "base") == path
    card = json.loads(path.with_name("base.safetensors.card.json").read_text())
    assert card["presence"] == 0.93
    assert card["command"] == "make train PAPER=multilora SEED=3"
    assert "minutes" in card
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(TenfoldError, match="is not the file of its card"):
        shipped.weights("multilora", "base")
    path.unlink()
    with pytest.raises(TenfoldError, match="is not here: `git checkout -- data/weights`"):
        shipped.weights("multilora", "base")


def test_other_weights_make_another_key_for_the_stages_that_can_read_them(ships):
    ships.train = trained
    modules = {"lib.multilora.study.testbed", "lib.zoo.shipped"}
    assert keys.shipped_to(modules) == {}
    shipping.train("multilora", seed=1)
    first = keys.shipped_to(modules)
    shipping.train("multilora", seed=2)
    assert first != keys.shipped_to(modules) != {}
    assert keys.shipped_to({"lib.multilora.compose"}) == {}


def test_a_file_too_large_to_ship_is_refused(ships, monkeypatch):
    ships.train = trained
    monkeypatch.setattr(shipped, "LARGEST", 8)
    with pytest.raises(TenfoldError, match="at most .* a file are shipped"):
        shipping.train("multilora")


def test_a_paper_that_ships_nothing_says_so():
    with pytest.raises(TenfoldError, match="seqboat ships nothing of this kind: it has no lib/seqboat/study"):
        shipping.record_replies("seqboat", model="m", url="http://127.0.0.1:9/v1")


def test_what_is_being_made_does_not_make_its_own_source_look_changed(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True
        )

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.setattr(provenance, "root", lambda: tmp_path)
    made = tmp_path / "data" / "weights" / "multilora"
    made.mkdir(parents=True)
    (made / "base.safetensors").write_bytes(b"new")
    assert provenance.git_state()["dirty"]
    assert not provenance.git_state("data/weights/multilora")["dirty"]
    (tmp_path / "data" / "other").write_text("edited")
    assert provenance.git_state("data/weights/multilora")["dirty"]
