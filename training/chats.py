"""Owns how questions and answers become chats to train on. Pure given its `rng`.

A chat is a list of (role, text). Most are short; some are long, so that the model meets its whole
context. Every assistant turn is a target.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from training import heldout, offtopic, phrases, wording
from training.facts import Fact, Topic

Chat = list[tuple[str, str]]

REFUSAL = (
    "I am the small built-in model and I only know about Llambo and the words around it, so I "
    "can't help with that. For a general model: `llamboctl pull user/repo`, then "
    "`limbot -m user/repo`."
)
REFUSAL_LANGUAGE = (
    "I am the small built-in model: I only know about Llambo, and only in English. For a general "
    "model: `llamboctl pull user/repo`, then `limbot -m user/repo`."
)
REFUSAL_EMPTY = "That was an empty message. Ask me something about Llambo, for example: What is a node?"
REFUSALS = [REFUSAL, REFUSAL_LANGUAGE, REFUSAL_EMPTY]
_SYSTEM_TOPIC = "other"
BAG_SHARE = 0.15
FOLLOW_UP_SHARE = 0.66
OTHER_SHARE = 0.2
NEIGHBOUR_SHARE = 0.2
NUMBERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 7, 9, 15, 32, 50, 100)
_PRONOUNS = ("it", "it", "it", "that", "this", "them", "one")


@dataclass(frozen=True, slots=True)
class Fork:
    """A chat and several ways to go on: each of `branches` is a question and its answer after `stem`."""

    stem: Chat
    branches: list[Chat] = field(default_factory=list)


class ChatMaker:
    """Draws chats from the topics; the same seed gives the same chats.

    Whoever trains sets `chat_share`, the share of chats of more than one turn, `branches`, in how
    many ways a short chat goes on, and what share of the chats are long prompts of how many words.
    """

    def __init__(self, topics: dict[str, Topic], seed: int) -> None:
        self.topics = topics
        self.rng = random.Random(seed)
        self.chat_share = 0.2
        self.branches = 1
        self.long_prompts = 0.018
        self.long_words = 700
        self.facts = [fact for topic in topics.values() for fact in topic.facts.values()]
        # What is asked in many ways needs to be seen more often than what is hardly asked.
        self._weights = [fact.weight * min(1.7, max(0.55, ((fact.wordings + 4) / 19) ** 0.5)) for fact in self.facts]
        self._held_out = heldout.wordings()
        self._named = {topic.id: _named(topic.names) for topic in topics.values()}

    def question(self, fact: Fact, clean: bool = False) -> str:
        """A wording that asks for `fact` without any turn before it."""
        rng = self.rng
        names = self.topics[fact.topic].names
        if fact.kind == "what" and names and not clean and rng.random() < BAG_SHARE:
            return wording.vary(wording.bag(rng.choice(names), rng), rng)
        frames: list[str] = []
        named = (
            wording.about(fact.kind, rng.choice(self.topics[fact.topic].names), rng)
            if self.topics[fact.topic].names
            else None
        )
        if named:
            frames.append(named)
            frames.append(named)
        if fact.questions:
            frames.extend(rng.choices(fact.questions, k=3))
        if fact.actions:
            frames.extend(wording.how_to(a, rng) for a in rng.choices(fact.actions, k=3))
        if fact.pairs:
            frames.extend(wording.versus(*pair, rng) for pair in rng.choices(fact.pairs, k=4))
        text = wording.expand(rng.choice(frames), rng)
        return text if clean else wording.vary(text, rng)

    def next_turn(self, last: Fact | None) -> tuple[str, Fact | None, str]:
        """A user turn after a turn about `last`, never a held-out one: the wording, its fact, the answer."""
        while True:
            turn = self._any_turn(last)
            if heldout.normal(turn[0]) not in self._held_out:
                return turn

    def _any_turn(self, last: Fact | None) -> tuple[str, Fact | None, str]:
        rng = self.rng
        draw = rng.random()
        if last is not None and draw < FOLLOW_UP_SHARE:
            followed = self._follow_up(last)
            if followed is not None:
                return followed
        if draw > 1 - OTHER_SHARE * (1 - FOLLOW_UP_SHARE * (last is not None)):
            return self._other()
        return self._numbered(*self._any_question())

    def chat(self, turns: int) -> Chat:
        """A chat of `turns` user turns."""
        return self._turns(turns)[0]

    def fork(self, turns: int) -> Fork:
        """A chat of `turns` user turns that goes on in `branches` ways."""
        stem, last = self._turns(turns)
        branches: list[Chat] = []
        for _ in range(self.branches):
            text, _, answer = self.next_turn(last)
            branches.append([("user", text), ("assistant", answer)])
        return Fork(stem, branches)

    def _turns(self, turns: int) -> tuple[Chat, Fact | None]:
        """A chat of `turns` user turns and the fact that its last one was about."""
        rng = self.rng
        chat: Chat = []
        if rng.random() < 0.12:
            chat.append(("system", wording.expand(rng.choice(offtopic.lists()["systems"]), rng)))
        last: Fact | None = None
        for _ in range(turns):
            text, last, answer = self.next_turn(last)
            chat += [("user", text), ("assistant", answer)]
        return chat, last

    def forks(self) -> Iterator[Fork]:
        """Chats without end, most of one turn, with longer ones among them."""
        while True:
            draw = self.rng.random()
            if draw < 1 - self.chat_share:
                yield Fork(self.chat(1))
            elif draw < 1 - (0.182 + self.long_prompts) * self.chat_share:
                yield self.fork(1)
            elif draw < 1 - (0.072 + self.long_prompts) * self.chat_share:
                yield self.fork(2)
            elif draw < 1 - (0.012 + self.long_prompts) * self.chat_share:
                yield Fork(self.chat(self.rng.randint(4, 7)))
            elif draw < 1 - self.long_prompts * self.chat_share:
                yield Fork(self.chat(self.rng.randint(12, 22)))
            else:
                yield Fork(self._long_prompt())

    def stream(self) -> Iterator[Chat]:
        """The chats of `forks`, each with the first of its branches only."""
        for fork in self.forks():
            yield fork.stem + (fork.branches[0] if fork.branches else [])

    def _follow_up(self, last: Fact) -> tuple[str, Fact | None, str] | None:
        rng = self.rng
        if rng.random() < 0.18:
            return self._what_about(last)
        options: list[tuple[str, Fact]] = []
        if rng.random() < 0.4:
            pointed = self._pointed(last)
            if pointed is not None:
                return pointed
        topic = self.topics[last.topic]
        for fact in topic.facts.values():
            if fact.follow_ups:
                options.append((self._expanded(rng.choice(fact.follow_ups)), fact))
            general = wording.follow_up(fact.kind, rng)
            if general and not (fact.kind == last.kind and rng.random() < 0.7):
                options.append((general, fact))
        if topic.neighbours and rng.random() < NEIGHBOUR_SHARE:
            pattern, fact = rng.choice(topic.neighbours)
            options = [(self._expanded(pattern), fact)]
        if not options:
            return None
        text, fact = rng.choice(options)
        return self._numbered(wording.vary(text, rng), fact)

    def _expanded(self, follow_up: str) -> str:
        """A follow-up's pattern drawn out; one that begins with `~` is put into a how-to frame."""
        rng = self.rng
        if follow_up.startswith("~"):
            frame = wording.expand(rng.choice(phrases.FOLLOW_UP_HOW_TO), rng)
            return frame.replace("{x}", wording.expand(follow_up[1:].strip(), rng))
        return wording.expand(follow_up, rng)

    def _pointed(self, last: Fact) -> tuple[str, Fact | None, str] | None:
        """A question about the last turn's topic with a pronoun in place of its name."""
        rng, named = self.rng, self._named[last.topic]
        fact = rng.choice([*self.topics[last.topic].facts.values()])
        patterns = [*fact.questions, *(f"~{action}" for action in fact.actions)]
        if named is None or not patterns or (fact is last and rng.random() < 0.8):
            return None
        text = rng.choice(patterns)
        if text.startswith("~"):
            text = wording.expand(rng.choice(phrases.FOLLOW_UP_HOW_TO), rng).replace("{x}", text[1:])
        text, found = named.subn(rng.choice(_PRONOUNS), wording.expand(text, rng), count=1)
        if not found or len(text.split()) < 3:
            return None
        return self._numbered(wording.vary(rng.choice(phrases.LINKS) + text, rng), fact)

    def _what_about(self, last: Fact) -> tuple[str, Fact | None, str] | None:
        rng = self.rng
        # After a refusal the question is what the other thing is, not why it is refused.
        kind = "what" if last.topic == _SYSTEM_TOPIC else last.kind
        same = [t for t in self.topics.values() if t.names and kind in t.facts and t.id != last.topic]
        topic = rng.choice(same) if same and kind in phrases.ABOUT else None
        if topic is None:
            return None
        fact = topic.facts[kind]
        frame = wording.expand(rng.choice(phrases.WHAT_ABOUT), rng)
        text = frame.replace("{x}", wording.expand(rng.choice(topic.names), rng))
        return self._numbered(wording.vary(text, rng), fact)

    def _other(self) -> tuple[str, Fact | None, str]:
        rng = self.rng
        draw = rng.random()
        refused = self.topics[_SYSTEM_TOPIC].facts["why"]
        if draw < 0.02:
            return "", None, REFUSAL_EMPTY
        if draw < 0.16:
            return offtopic.foreign(rng), refused, REFUSAL_LANGUAGE
        return offtopic.prompt(rng), refused, REFUSAL

    def _long_prompt(self) -> Chat:
        """A long text of other subjects, or one question again and again, which has its one answer."""
        rng = self.rng
        if rng.random() < 0.3:
            text, _, answer = self._numbered(*self._any_question())
            times = rng.randint(4, max(5, self.long_words // len(text.split())))
            return [("user", rng.choice((" ", "\n", "? ")).join([text] * times)), ("assistant", answer)]
        draw = rng.random()
        text = offtopic.endless(rng) if draw < 0.3 else offtopic.long_text(rng, rng.randint(80, self.long_words))
        return [("user", text), ("assistant", REFUSAL)]

    def _any_question(self) -> tuple[str, Fact]:
        fact = self.rng.choices(self.facts, self._weights)[0]
        return self.question(fact), fact

    def _numbered(self, text: str, fact: Fact) -> tuple[str, Fact, str]:
        number = str(self.rng.choice(NUMBERS))
        answer = fact.answer
        if "{n}" in text:
            return text.replace("{n}", number), fact, answer.replace("{n}", number)
        return text, fact, answer.replace("{n}", "4")


def _named(names: list[str]) -> re.Pattern[str] | None:
    """Finds one of `names`, with the article before it; None where there are none."""
    spelled = {name for pattern in names for name in wording.spellings(pattern)}
    if not spelled:
        return None
    bare = {re.sub(r"^(?:an?|the) ", "", name) for name in spelled}
    options = "|".join(re.escape(name) for name in sorted(bare, key=len, reverse=True))
    article = r"\b(?:(?:an?|the|my|one|this|some|another|single) )*"
    return re.compile(rf"{article}(?<![/.-])(?:{options})(?![\w/.-])", re.IGNORECASE)
