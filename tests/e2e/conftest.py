"""Fixtures of the end-to-end tests: the binary under test and the small model that it serves."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--binary", default=str(ROOT / "build" / "release" / "dsv3-serve"), help="the dsv3-serve to test")


@pytest.fixture(scope="session")
def binary(request):
    path = pathlib.Path(request.config.getoption("--binary")).resolve()
    assert path.is_file(), f"{path} does not exist; scripts/build makes it"
    return str(path)


@pytest.fixture(scope="session")
def tiny():
    return str(ROOT / "tests" / "data" / "dsv3-tiny")
