"""Changes of client states can be undone, for all clients or for some."""

from __future__ import annotations

from pathlib import Path

import torch

from farshore.simulations.federated.shared_client_state import SharedClientStates

LENGTHS = {"control": 3, "floats.lost": 5}


def change_state(client_states: SharedClientStates, round_index: int, client: int) -> None:
    state = client_states.get(client, round_index)
    for name, length in LENGTHS.items():
        state.setdefault(name, torch.zeros(length)).add_(round_index * 10 + client)
    client_states.put(client, state)


def state_sums(folder: Path) -> list[list[float]]:
    """Return the sums of each client's tensors; empty for a client without a state."""
    client_states = SharedClientStates(folder, 3, LENGTHS)
    return [[float(t.sum()) for t in client_states.get(client, 0).values()] for client in range(3)]


def test_rounds_after_a_checkpoint_are_undone_whichever_process_trained_them(tmp_path: Path) -> None:
    one, two = SharedClientStates(tmp_path, 3, LENGTHS), SharedClientStates(tmp_path, 3, LENGTHS)
    change_state(one, 1, 0)
    change_state(two, 1, 1)
    one.commit()
    two.commit()
    change_state(two, 2, 0)
    change_state(one, 3, 0)
    change_state(one, 3, 2)
    SharedClientStates(tmp_path, 3, LENGTHS).restore(1)
    assert list(tmp_path.glob("undo-*")) == []
    assert state_sums(tmp_path) == [[30.0, 50.0], [33.0, 55.0], []]


def test_previous_checkpoint_can_be_restored_and_older_files_are_deleted(tmp_path: Path) -> None:
    client_states = SharedClientStates(tmp_path, 3, LENGTHS)
    for round_index in (1, 2, 3, 4):
        change_state(client_states, round_index, 0)
        client_states.commit()
    assert len(list(tmp_path.glob("undo-*"))) <= 2
    SharedClientStates(tmp_path, 3, LENGTHS).restore(3)
    assert state_sums(tmp_path)[0] == [180.0, 300.0]


def test_restoring_some_clients_leaves_the_others_unchanged(tmp_path: Path) -> None:
    client_states = SharedClientStates(tmp_path, 3, LENGTHS)
    for client in (0, 1):
        change_state(client_states, 1, client)
    for client in (0, 1, 2):
        change_state(client_states, 2, client)
    SharedClientStates(tmp_path, 3, LENGTHS).restore(1, {0, 2})
    assert state_sums(tmp_path) == [[30.0, 50.0], [96.0, 160.0], []]


def test_incomplete_undo_record_changes_nothing(tmp_path: Path) -> None:
    client_states = SharedClientStates(tmp_path, 3, LENGTHS)
    change_state(client_states, 1, 0)
    client_states.get(0, 2)  # appends an undo record, which is then truncated as if the process had been killed
    (file,) = tmp_path.glob("undo-*")
    file.write_bytes(file.read_bytes()[:-4])
    SharedClientStates(tmp_path, 3, LENGTHS).restore(1)
    assert state_sums(tmp_path)[0] == [30.0, 50.0]
