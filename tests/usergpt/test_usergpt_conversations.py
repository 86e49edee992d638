import random
from pathlib import Path

import pytest

from lib import TenfoldError, zoo
from lib.usergpt.conversations import (
    LONGEST_TURN,
    Conversation,
    ConversationReader,
    batched,
    draw,
    looks_english,
    shorten,
)
from lib.usergpt.privacy import mask, masked_excerpt

SHAREGPT = {"id": "abc_3", "conversations": [{"from": "human", "value": " a "}, {"from": "gpt", "value": "b"}]}
WILDCHAT = {"conversation_hash": "h", "conversation": [{"role": "user", "content": "a", "language": "English"}]}
LMSYS = {
    "conversation_id": "c",
    "conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}


@pytest.mark.parametrize(
    ("record", "layout", "thread"), [(SHAREGPT, "sharegpt", "abc"), (WILDCHAT, "wildchat", "h"), (LMSYS, "lmsys", "c")]
)
def test_three_corpora_are_told_apart_and_only_users_are_kept(record, layout, thread):
    reader = ConversationReader([record])
    (found,) = reader
    assert reader.layout is not None
    assert reader.layout.name == layout
    assert (found.thread, found.requests) == (thread, ("a",))


def test_faults_are_counted_and_nothing_else_is_dropped():
    def record(identity, *texts, speaker="human"):
        return {"id": identity, "conversations": [{"from": speaker, "value": text} for text in texts]}

    rows = [
        record("a", "hello"), record("a", "again"), record("b"), record("c", "  "), record("d", "x", speaker="gpt"),
        {"id": "e"}, {"id": "f", "conversations": "text"}, record("g", "y" * (LONGEST_TURN + 5)),
        record("h", "Wie kann ich das mit der neuen Version auf dem Server machen und ist das nicht zu langsam"),
    ]  # fmt: skip
    reader = ConversationReader(rows)
    found = list(reader)
    assert [c.id for c in found] == ["a", "g", "h"]
    assert reader.faults == {
        "repeated id": 1, "no human turn": 2, "empty request": 1, "not in the corpus's layout": 2,
    }  # fmt: skip
    assert reader.read == len(found) + reader.faults.total()
    assert len(found[1].requests[0]) == LONGEST_TURN
    assert reader.notes == {"a turn of more than 100,000 characters, cut": 1, "not in English": 1}


def test_an_unknown_corpus_is_one_sentence():
    with pytest.raises(TenfoldError, match="fields prompt, reply is in no known layout: sharegpt"):
        list(ConversationReader([{"prompt": "a", "reply": "b"}]))
    with pytest.raises(TenfoldError, match="no corpus layout is called 'sharegtp'"):
        ConversationReader([], layout="sharegtp")


@pytest.mark.parametrize("path", ["rows.json", Path("rows.json")])
@pytest.mark.usefixtures("as_installed")
def test_a_path_is_refused_before_anything_is_read(path):
    with pytest.raises(TypeError, match=r"not the path 'rows.json': read the file first"):
        ConversationReader(path)


def test_the_whole_asset_is_read_and_every_record_accounted_for():
    reader = ConversationReader(zoo.stream_dataset("sharegpt", "all"))
    threads = {conversation.thread for conversation in reader}
    assert reader.read == 17_671
    assert reader.faults["no human turn"] == 274
    assert reader.faults.total() < 300
    assert 9_000 < len(threads) < 9_500


def test_a_draw_ignores_order_and_grows_from_within():
    conversations = [Conversation(str(i), str(i), ("x",)) for i in range(500)]
    ten = draw(conversations, 10, salt="s")
    random.Random(0).shuffle(conversations)
    assert draw(iter(conversations), 10, salt="s") == ten
    assert draw(conversations, 30, salt="s")[:10] == ten
    assert draw(conversations, 10, salt="t") != ten
    assert len(draw(conversations, 900, salt="s")) == 500


def test_a_draw_is_even():
    conversations = [Conversation(str(i), str(i), ("x",)) for i in range(2000)]
    first_half = [sum(int(c.id) < 1000 for c in draw(conversations, 400, salt=f"s{k}")) for k in range(10)]
    assert abs(sum(first_half) - 2000) < 6 * (4000 * 0.25 * 0.8) ** 0.5


def test_excerpts_keep_head_and_tail():
    text = "head " + "x" * 1000 + " tail"
    assert shorten(text, 60).startswith("head x")
    assert shorten(text, 60).endswith("x tail")
    assert len(shorten(text, 60)) <= 60
    assert shorten(" short ", 60) == "short"
    many = Conversation("i", "i", tuple(f"turn {i} " + "z" * 200 for i in range(40)))
    assert len(many.excerpt(240)) <= 240
    assert "turn 0" in many.excerpt(240)


def test_batches_hold_everything_in_order():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("How do I write a letter to the editor of my local newspaper?", True),
        ("def f(x): return x + 1", True),
        ("¿Cómo puedo escribir una carta para el director de la revista que me gusta?", False),
        ("Comment est-ce que je peux faire une application pour les élèves de ma classe avec Python", False),
        ("量子コンピュータを説明してください", False),
        ("12345", True),
    ],
)
def test_language_is_told(text, english):
    assert looks_english(text) is english


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.example.org now", "write to [e-mail] now"),
        ("call +49 170 1234567 or (555) 666-6666.", "call [phone] or [phone]."),
        ("call 555-123-4567", "call [phone]"),
        ("key sk-abcDEF1234567890abcd here", "key [key] here"),
        ("AKIAABCDEFGHIJKLMNOP", "[key]"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer [key]"),
        ('password = "hunter2secret"', 'password = "[key]"'),
        ("host 192.168.10.20", "host [address]"),
        ("card 4111 1111 1111 1111", "card [number]"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.abc", "token [key]"),
    ],
)
def test_secrets_are_masked(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "in 2020-11-25 at 10:30",
        "x = 3.14159265358979",
        "line 129 of script.js:129",
        "population 1 234 567",
        "3-5 pages",
    ],
)
def test_ordinary_numbers_stay(text):
    assert mask(text) == text


def test_an_excerpt_is_masked_before_it_is_cut():
    text = "my key is sk-" + "a1" * 30 + " and more"
    for characters in range(12, 60):
        assert "a1a1" not in masked_excerpt(text, characters)
        assert len(masked_excerpt(text, characters)) <= characters


def test_a_second_reading_counts_anew():
    reader = ConversationReader([{"id": "a", "conversations": [{"from": "human", "value": "hello"}]}, {"id": "b"}] * 2)
    for _ in range(2):
        assert [conversation.id for conversation in reader] == ["a"]
        assert (reader.read, dict(reader.faults)) == (4, {"repeated id": 1, "not in the corpus's layout": 2})
