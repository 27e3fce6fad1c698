"""The suite never touches the user's home: caches lie in a folder of its own."""

import os
import signal

import pytest

from tests import slow
from tests.ceph import ceph_bucket as ceph_bucket
from tests.s3 import s3_bucket as s3_bucket
from tests.s3 import s3_server as s3_server

# started in the background of a script: commands under test inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the test's fixtures: they may train."""
    slow.marked = any(item.get_closest_marker(name) for name in ("slow", "full"))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the long forms too")
    parser.addoption("--photographs", metavar="FOLDER", help="tars of photographs, for long forms")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("world", 1) > 2:
            item.add_marker(pytest.mark.slow)  # `make test-fast` has one and two ranks
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="a long form: make test-full"))
