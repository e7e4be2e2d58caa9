"""A conversation in a terminal: an engine, a tokenizer, and what was said so far."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from geminid.serve.engine import Engine, Options

TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"  # Gemma 2 and 3
QUIT = "/quit"
UNFINISHED = "\ufffd"  # what a tokenizer gives for bytes of a character that are not all there yet


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model: text to ids and back.

    processor: a `sentencepiece.SentencePieceProcessor`. turns: whether the model was trained on conversations; Gemma's
    base models have the same pieces, and never saw them used.
    """

    processor: Any
    turns: bool = True

    def special(self, piece: str) -> int | None:
        """The id of a piece that stands for itself; None where the tokenizer does not have it."""
        found = self.processor.piece_to_id(piece)
        return None if found == self.processor.unk_id() else found

    @property
    def has_turns(self) -> bool:
        return self.turns and self.special(TURN) is not None and self.special(END_OF_TURN) is not None

    @property
    def stops(self) -> list[int]:
        """Ids that end an answer."""
        known = (self.special(END_OF_TURN), self.special("<eos>"), self.processor.eos_id())
        return sorted({i for i in known if i is not None and i >= 0})

    def continued(self, text: str) -> list[int]:
        """The prompt that `text` goes on from."""
        begin = self.processor.bos_id()
        return ([begin] if begin >= 0 else []) + self.processor.encode(text)

    def conversation(self, turns: Iterable[tuple[str, str]]) -> list[int]:
        """Turns (role, text) in Gemma's form, ready for the model's answer. Roles: user, model."""
        encode, turn, end = self.processor.encode, self.special(TURN), self.special(END_OF_TURN)
        assert turn is not None and end is not None
        ids: list[int] = [self.processor.bos_id()]
        for role, text in turns:
            ids += [turn, *encode(f"{role}\n{text.strip()}"), end, *encode("\n")]
        return [*ids, turn, *encode("model\n")]

    def spoken(self, pieces: Iterable[list[int]]) -> Iterator[str]:
        """The text of ids that come a few at a time, each part once it cannot change any more."""
        ids: list[int] = []
        given = ""
        for new in pieces:
            ids += new
            text = self.processor.decode(ids)
            if text.endswith(UNFINISHED) or not text.startswith(given):
                continue
            yield text[len(given) :]
            given = text
        text = self.processor.decode(ids)
        yield text[len(given) :]


class Chat:
    """Asks, streams the answer, remembers both. A base model goes on from what was typed."""

    def __init__(self, engine: Engine, pieces: Pieces, options: Options):
        self.engine, self.pieces, self.options = engine, pieces, options
        self.turns: list[tuple[str, str]] = []

    def prompt(self, text: str) -> list[int]:
        """Ids of the conversation with one more turn of the user; the oldest turns go where it becomes too long."""
        if not self.pieces.has_turns:
            return self.pieces.continued(text)
        turns = [*self.turns, ("user", text)]
        room = self.engine.max_length - self.options.max_new
        while len(ids := self.pieces.conversation(turns)) > room and len(turns) > 2:
            turns = turns[2:]
        return ids

    def say(self, text: str) -> Generator[str, None, None]:
        """The answer, part by part. What was said until then is remembered also where one stops listening."""
        prompt, said = self.prompt(text), []
        stream = self.engine.stream([prompt], [self.options], steps=2)
        try:
            for part in self.pieces.spoken(new[0] for new in stream):
                said.append(part)
                yield part
        finally:
            self.turns += [("user", text), ("model", "".join(said))]


def talk(chat: Chat, ask: Callable[[], str], show: Callable[[str], None]) -> None:
    """The loop of the terminal. Ctrl-C ends an answer, /quit or the end of the input the conversation."""
    while True:
        try:
            text = ask()
        except EOFError:
            return
        if text.strip() == QUIT:
            return
        if not text.strip():
            continue
        answer = chat.say(text)
        try:
            for part in answer:
                show(part)
        except KeyboardInterrupt:
            answer.close()
        except ValueError as error:  # a text that does not fit: the conversation goes on
            show(str(error))
        show("\n")
