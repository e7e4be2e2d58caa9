"""Conversations with an engine that says what it is told to, and with a tokenizer of letters and bytes."""

from __future__ import annotations

import pytest

from geminid.serve.chat import Chat, Pieces, talk
from geminid.serve.engine import Options

SPECIALS = ["<unk>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
BASE = len(SPECIALS)


class Bytes:
    """Stands in for SentencePiece: a piece is a byte of UTF-8, after the specials."""

    def __init__(self, specials: list[str] = SPECIALS):
        self.specials = specials

    def piece_to_id(self, piece: str) -> int:
        return self.specials.index(piece) if piece in self.specials else 0

    def unk_id(self) -> int:
        return 0

    def bos_id(self) -> int:
        return 2

    def eos_id(self) -> int:
        return 1

    def encode(self, text: str) -> list[int]:
        return [BASE + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - BASE for i in ids if i >= BASE).decode(errors="replace")


class Parrot:
    """Stands in for the engine: gives the ids of `answer`, a few at a time, and keeps the prompts."""

    def __init__(self, answer: str, max_length: int = 1000):
        self.ids, self.prompts, self.max_length = Bytes().encode(answer), [], max_length

    def stream(self, prompts, options, steps):
        self.prompts += prompts
        if len(prompts[0]) + options[0].max_new > self.max_length:
            raise ValueError("too long")
        for at in range(0, len(self.ids), steps):
            yield [self.ids[at : at + steps]]


def chat_of(answer: str, specials: list[str] = SPECIALS, **values) -> Chat:
    return Chat(Parrot(answer, **values), Pieces(Bytes(specials)), Options(max_new=10))


def spelled(ids: list[int]) -> str:
    return "".join(SPECIALS[i] if i < BASE else chr(i - BASE) for i in ids)


def test_a_conversation_has_gemmas_form():
    """Beside the template of google/gemma-3: a turn's text is stripped, and the model's turn is begun."""
    chat = chat_of("Hi!")
    assert "".join(chat.say(" Hello ")) == "Hi!"
    list(chat.say("Bye"))
    assert spelled(chat.engine.prompts[1]) == (
        "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_model_without_turns_goes_on_from_the_text():
    chat = chat_of(" there", SPECIALS[:3])
    list(chat.say("Hello"))
    list(chat.say("Bye"))
    assert [spelled(ids) for ids in chat.engine.prompts] == ["<bos>Hello", "<bos>Bye"]


@pytest.mark.parametrize("answer", ["кот и €", "日本語 🐈 é", "plain", ""])
def test_no_character_is_torn_apart(answer):
    parts = list(chat_of(answer).say("x"))
    assert "".join(parts) == answer
    assert not any("\ufffd" in part for part in parts)


def test_what_is_cut_in_the_middle_of_a_character_is_still_shown():
    pieces = Pieces(Bytes())
    assert "".join(pieces.spoken([pieces.processor.encode("a€")[:-1]])) == "a\ufffd"


def test_the_oldest_turns_go_where_the_conversation_becomes_too_long():
    chat = chat_of("ok", max_length=75)
    for text in ("first", "second", "third"):
        list(chat.say(text))
    last = spelled(chat.engine.prompts[-1])
    assert "first" not in last and "second" in last and "third" in last


def test_stops_are_the_ends_of_turn_and_text():
    assert Pieces(Bytes()).stops == [1, 4]
    assert Pieces(Bytes(SPECIALS[:3])).stops == [1]


def run_talk(chat: Chat, lines: list[str]) -> str:
    shown: list[str] = []
    waiting = iter(lines)

    def ask() -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        return line

    talk(chat, ask, shown.append)
    return "".join(shown)


def test_a_terminal_ends_by_quit_and_by_the_end_of_its_input():
    chat = chat_of("ok")
    assert run_talk(chat, ["a", "", "/quit", "b"]) == "ok\n"
    assert run_talk(chat, ["c"]) == "ok\n"
    assert [text for _, text in chat.turns] == ["a", "ok", "c", "ok"]


def test_ctrl_c_ends_the_answer_and_not_the_conversation():
    chat, shown = chat_of("abcdef"), []

    def show(part: str) -> None:
        shown.append(part)
        if shown == ["ab", "cd"]:
            raise KeyboardInterrupt

    lines = iter(["one", "/quit"])
    talk(chat, lambda: next(lines), show)
    assert shown == ["ab", "cd", "\n"]
    assert chat.turns == [("user", "one"), ("model", "abcd")]


def test_a_text_that_does_not_fit_is_one_line_and_the_conversation_goes_on():
    chat = chat_of("ok", max_length=70)
    assert run_talk(chat, ["x" * 100, "/quit"]) == "too long\n"
