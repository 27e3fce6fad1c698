"""What trains is marked slow, and `make test-fast` leaves it out: nobody has to remember it."""

marked = True  # whether the test that runs now is: tests/conftest.py says so


def must_be_marked() -> None:
    """Called by every helper that starts a training."""
    assert marked, "this test starts a training: mark it slow (CONTRIBUTING.md, Tests)"
