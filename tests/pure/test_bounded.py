"""The dictionary with a capacity (`app/domain/bounded.py`), compared with a slow model: a list."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.bounded import BoundedDict


def test_the_key_that_was_set_longest_ago_goes_first() -> None:
    kept = BoundedDict[str, int](2)
    kept["a"] = 1
    kept["b"] = 2
    kept["c"] = 3
    assert list(kept.items()) == [("b", 2), ("c", 3)]


def test_a_key_that_is_set_again_is_the_newest() -> None:
    kept = BoundedDict[str, int](2)
    kept["a"] = 1
    kept["b"] = 2
    kept["a"] = 3
    kept["c"] = 4
    assert list(kept.items()) == [("a", 3), ("c", 4)]


def test_reading_changes_no_order() -> None:
    kept = BoundedDict[str, int](2)
    kept["a"] = 1
    kept["b"] = 2
    assert "a" in kept
    assert kept["a"] == kept.get("a") == 1
    kept["c"] = 3
    assert "a" not in kept


def test_every_way_of_setting_is_bounded() -> None:
    kept = BoundedDict[int, int](3)
    kept.update({number: number for number in range(10)})
    assert list(kept) == [7, 8, 9]
    kept.setdefault(10, 10)
    assert list(kept) == [8, 9, 10]
    kept |= {11: 11, 12: 12}
    assert list(kept) == [10, 11, 12]


_Step = st.tuples(st.sampled_from(["set", "pop", "get"]), st.integers(0, 8))


@given(capacity=st.integers(0, 6), steps=st.lists(_Step, max_size=60))
def test_it_holds_the_keys_that_were_set_last(capacity: int, steps: list[tuple[str, int]]) -> None:
    kept = BoundedDict[int, int](capacity)
    expected: list[tuple[int, int]] = []
    for number, (what, key) in enumerate(steps):
        if what == "get":
            assert kept.get(key) == dict(expected).get(key)
            continue
        expected = [pair for pair in expected if pair[0] != key]
        if what == "set":
            kept[key] = number
            expected = [*expected, (key, number)][-capacity:] if capacity else []
        else:
            kept.pop(key, None)
        assert list(kept.items()) == expected
