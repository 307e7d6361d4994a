"""Two sides joined by pipes that cut and lose: what comes is what was sent, or it is over."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model import BATCH, GUEST, HOST, LOST, MOST, OTHER, End, Joint

from muonsocks.socks.request import UNSPECIFIED

sides = st.sampled_from((GUEST, HOST))
anyone = st.integers(0, 1 << 16)  # of those that there are then
sizes = st.sampled_from((1, 2, 5, 100, 4096, 20_000, 70_000, 1 << 18))
kinds = st.sampled_from(("plain", "plain", "magic", "ff", "as a HELLO begins"))


class Machine(RuleBasedStateMachine):
    """What may happen, in any order."""

    joint = Joint(0)

    @initialize(
        memory=st.sampled_from((0, 1 << 17, 1 << 24)),
        opened=st.integers(-1, MOST),
    )
    def begin(self, memory: int, opened: int) -> None:
        self.joint = Joint(memory)
        self.joint.sides[GUEST].mux.greet()
        if opened >= 0:
            self.joint.catch_up()
            assert self.is_up(GUEST) and self.is_up(HOST)
        for _ in range(opened):
            self.open(at_once=True)

    def is_up(self, who: str) -> bool:
        return self.joint.sides[who].mux.is_up

    def one(self, which: int, may: str) -> End:
        candidates = self.those(may)
        return candidates[which % len(candidates)]

    def those(self, may: str) -> list[End]:
        return [end for end in self.joint.ends if getattr(end, may)]

    @precondition(lambda self: self.is_up(GUEST))
    @rule(at_once=st.booleans())
    def open(self, at_once: bool) -> None:
        pair = self.joint.open()
        if at_once and pair is not None:
            self.joint.deliver(GUEST)
            if HOST in pair.ends:
                self.joint.answer(pair.ends[HOST], 0)
            self.joint.deliver(HOST)

    @precondition(lambda self: self.those("may_answer"))
    @rule(which=anyone, code=st.sampled_from((0, 0, 0, 5)))
    def answer(self, which: int, code: int) -> None:
        self.joint.answer(self.one(which, "may_answer"), code)

    @precondition(lambda self: self.those("may_send"))
    @rule(which=anyone, size=sizes, kind=kinds, in_batch=st.booleans())
    def send(self, which: int, size: int, kind: str, in_batch: bool) -> None:
        self.joint.send(self.one(which, "may_send"), size, kind, in_batch)

    @precondition(lambda self: self.those("may_send"))
    @rule(which=anyone, rounds=st.sampled_from((2, 5)))
    def pump(self, which: int, rounds: int) -> None:
        """Send more than any window, all there is credit for and then again."""
        end = self.one(which, "may_send")
        for _ in range(rounds):
            if end.may_send:
                self.joint.send(end, BATCH.size)
            self.joint.deliver(end.side.who)
            if end.other is not None and end.other.may_consume:
                self.joint.consume(end.other)
            self.joint.deliver(OTHER[end.side.who])
            self.joint.check()

    @precondition(lambda self: self.those("may_send"))
    @rule()
    def fill(self) -> None:
        self.joint.fill()

    @precondition(lambda self: self.those("may_consume"))
    @rule(which=anyone, percent=st.sampled_from((10, 50, 100)))
    def consume(self, which: int, percent: int) -> None:
        self.joint.consume(self.one(which, "may_consume"), percent)

    @precondition(lambda self: self.those("may_end"))
    @rule(which=anyone)
    def end(self, which: int) -> None:
        self.joint.end(self.one(which, "may_end"))

    @precondition(lambda self: self.those("may_release"))
    @rule(which=anyone, releases=st.booleans())
    def reset(self, which: int, releases: bool) -> None:
        self.joint.reset(self.one(which, "may_release"), releases)

    @rule(who=sides, size=st.sampled_from((1, 2, 3, 5, 20, 45, 300, 9000)))
    def deliver(self, who: str, size: int) -> None:
        self.joint.deliver(who, size)

    @rule(who=sides)
    def deliver_all(self, who: str) -> None:
        self.joint.deliver(who)

    @rule()
    def catch_up(self) -> None:
        self.joint.catch_up()

    @rule(who=sides)
    def tick(self, who: str) -> None:
        """A side that is not up greets from time to time, and one that is asks for a sign."""
        mux = self.joint.sides[who].mux
        if mux.is_up:
            self.joint.tokens += 1
            mux.ping(b"%07d\xff" % self.joint.tokens)
        else:
            mux.greet()

    @rule(
        who=sides,
        what=st.sampled_from(("goodbye", "restart", "loss")),
        cuts=st.tuples(anyone, anyone),
        loses=st.sampled_from(("all", "some", "few")),
    )
    def trouble(self, who: str, what: str, cuts: tuple[int, int], loses: str) -> None:
        """A side ends the session; or dies, and another one comes; or finds its port lost."""
        side = self.joint.sides[who]
        if what == "goodbye":
            if side.mux.is_up:
                side.mux.say_goodbye("enough")
                side.drop_all()
            return
        self.joint.lose(who, cuts, loses)
        if what == "restart":
            side.restart()
        else:
            side.mux.lose(LOST)
            side.drop_all()
        side.mux.greet()

    @invariant()
    def check(self) -> None:
        self.joint.check()

    def teardown(self) -> None:
        """Everything is delivered, nothing stands still, and all numbers are free again."""
        joint = self.joint
        joint.come_to_rest()
        for _ in range(3):
            joint.fill()
            joint.come_to_rest()
            joint.check_at_rest()
        for end in self.those("may_end"):
            joint.end(end)
        for end in self.those("may_answer"):
            joint.answer(end, 5)
        joint.come_to_rest()
        joint.check()
        for end in joint.ends:
            assert end.over, "it neither ends nor is reset"
            end.side.mux.release(end.connection)
        joint.come_to_rest()
        for side in joint.sides.values():
            assert not side.mux._connections, "a number is not free again"
            assert side.mux._windows._left == side.memory, "memory is lost"
        guest = joint.sides[GUEST].mux
        opened = [guest.open(UNSPECIFIED) is not None for _ in range(MOST + 1)]
        assert opened == [*MOST * [True], False]


TestModel = Machine.TestCase
TestModel.settings = settings(
    deadline=None,
    max_examples=150,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
