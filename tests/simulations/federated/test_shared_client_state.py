"""What rounds changed in clients' memories can be taken back, whole, for all clients or for some."""

from __future__ import annotations

from pathlib import Path

import torch

from farshore.simulations.federated.shared_client_state import SharedClientStates

LENGTHS = {"control": 3, "floats.lost": 5}


def play(memories: SharedClientStates, round_index: int, client: int) -> None:
    memory = memories.get(client, round_index)
    for name, length in LENGTHS.items():
        memory.setdefault(name, torch.zeros(length)).add_(round_index * 10 + client)
    memories.put(client, memory)


def seen(folder: Path) -> list[list[float]]:
    """Sum of each client's tensors; empty for one that is unknown."""
    memories = SharedClientStates(folder, 3, LENGTHS)
    return [[float(t.sum()) for t in memories.get(client, 0).values()] for client in range(3)]


def test_rounds_after_a_checkpoint_are_taken_back_whichever_process_played_them(tmp_path: Path) -> None:
    one, two = SharedClientStates(tmp_path, 3, LENGTHS), SharedClientStates(tmp_path, 3, LENGTHS)
    play(one, 1, 0)
    play(two, 1, 1)
    one.commit()
    two.commit()
    play(two, 2, 0)
    play(one, 3, 0)
    play(one, 3, 2)
    SharedClientStates(tmp_path, 3, LENGTHS).restore(1)
    assert list(tmp_path.glob("undo-*")) == []
    assert seen(tmp_path) == [[30.0, 50.0], [33.0, 55.0], []]


def test_the_checkpoint_before_can_be_restored_too_and_older_files_go(tmp_path: Path) -> None:
    memories = SharedClientStates(tmp_path, 3, LENGTHS)
    for round_index in (1, 2, 3, 4):
        play(memories, round_index, 0)
        memories.commit()
    assert len(list(tmp_path.glob("undo-*"))) <= 2
    SharedClientStates(tmp_path, 3, LENGTHS).restore(3)
    assert seen(tmp_path)[0] == [180.0, 300.0]


def test_a_share_is_taken_back_and_the_others_stay(tmp_path: Path) -> None:
    memories = SharedClientStates(tmp_path, 3, LENGTHS)
    for client in (0, 1):
        play(memories, 1, client)
    for client in (0, 1, 2):
        play(memories, 2, client)
    SharedClientStates(tmp_path, 3, LENGTHS).restore(1, {0, 2})
    assert seen(tmp_path) == [[30.0, 50.0], [96.0, 160.0], []]


def test_a_record_that_was_cut_short_changes_nothing(tmp_path: Path) -> None:
    memories = SharedClientStates(tmp_path, 3, LENGTHS)
    play(memories, 1, 0)
    memories.get(0, 2)  # noted, and then killed while it was noted
    (file,) = tmp_path.glob("undo-*")
    file.write_bytes(file.read_bytes()[:-4])
    SharedClientStates(tmp_path, 3, LENGTHS).restore(1)
    assert seen(tmp_path)[0] == [30.0, 50.0]
