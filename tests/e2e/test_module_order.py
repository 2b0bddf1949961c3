"""A module that uses one that stands above it stops the configure step."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(order LANGUAGES CXX)
find_package(Threads REQUIRED)
add_library(dsv3_warnings INTERFACE)
list(APPEND CMAKE_MODULE_PATH {root}/cmake)
include(dsv3_module)
add_subdirectory(low)
add_subdirectory(high)
"""


def configure(folder, low, high, low_source="", high_source=""):
    (folder / "CMakeLists.txt").write_text(PROJECT.format(root=ROOT))
    for name, deps, source in (("low", low, low_source), ("high", high, high_source)):
        (folder / name).mkdir()
        (folder / name / "a.cpp").write_text(source + "\n")
        (folder / name / "CMakeLists.txt").write_text(f"dsv3_module({name} SOURCES a.cpp {deps})\n")
    return subprocess.run(["cmake", "-S", str(folder), "-B", str(folder / "build")], capture_output=True, text=True, timeout=120)


def test_the_right_way_configures(tmp_path):
    done = configure(tmp_path, "", "DEPS low", high_source='#include "dsv3/low/a.h"')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "low, high, low_source, high_source",
    [
        ("DEPS high", "", "", ""),
        ("", "DEPS low", '#include "dsv3/high/a.h"', ""),
        ("", "", "", '#include "dsv3/low/a.h"'),
    ],
    ids=["edge upwards", "include upwards", "include not listed"],
)
def test_the_wrong_way_stops(tmp_path, low, high, low_source, high_source):
    done = configure(tmp_path, low, high, low_source, high_source)
    assert done.returncode != 0
    assert "module" in done.stderr
