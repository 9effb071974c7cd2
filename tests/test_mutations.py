"""The changes of `tests.mutations` can be made: what they change is still there."""

import pytest

from tests.mutations import HOME, MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies(mutation):
    assert mutation.old in (HOME / mutation.file).read_text()
    for test in mutation.tests.split():
        assert (HOME / test.partition("::")[0]).exists()
