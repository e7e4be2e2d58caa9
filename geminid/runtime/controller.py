"""The controller of a run: a deterministic state machine, `on(event) -> commands`.

It holds no tensors and has no clock, network or randomness: the same events give the same commands, in a real run and
in a simulated one. docs/controller.md has the states, the commit rule and the invariants.

One step is one or more attempts. An attempt has a number; an answer that carries another number is not for it. When
anything goes wrong the attempt is dropped and a new one begins with whoever is left; slices answer at once with what
they have at hand, so only what was lost is done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from geminid.runtime import messages as m
from geminid.runtime.members import Role
from geminid.runtime.messages import Command, Copy, Event, Finding, Policy, Waiting
from geminid.runtime.recovery import Guest, Phase, Purpose, Recovery
from geminid.runtime.replicas import choose, survival
from geminid.runtime.verdicts import assign, judge, majority


@dataclass
class Question:
    """A shard whose gradients are computed again, and the digests that came back so far."""

    suspicious: bool
    opinions: dict[str, int | None] = field(default_factory=dict)
    settled: bool = False


class Controller(Recovery):
    """Decides everything, does nothing. `incarnation` counts the controllers that this run has had."""

    def __init__(self, policy: Policy, incarnation: int = 0) -> None:
        super().__init__(policy, incarnation)
        self.owners: tuple[str, ...] = ()  # by shard
        self.gradients: dict[int, int] = {}  # shard -> digest, each counted once
        self.questions: dict[int, Question] = {}  # by shard
        self.team: list[str] = []  # who updates: active slices, and guests that join
        self.updates: dict[str, int] = {}
        self.stuck: dict[str, str] = {}  # slice -> the peer that it could not reach
        self.retries = 0  # attempts at this step that ended in a stuck exchange
        self._since = self.attempt  # gradients of older attempts are not believed
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Start: self._on_start,
            m.Hello: self._on_hello,
            m.Lost: self._on_lost,
            m.Repaired: self._on_repaired,
            m.Expired: self._on_expired,
            m.Reported: self._on_reported,
            m.Computed: self._on_computed,
            m.Recomputed: self._on_recomputed,
            m.Updated: self._on_updated,
            m.Stuck: self._on_stuck,
            m.Fetched: self._on_fetched,
            m.Saved: self._on_saved,
        }

    @property
    def cursor(self) -> int:
        """Logical shards of data that committed steps have read: a function of the step, so neither can skip."""
        return self.step * self.policy.num_shards

    def on(self, event: Event) -> list[Command]:
        """What is to be done now that `event` has happened."""
        self._out = []
        finished = self.phase in (Phase.DONE, Phase.FAILED)
        if not finished and getattr(event, "attempt", self.attempt) == self.attempt:
            self._handlers[type(event)](event)
        return self._out

    @property
    def survival(self) -> float:
        """Probability that a copy of the committed state in memory outlives `COPIES_S`, from here on."""
        arrived = [name for name, guest in self.guests.items() if guest.digest is not None]
        holders = [self.members.by_name[name].place for name in (*self.members.active, *arrived)]
        return survival(holders, self.policy.hazards)

    # --- a step: gradients, update, commit ---

    def _begin(self, fresh: bool = False) -> None:
        """A new attempt at the next step. `fresh`: nothing that was computed for it before is believed."""
        self._renew()
        self.gradients, self.questions, self.updates, self.stuck = {}, {}, {}, {}
        active = self.members.active
        if not active or self.committed is None:
            self._roll_call()
            return
        if self.step >= self.policy.num_steps:
            self.phase = Phase.DONE
            self._out.append(m.Finish(self.committed))
            return
        standbys = [name for name in self.members.standbys if name not in self._benched]
        if len(active) + len(standbys) < self.policy.min_slices:
            standbys = self.members.standbys
        wanted = self.policy.slices + (self.replays > 0)  # one more opinion where nobody had a majority
        joiners = standbys[: max(0, wanted - len(active))]
        if len(active) + len(joiners) < self.policy.min_slices:
            self._wait_for_slices()
            return
        self.phase = Phase.GRADIENTS
        self._since = self.attempt if fresh else self._since
        self.owners = assign(self.policy.num_shards, active, self.owners)
        shards: dict[str, list[int]] = {name: [] for name in active}
        for shard, owner in enumerate(self.owners):
            shards[owner].append(shard)
        for name, mine in shards.items():
            self._out.append(m.Compute(name, self.attempt, self.committed, self.cursor, tuple(mine), self._since))
        self._expect(Waiting.GRADIENTS, active, self.policy.deadlines.shard_s * max(map(len, shards.values())))
        self._invite(self.committed, active, joiners, standbys[len(joiners) :])

    def _invite(self, copy: Copy, active: list[str], joiners: list[str], spare: list[str]) -> None:
        """Guests get the state while the gradients are computed: it does not change before the commit."""
        purposes = dict.fromkeys(joiners, Purpose.JOIN)
        if self._audit_is_due() and spare:
            purposes[spare.pop(0)] = Purpose.AUDIT
        places = {name: member.place for name, member in self.members.by_name.items()}
        holders = [*active, *purposes]
        candidates = {name: places[name] for name in (*self.members.keepers, *spare)}
        lacking = self.policy.copies - len(holders)
        keepers = choose(candidates, lacking, [places[name] for name in holders], self.policy.hazards)
        purposes |= dict.fromkeys(keepers, Purpose.KEEP)
        for k, (name, purpose) in enumerate(purposes.items()):
            turn = (k + self.step) % len(active)  # nobody serves all
            self._fetch(name, Guest(purpose, active[turn:] + active[:turn], copy))

    def _audit_is_due(self) -> bool:
        return self.policy.audit_every is not None and self.step % self.policy.audit_every == 0

    def _on_computed(self, event: m.Computed) -> None:
        if self.phase is not Phase.GRADIENTS:
            return
        for shard, digest in event.digests:
            if self.owners[shard] == event.slice and shard not in self.gradients:
                self.gradients[shard] = digest
        self._answered(Waiting.GRADIENTS, event.slice)
        for shard in event.suspicious:
            if shard not in self.questions:
                self._ask(shard, self.owners[shard], suspicious=True)
                self._ask_witness(shard)
        self._go_on()

    def _go_on(self) -> None:
        """From gradients to update, once every shard is there and nothing about it is open."""
        if len(self.gradients) < self.policy.num_shards or any(g.digest is None for g in self.guests.values()):
            return  # a guest is a witness once it has the state
        if self._audit_is_due():
            self._audit()
        for shard, question in list(self.questions.items()):
            if not question.settled and None not in question.opinions.values() and shard in self.questions:
                self._settle(shard, question)
        if self.phase is Phase.GRADIENTS and not self.waits:
            self._update()

    def _update(self) -> None:
        assert self.committed is not None
        self.phase = Phase.UPDATE
        joining = [name for name, guest in self.guests.items() if guest.purpose is Purpose.JOIN]
        self.team = self.members.active + joining
        digests = tuple(self.gradients[shard] for shard in range(self.policy.num_shards))
        deadlines = self.policy.deadlines
        for name in self.team:
            self._out.append(m.Update(name, self.attempt, self.committed, self.owners, digests, deadlines.exchange_s))
        self._expect(Waiting.UPDATES, self.team, deadlines.update_s)

    def _on_updated(self, event: m.Updated) -> None:
        self.updates.setdefault(event.slice, event.digest)
        self._decide(event.slice)

    def _on_stuck(self, event: m.Stuck) -> None:
        self.stuck.setdefault(event.slice, event.peer)
        self._decide(event.slice)

    def _decide(self, name: str) -> None:
        """The commit rule: every slice of the team has the new state, and all digests are the same."""
        self._answered(Waiting.UPDATES, name)
        if self.phase is not Phase.UPDATE or not self.updates.keys() | self.stuck.keys() >= set(self.team):
            return
        digests = set(self.updates.values())
        if self.stuck:
            self._untangle()
        elif len(digests) == 1:
            self._commit(digests.pop())
        else:
            self._disagree()

    def _commit(self, digest: int) -> None:
        self.committed = Copy(self.step + 1, digest)
        self.replays = self.retries = 0
        self._benched = set()
        for name in self.team:
            self._out.append(m.Commit(name, self.attempt, self.committed))
            if name in self.guests:
                self._record(Finding.PROMOTED, [name])
            self.members.appoint(name, Role.ACTIVE)
        team, copy, every = self.team, self.committed, self.policy.save_every
        self._begin()
        if every is not None and copy.step % every == 0:
            self._out.append(m.Save(team[copy.step // every % len(team)], self.attempt, copy))

    def _disagree(self) -> None:
        """Void the attempt: gradients of a slice that is wrong are in everybody's sum. Its shards get other owners."""
        truth = majority(self.updates)
        if truth is None:
            self._record(Finding.DISAGREEMENT, self.team, "no majority")
            self._replay(self._roll_call)
            return
        minority = [name for name, digest in self.updates.items() if digest != truth]
        self._record(Finding.DISAGREEMENT, minority)
        for name in minority:
            self.members.appoint(name, Role.STANDBY)
            self._strike(name)
        self._begin()

    def _untangle(self) -> None:
        """Everybody lives, yet some cannot reach others: try again, then without whom it concerns most."""
        self.retries += 1
        if self.retries == 1:
            self._begin(fresh=True)
            return
        involved = Counter([*self.stuck, *self.stuck.values()])
        self._give_up([max(self.team, key=lambda name: (involved[name], name))], "the exchange is stuck")

    # --- second opinions: audits and suspicious steps ---

    def _audit(self) -> None:
        """Have one shard of this step computed by somebody else, best by an idle standby."""
        assert self.policy.audit_every is not None
        shard = self.step // self.policy.audit_every % self.policy.num_shards
        if shard not in self.questions:
            self._ask_witness(shard)

    def _on_fetched(self, event: m.Fetched) -> None:
        if not self._arrived(event):
            return
        if self.phase is Phase.RESTORE:
            self._restored()
        elif event.slice in self.guests:
            self._go_on()
        else:  # every source failed for it: a roll call tells whose copies are bad
            self._strike(event.slice)
            self._roll_call()

    def _ask(self, shard: int, name: str, suspicious: bool = False) -> None:
        assert self.committed is not None
        self.questions.setdefault(shard, Question(suspicious)).opinions[name] = None
        self._out.append(m.Recompute(name, self.attempt, self.committed, self.cursor, shard))
        self._expect(Waiting.OPINIONS, [name], self.policy.deadlines.shard_s * (1 + self.policy.num_shards), shard)

    def _ask_witness(self, shard: int) -> bool:
        """One more slice that has the state and was not asked yet; False: there is none."""
        ready = [s for s, g in self.guests.items() if g.digest is not None and self.members.by_name[s].computes]
        asked = self.questions[shard].opinions if shard in self.questions else {}
        owner = self.owners[shard]
        active = self.members.active
        turn = active.index(owner) + 1
        witness = next((s for s in [*ready, *active[turn:], *active[:turn]] if s not in asked and s != owner), None)
        if witness is not None:
            self._ask(shard, witness)
        return witness is not None

    def _on_recomputed(self, event: m.Recomputed) -> None:
        question = self.questions.get(event.shard)
        if self.phase is not Phase.GRADIENTS or question is None or question.opinions.get(event.slice, 0) is not None:
            return
        question.opinions[event.slice] = event.digest
        self._answered(Waiting.OPINIONS, event.slice, event.shard)
        self._go_on()

    def _settle(self, shard: int, question: Question) -> None:
        owner, original = self.owners[shard], self.gradients[shard]
        opinions = {name: digest for name, digest in question.opinions.items() if digest is not None}
        if opinions.keys() <= {owner} and self._ask_witness(shard):
            return
        finding = judge(owner, original, opinions)
        if finding is None:
            if owner not in opinions:
                self._ask(shard, owner)
                return
            if self._ask_witness(shard):
                return
            finding = Finding.UNDECIDED
        question.settled = True
        truth = majority(opinions)
        wrong = [name for name, digest in opinions.items() if digest != truth]
        if finding is not Finding.CLEAN or question.suspicious:
            self._record(finding, [owner] if finding is Finding.TRANSIENT else wrong, f"shard {shard}")
        self._act_on(finding, shard, owner, wrong, truth)

    def _act_on(self, finding: Finding, shard: int, owner: str, wrong: list[str], truth: int | None) -> None:
        if finding in (Finding.NONDETERMINISM, Finding.UNDECIDED):
            self._replay(lambda: self._begin(fresh=True))
        elif finding in (Finding.STICKY, Finding.WITNESS):
            # who is wrong about this shard is not believed about its own
            for name in wrong:
                self._quarantine(name)
            self._begin(fresh=True)
        elif finding is Finding.TRANSIENT:
            assert truth is not None
            self.gradients[shard] = truth  # which the owner has at hand: `Recompute` replaced the other
            if self._strike(owner):
                self._begin(fresh=True)

    def _on_saved(self, event: m.Saved) -> None:
        if not self.checkpoints or event.copy.step > self.checkpoints[-1].step:
            self.checkpoints.append(event.copy)
