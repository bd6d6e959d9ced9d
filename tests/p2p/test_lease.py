"""Goal: a head is never refused in its gaps, others are told whom they wait for, and nobody keeps the server unused."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.p2p.lease import LINGER, MAX_WAITING, Check, Connect, Decline, Drop, Lease, Refuse, Server, View


def two_heads(ready: bool = True) -> Lease[str]:
    lease: Lease[str] = Lease()
    lease.join("A", "alice", "control-a")
    lease.join("B", "bob", "control-b")
    if ready:
        assert lease.server_ready() == ()
    return lease


def test_the_first_session_to_ask_is_connected() -> None:
    lease = two_heads()
    assert lease.ask("A", "a1", now=100.0) == (Connect("a1"),)
    assert lease.view == View(Server.ACTIVE, "alice", 100.0)


def test_another_session_is_told_who_has_the_server_and_for_how_long() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=100.0)
    assert lease.ask("B", "b1", now=142.5) == (Decline("b1", "alice", 42.5),)
    # Its being turned away changes nothing for the first.
    assert lease.closed("b1", now=143.0) == ()
    assert lease.view == View(Server.ACTIVE, "alice", 100.0)


def test_connections_of_the_holder_wait_for_each_other_in_order() -> None:
    lease = two_heads()
    assert lease.ask("A", "a1", now=0.0) == (Connect("a1"),)
    assert lease.ask("A", "a2", now=1.0) == ()
    assert lease.ask("A", "a3", now=1.0) == ()
    assert lease.closed("a1", now=2.0) == (Check(),)
    assert lease.server_ready() == (Connect("a2"),)
    assert lease.closed("a2", now=3.0) == (Check(),)
    assert lease.server_ready() == (Connect("a3"),)


def test_nothing_is_connected_before_the_server_has_shown_that_it_is_well_again() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.closed("a1", now=1.0)
    assert lease.view.server is Server.CHECKING
    assert lease.ask("A", "a2", now=1.1) == (), "a killed prompt leaves the server computing"
    assert lease.server_ready() == (Connect("a2"),)


def test_one_that_gives_up_waiting_is_forgotten() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.ask("A", "a2", now=0.0)
    lease.ask("A", "a3", now=0.0)
    assert lease.closed("a2", now=1.0) == ()
    lease.closed("a1", now=2.0)
    assert lease.server_ready() == (Connect("a3"),)


def test_the_gaps_between_the_connections_of_a_session_belong_to_it() -> None:
    lease = two_heads()
    now = 0.0
    for number in range(13):  # what llama-server opens
        assert lease.ask("A", f"a{number}", now) == (Connect(f"a{number}"),)
        now += 1.0
        assert lease.closed(f"a{number}", now) == (Check(),)
        lease.server_ready()
        assert lease.ask("B", f"b{number}", now + LINGER - 0.1) == (Decline(f"b{number}", "alice", now + LINGER - 0.1),)
        now += LINGER - 0.05
    assert lease.view.since == 0.0


def test_the_lease_ends_when_the_session_was_quiet_for_long_enough() -> None:
    lease = two_heads()
    assert lease.deadline() is None
    lease.ask("A", "a1", now=0.0)
    assert lease.deadline() is None, "not while it is connected, for however long"
    lease.closed("a1", now=5.0)
    lease.server_ready()
    assert lease.deadline() == 5.0 + LINGER
    lease.expire(now=5.0 + LINGER - 0.01)
    assert lease.view.holder == "alice"
    lease.expire(now=5.0 + LINGER)
    assert lease.view == View(Server.IDLE, "", 0.0)
    assert lease.deadline() is None
    assert lease.ask("B", "b1", now=16.0) == (Connect("b1"),)


def test_a_lease_that_is_over_does_not_wait_for_a_timer_to_say_so() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.closed("a1", now=0.0)
    lease.server_ready()
    assert lease.ask("B", "b1", now=LINGER) == (Connect("b1"),)


def test_a_lost_control_connection_ends_the_lease_and_all_its_connections() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.ask("A", "a2", now=0.0)
    assert lease.leave("control-a") == (Drop("a1"), Drop("a2"))
    assert lease.view.holder == ""
    # The server is not free before the old connection is really closed and a HELLO answered.
    assert lease.ask("B", "b1", now=1.0) == ()
    assert lease.closed("a2", now=1.0) == ()
    assert lease.closed("a1", now=1.0) == (Check(),)
    assert lease.server_ready() == (Connect("b1"),)
    assert lease.view.holder == "bob"


def test_a_session_without_a_control_connection_gets_nothing() -> None:
    lease = two_heads()
    (refused,) = lease.ask("C", "c1", now=0.0)
    assert isinstance(refused, Refuse)
    assert lease.view.holder == ""
    lease.leave("control-a")
    (refused,) = lease.ask("A", "a1", now=0.0)
    assert isinstance(refused, Refuse)


def test_the_loss_of_another_control_connection_disturbs_nobody() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    assert lease.leave("control-b") == lease.leave("never-there") == ()
    assert lease.view == View(Server.ACTIVE, "alice", 0.0)


def test_a_head_that_comes_back_before_its_loss_was_noticed_keeps_its_lease() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.join("A", "alice", "control-a-again")
    assert lease.leave("control-a") == ()
    assert lease.ask("A", "a2", now=1.0) == ()
    lease.closed("a1", now=2.0)
    assert lease.server_ready() == (Connect("a2"),)
    assert lease.leave("control-a-again") == (Drop("a2"),)


def test_who_asks_while_the_server_starts_is_served_when_it_is_there() -> None:
    lease = two_heads(ready=False)
    assert lease.view.server is Server.DOWN
    assert lease.ask("A", "a1", now=0.0) == ()
    assert lease.ask("B", "b1", now=3.0) == (Decline("b1", "alice", 3.0),)
    assert lease.server_ready() == (Connect("a1"),)


def test_a_lost_server_takes_its_connection_with_it_and_nothing_else() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.ask("A", "a2", now=0.0)
    assert lease.server_lost(now=1.0) == (Drop("a1"),)
    assert lease.closed("a1", now=1.1) == (), "there is nothing to check"
    assert lease.view == View(Server.DOWN, "alice", 0.0)
    assert lease.server_ready() == (Connect("a2"),)


def test_a_server_lost_with_nobody_on_it_starts_the_clock_of_nobody() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.closed("a1", now=1.0)
    assert lease.server_lost(now=4.0) == ()  # no answer to the Check
    assert lease.deadline() == 1.0 + LINGER
    lease.server_ready()
    assert lease.ask("A", "a2", now=5.0) == (Connect("a2"),)


def test_a_second_word_that_the_server_is_ready_connects_nobody_twice() -> None:
    lease = two_heads()
    lease.ask("A", "a1", now=0.0)
    lease.ask("A", "a2", now=0.0)
    assert lease.server_ready() == ()
    assert lease.view.server is Server.ACTIVE


def test_a_session_cannot_fill_the_worker_with_waiting_connections() -> None:
    lease = two_heads()
    answers = [lease.ask("A", f"a{number}", now=0.0) for number in range(MAX_WAITING + 2)]
    assert answers[0] == (Connect("a0"),)
    assert all(answer == () for answer in answers[1:-1])
    (refused,) = answers[-1]
    assert isinstance(refused, Refuse)
    assert lease.closed(refused.connection, now=0.0) == ()


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: one connection at the server, of one session, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.lease: Lease[int] = Lease()
        self.now = 0.0
        self.next = 0
        self.session_of: dict[int, str] = {}
        self.open: list[int] = []
        self.connected: int | None = None
        self.last_connected = -1
        self.checking = False

    def act(self, actions: tuple[object, ...]) -> None:
        for action in actions:
            match action:
                case Connect(connection):
                    assert self.connected is None and not self.checking
                    assert connection in self.open
                    assert connection > self.last_connected, "first come, first served"
                    self.connected = self.last_connected = connection
                case Decline(connection, holder, since):
                    assert holder == self.lease.view.holder != self.session_of[connection]
                    assert since >= 0
                    self.open.remove(connection)
                case Refuse(connection):
                    self.open.remove(connection)
                case Drop(connection):
                    self.close(connection)
                case Check():
                    assert self.connected is None and not self.checking
                    self.checking = True

    def close(self, connection: int) -> None:
        self.open.remove(connection)
        if self.connected == connection:
            self.connected = None
        self.act(self.lease.closed(connection, self.now))

    @rule(session=st.sampled_from("ABC"))
    def join(self, session: str) -> None:
        self.lease.join(session, session, f"control-{session}")

    @rule(session=st.sampled_from("ABC"))
    def leave(self, session: str) -> None:
        self.act(self.lease.leave(f"control-{session}"))
        assert self.lease.view.holder != session

    @rule(session=st.sampled_from("ABC"))
    def ask(self, session: str) -> None:
        self.next += 1
        self.session_of[self.next] = session
        self.open.append(self.next)
        self.act(self.lease.ask(session, self.next, self.now))

    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        if self.open:
            self.close(data.draw(st.sampled_from(self.open)))

    @rule()
    def ready(self) -> None:
        self.checking = False
        self.act(self.lease.server_ready())

    @rule()
    def lost(self) -> None:
        self.checking = False
        self.act(self.lease.server_lost(self.now))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def one_session_at_a_time(self) -> None:
        holder = self.lease.view.holder
        assert all(self.session_of[connection] == holder for connection in self.open)
        assert (self.lease.view.server is Server.ACTIVE) == (self.connected is not None)

    @invariant()
    def who_waits_at_an_idle_server_is_nobody(self) -> None:
        assert not (self.lease.view.server is Server.IDLE and self.open)

    @invariant()
    def a_lease_without_connections_has_an_end(self) -> None:
        assert (self.lease.deadline() is not None) == (bool(self.lease.view.holder) and not self.open)


AnyOrder.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestAnyOrder = AnyOrder.TestCase
