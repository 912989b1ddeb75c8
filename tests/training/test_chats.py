"""Chats: the assistant's tokens, rows of whole chats, and a run on them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st
from transformers import AutoTokenizer

import longwave
from longwave.data.chat_tokens import ChatEncoder, ChatStream, chat_stream
from longwave.data.chats import hold_chats, read_chats
from longwave.data.documents import read_documents
from longwave.data.kinds import Parsing
from longwave.training.metrics import read_metrics
from longwave.training.packing import best_fit, pack_chats

PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</>\n"
    "{% endgeneration %}{% else %}{{ m['content'] }}</>\n{% endif %}{% endfor %}"
)
LAST_ONLY = "{% for m in messages %}<{{ m['role'] }}>{% if loop.last %}{{ m['content'] }}{% endif %}\n{% endfor %}"
TALK = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "three é"},
]


@pytest.fixture
def speaker(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = PLAIN
    return own


def chat_file(path: Path, chats: list[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_the_loss_is_on_the_assistants_tokens(speaker, template) -> None:
    speaker.chat_template = template
    ids, learned = ChatEncoder(speaker)(TALK)
    assert speaker.decode(ids) == "".join(f"<{m['role']}>{m['content']}</>\n" for m in TALK)
    assert speaker.decode([i for i, own in zip(ids, learned, strict=True) if own]) == "two</>\nthree é</>\n"


def test_a_template_that_writes_beginnings_otherwise_is_refused(speaker, tmp_path) -> None:
    speaker.chat_template = LAST_ONLY
    path = chat_file(tmp_path / "chats.jsonl", [TALK])
    with pytest.raises(ValueError, match=r"chats.jsonl, line 1: the chat template writes the beginning of this chat"):
        chat_stream(read_chats([path]), speaker)


def test_a_tokenizer_without_a_template(tokenizer, train, llama, tmp_path) -> None:
    path = chat_file(tmp_path / "chats.jsonl", [TALK] * 20)
    with pytest.raises(ValueError, match=r"the tokenizer has no chat template. Pass --chat-template"):
        train(llama, data=[path])


def test_where_chats_are_found(tmp_path, book) -> None:
    sharegpt = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": sharegpt}, {"conversations": sharegpt}]))
    table = pyarrow.Table.from_pylist([{"messages": TALK, "source": "x"}])
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    lines = chat_file(tmp_path / "l.jsonl", [TALK])
    texts = tmp_path / "t.jsonl"
    texts.write_text(json.dumps({"text": "a", "messages": TALK}) + "\n")
    chats = [tmp_path / "s.json", tmp_path / "p.parquet", lines]
    assert hold_chats(chats) and not hold_chats([book, texts])
    found = [json.loads(row["chat"])["messages"] for row in read_chats(chats)]
    short = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert found == [short, short, TALK, TALK]
    with pytest.raises(ValueError, match=r"l.jsonl holds chats, and .*book.txt holds none"):
        hold_chats([lines, book])
    assert not hold_chats(chats, Parsing("content")), "another column was asked for"


def test_chats_of_a_saved_data_set_and_of_the_hub(tmp_path) -> None:
    rows = [{"messages": TALK, "source": "x", "tools": None}, {"messages": TALK[:3], "source": "y", "tools": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    hub = tmp_path / "owner" / "talks"
    hub.mkdir(parents=True)
    (hub / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for data in (arrow, f"hub:{hub}"):
        assert hold_chats([data])
        found = [json.loads(row["chat"])["messages"] for row in read_chats([data])]
        assert found == [TALK, TALK[:3]]
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"\.arrow.* is (damaged after row 0|not an arrow file)"):
        list(read_documents([arrow]) if not hold_chats([arrow]) else read_chats([arrow]))


@pytest.mark.slow
def test_chats_and_texts_are_mixed_by_shares(speaker, llama, book, tmp_path) -> None:
    """Rows of both: the chats have documents to keep apart, a row of the book is one document."""
    path = chat_file(tmp_path / "chats.jsonl", [TALK] * 60)
    out = longwave.train(
        llama, [f"{path}@0.5", f"{book}@0.5"], tmp_path / "out", tokenizer=speaker, method="clex", train_length=128,
        max_factor=8, steps=6, batch_size=4, progress=False,
    )  # fmt: skip
    used = json.loads((out / "training.json").read_text())["result"]["tokens_by_source"]
    assert len(used) == 2 and all(used.values())


def test_a_template_without_chats_is_refused(train, llama, book, tmp_path) -> None:
    (tmp_path / "template").write_text(LAST_ONLY)
    with pytest.raises(ValueError, match=r"template is for chats, and the data hold none.*Leave it out"):
        train(llama, data=[book], chat_template=str(tmp_path / "template"))


def test_another_template_is_another_run(speaker, tokenizer, train, llama, tmp_path) -> None:
    template = tmp_path / "template"
    template.write_text(speaker.chat_template)
    settings = {
        "data": [chat_file(tmp_path / "chats.jsonl", [TALK] * 60)],
        "chat_template": str(template),
        "steps": 2,
        "train_length": 128,
    }
    before = tokenizer.chat_template
    out = train(llama, **settings)
    assert tokenizer.chat_template == before, "the caller's tokenizer"
    assert AutoTokenizer.from_pretrained(out).chat_template == template.read_text()
    longwave.restore(llama)
    template.write_text(speaker.chat_template.replace("<", "["))
    with pytest.raises(ValueError, match="the data are not the same"):
        train(llama, resume=True, **settings)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": TALK[:2]}, "line 2: the chat has no message of the assistant"),
        ({"messages": "hi"}, "line 2: expected a list of messages"),
        ({"messages": [{"content": "hi"}]}, "line 2: expected a list of messages, each with a `role`"),
        ({"conversations": [{"from": "bard", "value": "x"}]}, "line 2: a message is from 'bard'"),
        ({"prompt": "hi"}, "line 2: expected an object with `messages`, got prompt"),
    ],
)
def test_rows_that_are_no_chats(tmp_path, row, said) -> None:
    path = chat_file(tmp_path / "chats.jsonl", [TALK])
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=said):
        read_chats([path])


@rules(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60))
def test_rows_hold_every_item_once(sizes: list[int]) -> None:
    rows = best_fit(np.asarray(sizes), 16)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    filled = [sum(sizes[item] for item in row) for row in rows]
    assert max(filled) <= 16
    assert sum(sorted(filled)[:2]) > 16 or len(filled) == 1  # no two rows would fit into one


def test_chats_are_packed_whole(caplog) -> None:
    text = ChatStream(np.arange(1, 21, dtype=np.int32), np.array([0, 3, 7, 15]), np.arange(20) % 2 == 0, fill=99)
    rows, marks = pack_chats(text, 7)
    assert rows.tolist() == [[16, 17, 18, 19, 20, 99, 99], [4, 5, 6, 7, 1, 2, 3]]
    assert marks.starts.tolist() == [0, 5, 7, 11] and marks.by_rows
    assert [int(i) for i in rows.view(-1)[marks.learned]] == [17, 19, 5, 7, 1, 3]
    assert "left out 1 of 4 chats: they are longer than a row of 7 tokens (the longest has 8)" in caplog.text
    with pytest.raises(ValueError, match="every chat is longer than a row of 2 tokens"):
        pack_chats(text, 2)


def test_the_field_trains_on_chats_that_are_shorter_than_l(llama, train, speaker, tmp_path) -> None:
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n + 1)}] for n in range(60)]
    template = tmp_path / "template.jinja"
    template.write_text(PLAIN)
    folder = train(
        llama, data=[chat_file(tmp_path / "chats.jsonl", chats)], train_length=64, steps=4, chat_template=str(template)
    )
    rows = read_metrics(folder / "metrics.jsonl")
    assert all(row["field_grad_norm"] > 0 and min(row["factors"]) >= 1 for row in rows)
    assert max(t for row in rows for t in row["factors"]) > 2
    assert (folder / "chat_template.jinja").read_text() == PLAIN
