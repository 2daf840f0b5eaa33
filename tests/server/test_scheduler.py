"""The scheduler's choices, and its reasons in words."""

from farshore.server.scheduler import Candidate, Choice, Demand, choose

_SST2 = frozenset({"sst2"})


def test_any_free_nodes_are_taken_in_name_order() -> None:
    candidates = [Candidate("c"), Candidate("a"), Candidate("b")]
    assert choose(Demand(2), candidates) == Choice(("a", "b"))


def test_nodes_asked_for_by_name_keep_their_order() -> None:
    candidates = [Candidate("a"), Candidate("b"), Candidate("c")]
    assert choose(Demand(2, ("c", "a")), candidates) == Choice(("c", "a"))


def test_busy_lost_and_dataless_nodes_are_passed_over_and_the_reason_says_so() -> None:
    candidates = [
        Candidate("a"),
        Candidate("b", _SST2, busy_with="r1"),
        Candidate("c", _SST2, obstacle="lost"),
        Candidate("d", _SST2),
    ]
    choice = choose(Demand(2, data="sst2"), candidates)
    assert choice.nodes == ()
    assert choice.reason == (
        "waiting for 1 of 2 nodes with data 'sst2'; known: a (no such data), b (busy with run r1), c (lost), d (free)"
    )


def test_a_named_node_that_cannot_is_named() -> None:
    reason = choose(Demand(2, ("a", "x"), "sst2"), [Candidate("a")]).reason
    assert reason == "waiting for a (no data 'sst2'), x (never joined)"


def test_without_nodes_the_reason_says_that_none_joined() -> None:
    assert choose(Demand(1), []).reason == "waiting for 1 of 1 node; no node has joined"


def test_a_long_list_is_shortened() -> None:
    candidates = [Candidate(f"n{i:02}", obstacle="lost") for i in range(50)]
    reason = choose(Demand(1), candidates).reason
    assert "42 more" in reason
    assert len(reason) < 250
