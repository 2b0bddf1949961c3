"""Fixtures of the end-to-end tests: the binary under test, the small model that it serves, and servers with it."""

import contextlib
import pathlib

import pytest

from serving import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--binary", default=str(ROOT / "build" / "release" / "dsv3-serve"), help="the dsv3-serve to test")


def pytest_configure(config):
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FIGURES]:
        terminalreporter.section("figures")
        for line in config.stash[FIGURES]:
            terminalreporter.write_line(line)


@pytest.fixture
def figure(request, record_property):
    """figure(name, value): a measurement for the report, shown below the results whether or not the test passes."""

    def add(name, value):
        record_property(name, value)
        request.config.stash[FIGURES].append(f"{name}: {value}")

    return add


@pytest.fixture(scope="session")
def binary(request):
    path = pathlib.Path(request.config.getoption("--binary")).resolve()
    assert path.is_file(), f"{path} does not exist; scripts/build makes it"
    return str(path)


@pytest.fixture(scope="session")
def sanitized(binary):
    """True for a build with a sanitizer: correct, but too slow and too large to be measured."""
    data = pathlib.Path(binary).read_bytes()
    return b"__asan_init" in data or b"__tsan_init" in data


@pytest.fixture(scope="session")
def tiny():
    return str(ROOT / "tests" / "data" / "dsv3-tiny")


@pytest.fixture(scope="session")
def golden_folder():
    return ROOT / "tests" / "data" / "dsv3-tiny-golden"


@pytest.fixture(scope="session")
def serve(binary, tiny, tmp_path_factory):
    """serve(*flags): a context manager that yields a running Server and ends it by SIGTERM, which must succeed."""

    @contextlib.contextmanager
    def start(*flags, **kwargs):
        server = Server(binary, tiny, tmp_path_factory.mktemp("serve"), *flags, **kwargs)
        try:
            yield server
            if not server.ended:
                server.stop()
        finally:
            server.kill()

    return start


@pytest.fixture(scope="session")
def server(serve):
    """The server with default flags that most tests share. No test may leave work running on it."""
    with serve() as running:
        yield running
