"""Which tests count as readers of reference vectors."""

import golden_vectors
import pytest
from golden_vectors import readers

FILE = """
import pytest
from golden_vectors import golden

VECTORS = golden("a.npz")
COUNT: int = 3

@pytest.fixture
def arrays():
    return golden("b.npz")

@pytest.fixture(scope="module")
def more(arrays):
    return arrays

def check(arrays, key):
    assert arrays[key]

def helper(name):
    return golden(name)

class Net:
    def forward(self):
        return helper("c.npz")

def test_by_itself():
    golden("a.npz")

def test_by_a_constant():
    assert VECTORS

def test_by_a_fixture_of_a_fixture(more):
    check(more, "a")

def test_by_a_class():
    Net().forward()

def test_in_a_lambda():
    (lambda: helper("d.npz"))()

def test_with_numbers_of_its_own():
    arrays = {"a": 1}
    check(arrays, "a")
    assert COUNT
"""


def test_readers_are_found_through_helpers_fixtures_constants_and_classes() -> None:
    found = {name for name in readers(FILE) if name.startswith("test")}
    assert found == {
        "test_by_itself",
        "test_by_a_constant",
        "test_by_a_fixture_of_a_fixture",
        "test_by_a_class",
        "test_in_a_lambda",
    }


def test_a_test_that_is_not_found_may_not_read() -> None:
    read = vars(golden_vectors)["golden"]  # so that this test itself is not found
    with pytest.raises(AssertionError, match=r"may_not_read reads dann/schedules.npz in a way that is not found"):
        read("dann/schedules.npz")


@pytest.mark.golden
def test_a_test_that_is_marked_may_read() -> None:
    assert vars(golden_vectors)["golden"]("dann/schedules.npz")
