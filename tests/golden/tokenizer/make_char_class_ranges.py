#!/usr/bin/env python3
"""Writes src/tokenizer/char_class_ranges.cpp: the code points of each class, as the reference's regex engine has them.

    python tests/golden/tokenizer/make_char_class_ranges.py > src/tokenizer/char_class_ranges.cpp
"""

from tokenizers import Regex, pre_tokenizers

SURROGATES = range(0xD800, 0xE000)
CLASSES = [
    ("kLetterOrMarkRanges", r"[\p{L}\p{M}]"),
    ("kNumberRanges", r"\p{N}"),
    ("kPunctuationOrSymbolRanges", r"[\p{P}\p{S}]"),
    ("kWhiteSpaceRanges", r"\s"),
]


def members(pattern):
    """Code points that match, ascending."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    for base in range(0, 0x110000, 0x1000):
        chars = "".join(chr(c) for c in range(base, base + 0x1000) if c not in SURROGATES)
        for piece, _ in split.pre_tokenize_str(chars) if chars else []:
            yield from map(ord, piece)


def ranges(points):
    found = []
    for point in points:
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return found


def lines(items, width):
    line = " "
    for item in items:
        if len(line) + 1 + len(item) > width:
            yield line
            line = " "
        line += " " + item
    yield line


print("""// The code points of each character class: Unicode 16.0, as the regex engine of the reference tokenizer has them.
// Written by tests/golden/tokenizer/make_char_class_ranges.py; not edited by hand.
#include "char_class.h"

namespace dsv3 {
namespace {

// clang-format off""")
for name, pattern in CLASSES:
    print(f"constexpr CodePointRange {name}[] = {{")
    print("\n".join(lines([f"{{0x{a:x}, 0x{b:x}}}," for a, b in ranges(members(pattern))], 120)))
    print("};")
print("""// clang-format on

}  // namespace
""")
for name, _ in CLASSES:
    function = "".join("_" + c.lower() if c.isupper() else c for c in name[1:])[1:]
    print(f"std::span<const CodePointRange> {function}() {{\n  return {name};\n}}")
print("""
}  // namespace dsv3""")
