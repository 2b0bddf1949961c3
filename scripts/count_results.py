#!/usr/bin/env python3
"""Adds up what scripts/test left in a folder and prints `N passed, N failed, N skipped` last. Exit code 1 if any failed.

A ctest test that is a gtest binary counts as its cases (from its own XML); any other counts as one. A binary that
fails without a failed case (it crashed, or ran out of time) counts as one failed test more.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


class Count:
    def __init__(self):
        self.passed = 0
        self.skipped = 0
        self.failed = []

    def add_case(self, case, name):
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            self.failed.append(name)
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            self.skipped += 1
        else:
            self.passed += 1


def cases(path):
    try:
        return list(ElementTree.parse(path).getroot().iter("testcase"))
    except ElementTree.ParseError:
        return None


def count_ctest(path, count):
    preset = path.name.split(".")[0]
    for test in cases(path) or []:
        name = test.get("name")
        gtest = path.parent / preset / f"{name}.xml"
        inner = cases(gtest) if gtest.exists() else None
        if not inner:
            skipped = test.find("skipped")
            if skipped is not None and "SKIP" not in skipped.get("message", "") and test.get("status") != "disabled":
                count.failed.append(f"{preset} {name}: {skipped.get('message')}")  # e.g. its binary is missing
            else:
                count.add_case(test, f"{preset} {name}")
            continue
        before = len(count.failed)
        for case in inner:
            count.add_case(case, f"{preset} {name} {case.get('classname')}.{case.get('name')}")
        if test.get("status") == "fail" and len(count.failed) == before:
            count.failed.append(f"{preset} {name}")


def main():
    folder = pathlib.Path(sys.argv[1])
    count = Count()
    for path in sorted(folder.glob("*.ctest.xml")):
        count_ctest(path, count)
    for path in sorted(folder.glob("*.pytest.xml")):
        found = cases(path)
        if not found:
            count.failed.append(f"{path.name}: no test ran")
        for case in found or []:
            count.add_case(case, f"{case.get('classname')}::{case.get('name')}")
    outcomes = folder / "outcomes.tsv"
    for line in outcomes.read_text().splitlines() if outcomes.exists() else []:
        name, code, _ = line.split("\t")
        if code == "0":
            count.passed += 1
        elif code == "77":
            count.skipped += 1
        else:
            count.failed.append(name)
    for name in count.failed:
        print(f"FAILED {name}")
    print(f"{count.passed} passed, {len(count.failed)} failed, {count.skipped} skipped")
    return 1 if count.failed or count.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
