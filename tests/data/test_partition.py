"""Partitioners, per-client test parts, partition reports and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farshore.core.errors import ConfigError, DataError
from farshore.data import partitioners, sampling
from farshore.data.partition import Partition
from farshore.data.partition_files import load_partition, save_partition
from farshore.data.partition_report import report

KINDS = ["lda", "lda_disjoint", "classes_per_client", "subset", "shards", "quantity", "iid", "label_dirichlet"]
LABELS = np.repeat(np.arange(10), 100)


def mixed(per_class: int = 100, classes: int = 10, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.RandomState(seed).permutation(np.repeat(np.arange(classes), per_class))


def config(kind: str, **changes: Any) -> Partition:
    values: dict[str, Any] = {"kind": kind, "alpha": 0.9 if kind == "subset" else 0.5, "min_size": 5, **changes}
    return Partition(**values)


def assert_complete(parts: list[np.ndarray[Any, Any]], samples: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(samples))


def parts_or_hint(partition: Partition, labels: Any, clients: int) -> list[np.ndarray[Any, Any]] | str:
    try:
        return partition.split(labels, clients)
    except ConfigError as error:
        return error.hint


@pytest.mark.parametrize(
    ("alpha", "sizes"),
    [
        (0.1, [21, 138, 106, 10, 98, 95, 136, 191, 104, 101]),
        (0.05, [27, 120, 111, 36, 104, 125, 112, 160, 104, 101]),
        (100, [90, 102, 100, 100, 101, 96, 103, 97, 105, 106]),
    ],
)
def test_lda_gives_the_reference_sizes(alpha: float, sizes: list[int]) -> None:
    parts = Partition(kind="lda", alpha=alpha, min_size=10, seed=0).split(LABELS, 10)
    assert [len(p) for p in parts] == sizes


def test_lda_of_a_data_set_as_large_as_cifar10_gives_the_reference_sizes_and_classes() -> None:
    labels = np.repeat(np.arange(10), 5000)
    counts = report(labels, Partition(alpha=0.1, seed=0).split(labels, 10), 10)
    assert counts.sizes.tolist() == [7615, 5142, 7498, 865, 2731, 6130, 6415, 3034, 6091, 4479]
    assert np.count_nonzero(counts.counts, axis=1).tolist() == [7, 5, 4, 5, 7, 3, 6, 6, 5, 10]


def test_lda_shuffles_a_class_before_it_is_cut() -> None:
    # The reference sizes do not cover this: without a shuffle, clients get consecutive samples of a class.
    (first,) = (p for p in Partition(alpha=100, seed=0).split(LABELS, 10)[:1])
    members = first[first < 100]
    assert len(members) > 3
    assert np.diff(members).max() > 1
    expected = np.arange(100)
    np.random.RandomState(0).shuffle(expected)
    assert np.array_equal(members, np.sort(expected[: len(members)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [10, 20])
def test_every_sample_is_assigned_once_and_no_client_is_too_small(kind: str, clients: int) -> None:
    labels = mixed()
    parts = config(kind).split(labels, clients)
    assert len(parts) == clients
    assert_complete(parts, len(labels))
    assert min(len(p) for p in parts) >= 5
    assert all(p.dtype == np.int64 and np.all(np.diff(p) > 0) for p in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_depend_on_the_seed_only(kind: str) -> None:
    labels = mixed()
    np.random.seed(5)
    first = config(kind).split(labels, 10)
    np.random.seed(6)  # the global generator has no effect
    again = config(kind).split(labels, 10)
    other = config(kind, seed=1).split(labels, 10)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([k for k in KINDS if k != "subset"]),
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=200),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    alpha=st.floats(0.05, 50),
)
def test_any_labels_are_partitioned_completely_or_refused_with_a_hint(
    kind: str, labels: list[int], clients: int, seed: int, alpha: float
) -> None:
    partition = Partition(kind=kind, alpha=alpha, beta=alpha, classes=1, shards=2, min_size=2, seed=seed)  # type: ignore[arg-type]
    parts = parts_or_hint(partition, labels, clients)
    if isinstance(parts, str):
        assert parts
        return
    assert_complete(parts, len(labels))
    assert min(len(p) for p in parts) >= 2


def test_smaller_alpha_gives_more_skew() -> None:
    labels = mixed(500)
    for kind in ("lda", "lda_disjoint", "label_dirichlet"):
        skewed, even = (
            report(labels, Partition(kind=kind, alpha=a).split(labels, 10), 10).mean_distance for a in (0.1, 100.0)
        )
        assert skewed > 0.5
        assert even < 0.2


def test_lda_disjoint_splits_within_groups_of_ten_and_guarantees_half_of_the_mean() -> None:
    labels = mixed(300)
    parts = Partition(kind="lda_disjoint", alpha=0.5, min_size=1).split(labels, 25)
    order = np.arange(3000)
    np.random.RandomState(0).shuffle(order)
    sizes = [len(p) for p in parts]
    for first, start, stop in ((0, 0, 1200), (10, 1200, 2400), (20, 2400, 3000)):
        group = parts[first : first + 10]
        assert np.array_equal(np.sort(np.concatenate(group)), np.sort(order[start:stop]))
        assert min(sizes[first : first + 10]) >= 0.5 * 120


def test_each_client_has_its_own_class_and_the_configured_number() -> None:
    labels = mixed()
    counts = report(labels, Partition(kind="classes_per_client", classes=3).split(labels, 20), 10).counts
    assert np.all(np.count_nonzero(counts, axis=1) == 3)
    assert all(counts[i, i % 10] > 0 for i in range(20))
    for column in counts.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_fewer_clients_than_classes_still_cover_every_class() -> None:
    labels = mixed()
    for seed in range(20):
        partition = Partition(kind="classes_per_client", classes=2, seed=seed)
        counts = report(labels, partition.split(labels, 5), 10).counts
        assert np.all(counts.sum(axis=0) == 100)
        assert np.all(np.count_nonzero(counts, axis=1) == 2)


def test_long_tail_gives_main_clients_their_fraction() -> None:
    labels = mixed(1000)
    counts = report(labels, Partition(kind="subset", alpha=0.8).split(labels, 20), 10).counts
    # Weights: 0.4 for 2 main clients, 0.6 / 18 for 18 others; 1.4 in all.
    for client, row in enumerate(counts):
        for label, count in enumerate(row):
            share = 0.4 / 1.4 if client % 10 == label else 0.6 / 18 / 1.4
            assert abs(count - 1000 * share) <= 1


def test_two_shards_have_at_most_two_labels_and_are_assigned_at_random() -> None:
    labels = mixed()
    partition = Partition(kind="shards", shards=2)
    counts = report(labels, partition.split(labels, 10), 10)
    assert counts.sizes.tolist() == [100] * 10
    assert np.count_nonzero(counts.counts, axis=1).max() <= 2
    assert set(counts.counts.ravel().tolist()) <= {0, 50, 100}
    assert np.count_nonzero(counts.counts.argmax(axis=1) == np.arange(10)) < 10


def test_quantity_skew_has_skewed_sizes_and_even_labels() -> None:
    labels = mixed(2000)
    counts = report(labels, Partition(kind="quantity", beta=0.5, min_size=200).split(labels, 10), 10)
    assert counts.sizes.max() > 3 * counts.sizes.min()
    assert counts.mean_distance < 0.06


def test_label_dirichlet_has_even_sizes_and_skewed_labels() -> None:
    labels = mixed()[:997]
    counts = report(labels, Partition(kind="label_dirichlet", alpha=0.1).split(labels, 10), 10)
    assert sorted(counts.sizes.tolist()) == [99] * 3 + [100] * 7
    assert counts.mean_distance > 0.4


def test_label_dirichlet_is_centered_on_the_class_frequencies() -> None:
    labels = np.repeat([0, 1], [9000, 1000])
    counts = report(labels, Partition(kind="label_dirichlet", alpha=1e4).split(labels, 10), 2).counts
    assert np.all(np.abs(counts[:, 1] - 100) < 50)


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
@pytest.mark.parametrize("kind", ["lda", "lda_disjoint", "label_dirichlet"])
def test_extreme_alphas_give_a_partition_or_a_clear_error(kind: str, alpha: float) -> None:
    parts = parts_or_hint(Partition(kind=kind, alpha=alpha, min_size=1), mixed(10), 4)  # type: ignore[arg-type]
    if isinstance(parts, str):
        assert kind != "label_dirichlet"
        assert "alpha" in parts
    else:
        assert_complete(parts, 100)


def test_the_number_of_draws_is_bounded_and_the_error_names_the_best_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = sampling.dirichlet_draw

    def counted(*args: Any, **options: Any) -> Any:
        drawn.append(real(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(partitioners, "dirichlet_draw", counted)
    with pytest.raises(ConfigError) as caught:
        Partition(alpha=0.05, min_size=100).split(LABELS, 10)
    assert len(drawn) == sampling.MAX_DRAWS
    best = max(min(len(p) for p in parts) for parts in drawn if parts)
    assert f"at most {best}" in caught.value.message
    assert f"min_size={best} or less" in caught.value.hint
    Partition(alpha=0.05, min_size=best).split(LABELS, 10)


@pytest.mark.parametrize(
    ("partition", "clients", "hint"),
    [
        ({"min_size": 10}, 101, "min_size=9 or less or clients=100 or less"),
        ({"min_size": 2000}, 10, "min_size=100 or less"),
        ({}, 0, "clients=1"),
        ({"kind": "classes_per_client", "classes": 11}, 10, "classes=10 or less"),
        ({"kind": "classes_per_client", "classes": 2}, 4, "classes=3 or more, or at least 5 clients"),
        ({"kind": "subset", "alpha": 0.9}, 25, "clients=20 or 30"),
        ({"kind": "subset", "alpha": 0.9}, 7, "clients=10"),
        ({"kind": "subset", "alpha": 0.05}, 10, "alpha=0.9"),
        ({"kind": "subset", "alpha": 1.5}, 10, "alpha=0.9"),
        ({"kind": "shards", "shards": 200}, 10, "shards=100 or less"),
    ],
)
def test_impossible_partitions_are_refused_with_the_nearest_feasible_values(
    partition: dict[str, Any], clients: int, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Partition(**partition).split(LABELS, clients)
    assert hint in caught.value.hint


@pytest.mark.parametrize("labels", [[], [[0, 1]], [0.5, 1.0], [-1, 0]])
def test_invalid_labels_are_refused(labels: Any) -> None:
    with pytest.raises(ConfigError, match="vector of integers"):
        Partition(kind="iid", min_size=1).split(labels, 1)


def test_classes_without_samples_have_no_effect() -> None:
    gap = np.where(LABELS >= 5, LABELS + 7, LABELS)
    for kind in KINDS:
        for a, b in zip(config(kind).split(LABELS, 10), config(kind).split(gap, 10), strict=True):
            assert np.array_equal(a, b)


# ---- test parts


def test_test_parts_have_the_training_proportions() -> None:
    train, test = mixed(500), mixed(200, seed=9)
    partition = Partition(alpha=0.3)
    parts = partition.split(train, 10)
    tests = partition.split_test(train, parts, test)
    assert_complete(tests, len(test))
    train_counts, test_counts = report(train, parts, 10).counts, report(test, tests, 10).counts
    assert np.all(np.abs(test_counts - train_counts * 200 / 500) <= 1)
    again = partition.split_test(train, parts, test)
    assert all(np.array_equal(a, b) for a, b in zip(tests, again, strict=True))


def test_rounding_of_test_parts_favors_no_client() -> None:
    # Half a sample per class and client: with a fixed order of clients, every second client would get nothing.
    train, test = mixed(1000, 20), mixed(50, 20)
    partition = Partition(kind="iid")
    sizes = [len(t) for t in partition.split_test(train, partition.split(train, 100), test)]
    assert sum(sizes) == 1000
    assert min(sizes) > 0
    assert max(sizes) < 20


def test_classes_without_training_samples_are_left_out_of_test_parts() -> None:
    parts = Partition(kind="iid", min_size=1).split([0, 0, 1, 1], 2)
    tests = Partition(kind="iid").split_test([0, 0, 1, 1], parts, [0, 1, 2, 2])
    assert np.concatenate(tests).tolist() in ([0, 1], [1, 0])


# ---- report and file


def test_report_agrees_with_a_partition_computed_by_hand() -> None:
    found = report([0, 0, 1, 1, 2, 2], [np.array([0, 1]), np.array([2, 3, 4, 5])], 3)
    assert found.counts.tolist() == [[2, 0, 0], [0, 2, 2]]
    assert found.mean_classes == 1.5
    # Distances to (1/3, 1/3, 1/3) are 2/3 and 1/3.
    assert found.mean_distance == pytest.approx(0.5)
    assert json.loads(json.dumps(found.to_json()))["sizes"] == [2, 4]


def test_clients_without_samples_are_not_counted_in_the_distance() -> None:
    found = report([0, 1], [np.array([0, 1]), np.array([], np.int64)], 2)
    assert found.mean_distance == 0


def test_a_saved_partition_loads_unchanged(tmp_path: Path) -> None:
    partition = Partition(alpha=0.3, seed=4)
    parts = partition.split(LABELS, 10)
    save_partition(tmp_path / "p.json", partition, LABELS, parts)
    loaded, again = load_partition(tmp_path / "p.json", LABELS.astype(np.int32))
    assert loaded == partition
    assert all(np.array_equal(a, b) and b.dtype == np.int64 for a, b in zip(parts, again, strict=True))


def test_loading_a_partition_of_other_labels_is_refused(tmp_path: Path) -> None:
    save_partition(tmp_path / "p.json", Partition(), LABELS, Partition().split(LABELS, 10))
    with pytest.raises(DataError, match="other labels"):
        load_partition(tmp_path / "p.json", LABELS[::-1])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s["clients"][0].__setitem__(0, 1000), "outside"),
        (lambda s: s["clients"][0].__setitem__(0, -1), "outside"),
        (lambda s: s["clients"][0].__setitem__(0, 2**70), "outside"),
        (lambda s: s["clients"][0].__setitem__(0, s["clients"][1][0]), "twice"),
        (lambda s: s["clients"][0].__setitem__(0, "1"), "clients"),
        (lambda s: s.update(format="other"), "format"),
        (lambda s: s["partition"].update(kind="ldaa"), "kind"),
        (lambda s: s.pop("samples"), "samples"),
    ],
)
def test_error_about_a_damaged_partition_names_the_field(tmp_path: Path, change: Any, word: str) -> None:
    path = tmp_path / "p.json"
    save_partition(path, Partition(), LABELS, Partition().split(LABELS, 10))
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match=word) as caught:
        load_partition(path, LABELS)
    assert str(path) in caught.value.message


def test_a_missing_or_malformed_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_partition(tmp_path / "none.json", LABELS)
    (tmp_path / "p.json").write_bytes(b"{\xff")
    with pytest.raises(DataError, match="is invalid"):
        load_partition(tmp_path / "p.json", LABELS)
