"""Rank-1 among distractors against a brute-force loop, with copies, ties and identities of one picture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drconv.errors import DataError
from drconv.tasks.identification.rank import best_scores, normalise, rank1


def brute_force(probes: np.ndarray, identities: np.ndarray, distractors: np.ndarray) -> tuple[int, int]:
    """Hits and trials, one pair at a time, in exact arithmetic: products of float32 fit into float64's 53 bits, and
    math.fsum rounds once."""
    import math

    def score(a: np.ndarray, b: np.ndarray) -> float:
        return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    hits = trials = 0
    for i, probe in enumerate(probes):
        best = max((score(probe, d) for d in distractors), default=-math.inf)
        for j, mate in enumerate(probes):
            if i != j and identities[i] == identities[j]:
                trials += 1
                hits += score(probe, mate) > best
    return hits, trials


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    copies=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 59)), max_size=6),
    grid=st.booleans(),
    memory=st.sampled_from([1, 64]),
)
def test_equal_to_the_brute_force_loop(
    seed: int, count: int, copies: list[tuple[int, int]], grid: bool, memory: int
) -> None:
    random = np.random.default_rng(seed)
    identities = random.integers(0, 5, 12)
    probes, distractors = random.normal(size=(12, 4)), random.normal(size=(count, 4))
    if grid:  # few directions: ties everywhere
        probes, distractors = (np.sign(values) * [1, 1, 0, 0] + [0, 0, 1, 0] for values in (probes, distractors))
    for probe, place in copies:
        distractors[place % count] = probes[probe]  # a distractor that is a probe or its mate
    probes, distractors = normalise(probes), normalise(distractors)
    hits, trials = brute_force(probes, identities, distractors)
    if trials == 0:
        with pytest.raises(DataError, match="no identity among 12 probes has two pictures"):
            rank1(probes, identities, distractors, memory_mib=memory)
        return
    result = rank1(probes, identities, distractors, memory_mib=memory)
    assert (result.hits, result.trials) == ([hits], trials)


def test_a_copy_of_a_mate_is_a_miss_whatever_the_shapes() -> None:
    random = np.random.default_rng(0)
    probes = normalise(random.normal(size=(40, 128)))
    identities = np.arange(40) // 2
    for count in (1, 63, 200, 1000):
        distractors = normalise(random.normal(size=(count + 40, 128)))
        distractors[count:] = probes
        assert rank1(probes, identities, distractors).hits == [0]
        distractors[count:] = -probes
        assert rank1(probes, identities, distractors).trials == 40


def test_sizes_are_prefixes_and_parts_of_ranks_agree() -> None:
    random = np.random.default_rng(1)
    identities = np.arange(30) // 3
    probes = normalise(random.normal(size=(10, 8))[identities] + 0.4 * random.normal(size=(30, 8)))
    distractors = normalise(random.normal(size=(1000, 8)))
    sizes = [10, 100, 1000]
    result = rank1(probes, identities, distractors, sizes)
    assert result.by_size() == {n: rank1(probes, identities, distractors[:n]).rank1 for n in sizes}
    assert result.hits[0] > result.hits[1] > result.hits[2]
    parts = []
    for r in range(3):
        ends = np.searchsorted(np.arange(r, 1000, 3), sizes).tolist()
        parts.append(best_scores(probes, distractors[r::3], ends))
    np.testing.assert_array_equal(np.maximum.reduce(parts), best_scores(probes, distractors, sizes))


def test_features_that_would_be_wrong_without_a_word_are_refused() -> None:
    probes, identities = normalise(np.eye(4)), np.array([0, 0, 1, 1])
    with pytest.raises(DataError, match="probes have 4 features, distractors 3"):
        rank1(probes, identities, normalise(np.eye(3)))
    distractors = np.eye(4, dtype=np.float32)
    distractors[2] = np.nan
    with pytest.raises(DataError, match="distractors: row 2 is not finite"):
        rank1(probes, identities, distractors)
    with pytest.raises(DataError, match="length 1, found 2 to 2"):
        rank1(probes, identities, np.eye(4, dtype=np.float32) * 2)
    for value in (0, np.inf):
        with pytest.raises(DataError, match="row 3 is zero or not finite"):
            normalise(np.diag([1.0, 1.0, 1.0, value]))


def test_rank_1_among_no_distractors_is_no_figure() -> None:
    with pytest.raises(DataError, match="there is no distractor"):
        rank1(normalise(np.eye(2)), np.zeros(2, np.int64), np.empty((0, 2), np.float32))


def test_equal_rows_normalise_to_equal_bits() -> None:
    rows = np.random.default_rng(2).normal(size=(7, 130)).astype(np.float32)
    assert all((normalise(rows[i : i + 1]) == normalise(rows)[i]).all() for i in range(7))


def test_a_memory_map_is_read_in_blocks(tmp_path: object) -> None:
    path = f"{tmp_path}/d.bin"
    distractors = normalise(np.random.default_rng(3).normal(size=(500, 16)))
    distractors.tofile(path)
    mapped = np.memmap(path, np.float32, "r", shape=(500, 16))
    probes = normalise(np.random.default_rng(4).normal(size=(6, 16)))
    expected = (torch.from_numpy(probes).double() @ torch.from_numpy(distractors).double().T).amax(1)
    np.testing.assert_allclose(best_scores(probes, mapped, [500])[0], expected.numpy(), rtol=1e-12)
