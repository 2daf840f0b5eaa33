"""Which node gets which item: speed, failures, losses, stragglers. Time is a number that the tests choose."""

from __future__ import annotations

import pytest

from farshore.engines.work_queue.dealer import MOST_LOSSES, Attempt, Dealer, Verdict


def dealer(items: int, *nodes: str, tries: int = 2, straggler: float = 2.0, slots: int = 1) -> Dealer:
    made = Dealer(tries, straggler)
    made.add(range(items))
    for node in nodes:
        made.join(node, slots)
    return made


def deal_all(made: Dealer, now: float = 0.0) -> list[Attempt]:
    found = []
    while (attempt := made.next(now)) is not None:
        found.append(attempt)
    return found


def simulate(made: Dealer, seconds: dict[str, float], until: float = 1e9) -> tuple[dict[str, int], float]:
    """Let nodes work at their speeds; returns how many items each finished, and when the last was."""
    now, counts = 0.0, dict.fromkeys(seconds, 0)
    queues: dict[str, list[Attempt]] = {node: [] for node in seconds}
    ends: dict[str, float] = {}
    while made.unfinished and now < until:
        for attempt in deal_all(made, now):
            queues[attempt.node].append(attempt)
        for node, queue in queues.items():
            if queue and node not in ends:
                ends[node] = now + seconds[node]
        wake = made.wake(now)
        node = min(ends, key=lambda name: ends[name])
        if wake is not None and now + wake < ends[node]:
            now += wake
            continue
        now = ends.pop(node)
        attempt = queues[node].pop(0)
        verdict = made.finish(node, attempt.deal, seconds[node], now)
        counts[node] += verdict.index is not None
        for other in verdict.cancel:
            made.stop(other.node, other.deal, now)
            if queues[other.node][0] == other:
                ends.pop(other.node)
            queues[other.node].remove(other)
    return counts, now


def test_items_are_dealt_in_order_one_per_slot() -> None:
    made = dealer(5, "a", "b", slots=2)
    dealt = deal_all(made)
    assert [attempt.index for attempt in dealt] == [0, 1, 2, 3]
    assert sorted(attempt.node for attempt in dealt) == ["a", "a", "b", "b"]
    assert made.next(0.0) is None
    assert made.finish("a", next(t.deal for t in dealt if t.node == "a"), 9.0, 9.0).index is not None
    (more,) = deal_all(made, 9.0)
    assert (more.index, more.node) == (4, "a")


def test_a_node_gets_items_in_proportion_to_its_speed() -> None:
    counts, end = simulate(dealer(60, "fast", "slow"), {"fast": 1.0, "slow": 5.0})
    assert counts == {"fast": 50, "slow": 10}
    assert end == 50.0


def test_the_last_item_does_not_go_to_a_node_that_would_finish_it_last() -> None:
    counts, end = simulate(dealer(30, "fast", "slow", straggler=0), {"fast": 1.0, "slow": 20.0})
    assert counts == {"fast": 29, "slow": 1}
    assert end == 29.0


def test_short_items_are_dealt_ahead_but_not_near_the_end() -> None:
    made = dealer(100, "a", "b")
    for attempt in deal_all(made):
        made.finish(attempt.node, attempt.deal, 0.01, 0.01)
    ahead = deal_all(made, 0.01)
    assert {node: sum(t.node == node for t in ahead) for node in "ab"} == {"a": 6, "b": 6}
    made = dealer(5, "a", "b")
    for attempt in deal_all(made):
        made.finish(attempt.node, attempt.deal, 0.01, 0.01)
    assert sorted(t.node for t in deal_all(made, 0.01)) == ["a", "b"], "the last one is for the first that is free"


def test_long_items_are_not_dealt_ahead() -> None:
    made = dealer(100, "a")
    (first,) = deal_all(made)
    made.finish("a", first.deal, 0.06, 0.06)
    assert len(deal_all(made, 0.06)) == 1


def test_items_of_a_lost_node_are_dealt_again_first_and_in_order() -> None:
    made = dealer(6, "a", "b", slots=2)
    deal_all(made)
    assert made.lose("a") == []
    made.join("c", 2)
    again = deal_all(made)
    assert [attempt.index for attempt in again] == sorted(attempt.index for attempt in again)
    assert {attempt.node for attempt in again} == {"c"}
    assert all(attempt.index < 4 for attempt in again)


def test_a_late_answer_of_a_lost_node_is_ignored() -> None:
    made = dealer(1, "a")
    (first,) = deal_all(made)
    made.lose("a")
    made.join("a", 1)
    assert made.finish("a", first.deal, 1.0, 1.0) == Verdict()
    assert made.unfinished == 1


def test_an_item_is_failed_once_too_many_nodes_were_lost_with_it() -> None:
    made = dealer(1)
    verdicts: list[Verdict] = []
    for number in range(MOST_LOSSES):
        assert not verdicts
        made.join(f"n{number}", 1)
        deal_all(made)
        verdicts = made.lose(f"n{number}")
    (verdict,) = verdicts
    assert (verdict.index, verdict.attempts) == (0, MOST_LOSSES)
    assert f"{MOST_LOSSES} nodes were lost" in verdict.error
    assert made.unfinished == 0


def test_a_failed_item_is_tried_on_another_node_and_then_recorded_with_its_cause() -> None:
    made = dealer(3, "a", "b")
    first = next(attempt for attempt in deal_all(made) if attempt.index == 0)
    assert made.fail(first.node, first.deal, "boom", 1.0) == Verdict()
    (other,) = {"a", "b"} - {first.node}
    (next_of_same,) = deal_all(made, 1.0)  # it waits for the other node; this one gets another item
    assert (next_of_same.node, next_of_same.index) == (first.node, 2)
    running = next(deal for deal, t in made._attempts.items() if t.node == other)
    made.finish(other, running, 2.0, 2.0)
    (second,) = deal_all(made, 2.0)
    assert (second.node, second.index) == (other, 0)
    verdict = made.fail(other, second.deal, "boom", 3.0)
    assert verdict == Verdict(0, f"boom (2 times, last on {other})", (), 2)


def test_a_failed_item_is_tried_again_on_the_only_node() -> None:
    made = dealer(1, "a", tries=3)
    for _ in range(2):
        (attempt,) = deal_all(made)
        assert made.fail("a", attempt.deal, "boom", 0.0) == Verdict()
    (attempt,) = deal_all(made)
    assert made.fail("a", attempt.deal, "boom", 0.0).index == 0


def test_a_straggler_is_dealt_twice_and_the_first_answer_counts() -> None:
    made = dealer(2, "a", "b")
    one, two = deal_all(made)
    made.finish(one.node, one.deal, 1.0, 1.0)
    assert made.next(1.0) is None
    assert made.wake(1.0) == pytest.approx(1.0)  # twice the usual second, since 0
    second = made.next(2.0)
    assert second is not None
    assert (second.index, second.node) == (two.index, one.node)
    assert made.next(2.0) is None, "an item has two attempts at most"
    assert made.wake(2.0) is None
    verdict = made.finish(second.node, second.deal, 1.0, 3.0)
    assert (verdict.index, verdict.cancel) == (two.index, (two,))
    assert made.finish(two.node, two.deal, 3.0, 3.1) == Verdict(), "the second answer changes nothing"
    assert made.unfinished == 0


def test_no_item_is_dealt_twice_while_others_wait_or_if_it_is_switched_off() -> None:
    made = dealer(2, "a", "b", straggler=0)
    one, _ = deal_all(made)
    made.finish(one.node, one.deal, 1.0, 1.0)
    assert made.wake(1.0) is None
    assert made.next(100.0) is None


def test_the_failure_of_one_attempt_leaves_the_other() -> None:
    made = dealer(2, "a", "b")
    one, two = deal_all(made)
    made.finish(one.node, one.deal, 1.0, 1.0)
    second = made.next(2.0)
    assert second is not None
    assert made.fail(second.node, second.deal, "boom", 2.5) == Verdict()
    assert made.running() == {two.index: [two.node]}
    assert made.lose(two.node) == []
    assert made.next(3.0) is not None, "the item is dealt again once no attempt is left"


def test_a_node_of_known_slowness_is_not_waited_for() -> None:
    counts, end = simulate(dealer(3, "fast", "slow"), {"fast": 1.0, "slow": 30.0})
    assert counts == {"fast": 3, "slow": 0}
    assert end <= 5.0


def test_an_idle_node_gets_the_waiting_items_of_one_that_does_not_answer_any_more() -> None:
    """The fast node holds an item far longer than usual: the slow one is worth the last item after all."""
    made = dealer(4, "fast", "slow")
    now = 0.0
    (slow,) = [attempt for attempt in deal_all(made) if attempt.node == "slow"]
    (fast,) = [attempt for attempt in made._attempts.values() if attempt.node == "fast"]
    made.finish("fast", fast.deal, 1.0, 1.0)
    deal_all(made, 1.0)  # the fast node works on the third item from now on
    made.finish("slow", slow.deal, 1.5, 1.5)
    assert made.next(1.5) is None or made.unfinished
    while made._waiting:
        wake = made.wake(now)
        assert wake is not None, "nobody would look again"
        now += wake
        made.next(now)
        assert now < 10


def test_an_item_that_failed_elsewhere_is_worth_it_on_a_slow_node() -> None:
    made = dealer(3, "fast", "slow")
    attempts = {attempt.node: attempt for attempt in deal_all(made)}
    made.finish("slow", attempts["slow"].deal, 50.0, 50.0)
    made.finish("fast", attempts["fast"].deal, 1.0, 50.0)
    (again,) = deal_all(made, 50.0)
    assert again.node == "fast"
    made.fail("fast", again.deal, "boom", 51.0)
    (second,) = deal_all(made, 51.0)
    assert (second.node, second.index) == ("slow", again.index)
