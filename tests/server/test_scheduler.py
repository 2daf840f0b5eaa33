"""The scheduler's choice of nodes, and the reasons that it gives for waiting."""

from farshore.server.scheduler import Candidate, Choice, Demand, choose

_SST2 = frozenset({"sst2"})
_NEED = (("sst2", "glue"),)


def test_any_free_nodes_are_taken_in_name_order() -> None:
    candidates = [Candidate("c"), Candidate("a"), Candidate("b")]
    assert choose(Demand(2), candidates) == Choice(("a", "b"))


def test_nodes_requested_by_name_keep_their_order() -> None:
    candidates = [Candidate("a"), Candidate("b"), Candidate("c")]
    assert choose(Demand(2, ("c", "a")), candidates) == Choice(("c", "a"))


def test_the_reason_lists_busy_lost_and_dataless_nodes() -> None:
    candidates = [
        Candidate("a"),
        Candidate("b", _SST2, busy_with="r1"),
        Candidate("c", _SST2, obstacle="lost"),
        Candidate("d", _SST2),
    ]
    choice = choose(Demand(2, data=_NEED), candidates)
    assert choice.nodes == ()
    assert choice.reason == (
        "waiting for 1 of 2 nodes with data 'sst2' or 'glue'; "
        "known: a (no data 'sst2' or 'glue'), b (busy with run r1), c (lost), d (free)"
    )


def test_the_reason_lists_requested_nodes_that_are_not_available() -> None:
    reason = choose(Demand(2, ("a", "x"), _NEED), [Candidate("a")]).reason
    assert reason == "waiting for a (no data 'sst2' or 'glue'), x (never joined)"


def test_without_nodes_the_reason_says_that_no_node_has_joined() -> None:
    assert choose(Demand(1), []).reason == "waiting for 1 of 1 node; no node has joined"


def test_a_long_list_of_nodes_is_shortened() -> None:
    candidates = [Candidate(f"n{i:02}", obstacle="lost") for i in range(50)]
    reason = choose(Demand(1), candidates).reason
    assert "42 more" in reason
    assert len(reason) < 250


def test_any_alternative_name_satisfies_a_data_set_and_every_data_set_is_required() -> None:
    candidates = [Candidate("a", frozenset({"glue"})), Candidate("b", frozenset({"glue", "bert"})), Candidate("c")]
    assert choose(Demand(1, data=(*_NEED, ("bert",))), candidates).nodes == ("b",)
    assert choose(Demand(2, data=_NEED), candidates).nodes == ("a", "b")
