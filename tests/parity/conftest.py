"""What every file here needs: the other libraries, or a skip that says what is missing."""

from types import ModuleType

import pytest

from tests.require import need


@pytest.fixture(scope="module")
def libraries() -> ModuleType:
    need("interop")
    from tests.parity import libraries

    return libraries
