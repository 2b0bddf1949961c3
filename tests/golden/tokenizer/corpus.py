"""The texts that compare_tokenizers.py compares: deterministic for a seed, as (kind, bytes) pairs."""

import random

# First and last code point of what gets words in the script; wide rather than exact, holes are welcome.
SCRIPTS = [
    (0x41, 0x7A), (0xC0, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F), (0x5D0, 0x5F4),
    (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7BF), (0x7C0, 0x7FA), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F),
    (0xA80, 0xAFF), (0xB00, 0xB7F), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xC80, 0xCFF), (0xD00, 0xD7F), (0xD80, 0xDFF),
    (0xE00, 0xE5B), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
    (0x1200, 0x139F), (0x13A0, 0x13FF), (0x1400, 0x167F), (0x1680, 0x16FF), (0x1780, 0x17FF), (0x1800, 0x18AF),
    (0x1E00, 0x1FFF), (0x2C00, 0x2DFF), (0x3040, 0x30FF), (0x3100, 0x318F), (0x31F0, 0x32FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA640, 0xA69F), (0xA720, 0xA7FF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
    (0xFB00, 0xFDFF), (0xFE70, 0xFEFF), (0xFF00, 0xFFEF), (0x10000, 0x100FF), (0x10300, 0x103FF), (0x10400, 0x104FF),
    (0x10A00, 0x10A58), (0x11000, 0x1107F), (0x12000, 0x123FF), (0x13000, 0x1345F), (0x16D40, 0x16D7F),
    (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x20000, 0x2A6DF), (0x2EBF0, 0x2EE5D), (0x31350, 0x323AF),
]
SPACES = ["\t", "\n", "\v", "\f", "\r", " ", "\x85", "\xa0", "\u1680", "\u180e", *map(chr, range(0x2000, 0x2010)),
          "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\x1c", "\x1f"]
NUMBERS = [*"0123456789", *"٠١٢٣۴۵६७৮৯", *"ⅠⅡⅫↈ", *"½⅓²³①⒈㊿〇〡零一二", *"𝟎𝟗𐄇𑁒𞥐"]
PUNCTUATION = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", *"¡¢£§©«¬®°±´¶·¸»¿×÷", *"–—‘’“”†•…‰€™←↑→⇒∀∂∈∞√≤≥█■▁●☃♥✓",
               *"、。〈〉《》「」『』【】〜゛゜゠・｜！？，：；（）"]
MARKS = [*map(chr, range(0x300, 0x310)), "\u0483", "\u0591", "\u064b", "\u093e", "\u0e31", "\u1dc0", "\u20d0", "\u20e3",
         "\u3099", "\u309a", "\ufe00", "\ufe0f", "\ufe20", "\U000e0100"]
CONTROLS = [*map(chr, range(0x00, 0x20)), *map(chr, range(0x7F, 0xA0)), "\xad", "\u061c", *"\u200b\u200c\u200d\u200e\u200f",
            *"\u202a\u202e\u2066\u2069", "\ufff9", "\ufffc", "\ufffd", "\uffff", "\U000e0001", "\U000e0041", "\ue000",
            "\U000f0000", "\U0010ffff", "\ufdd0", "\u0378", "\u3040", "\u3097"]
EMOJI = ["🙂", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇩🇪", "🇯", "1️⃣", "#️⃣", "❤️", "☺", "👁️‍🗨️", "🧑🏿‍🤝‍🧑🏻", "\U0001fae9", "🀄", "♠︎"]
WORDS = """the quick brown fox jumps over lazy dog don't I'm we'll you're they've HE'S 'tis it's rock'n'roll naïve café
Straße ÆON Привет мир שלום مرحبا नमस्ते สวัสดี 안녕하세요 你好 世界 こんにちは カタカナ コーヒー 東京タワー ﾊﾝｶｸ DeepSeek-V3 671B
parameters. for(int i=0;i<10;++i){} x==y&&z!=w; https://example.com/a?b=c&d=%20e user@host.org C:\\path\\to\\file <html>
</div> {"key":[1,2.5e-3,null]} #include<stdio.h> snake_case camelCase SCREAMING_CASE $HOME ~/.config --flag=value -> =>
3.14159 1,000,000 0xDEADBEEF 2024-12-26T10:00:00Z 50% #42 1st 2nd v1.2.3 a1b2c3 é ñ Å ﬁ ǆ ﷺ""".split(" ")
RUN_UNITS = ["a", "A", "ab", "the", "é", "я", "7", "12", "٣", "½", " ", "\t", "\n", "\r\n", " \n", "\u3000", "\xa0", "-",
             "_", "^", "=", "...", "!a", "'s", "\u0301", "e\u0301", "\u0b3e", "中", "中文", "あ", "ー", "・", "あ・", "한", "🙂",
             "👩‍💻", "\0", "\x85", "\u200d", "\ufeff", "\u3040", "\U000f0000", "<", "｜", "<｜", "▁", "<｜place▁holder▁no▁",
             "<think", "a ", " a", "1 ", " 1", "a1", "a\n", " -", "- ", "\n ", "あa", "中1"]
INVALID = [b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xe0\x80\x80", b"\xe1\x80", b"\xe2\x82", b"\xed\xa0\x80",
           b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf0\x9f\x99", b"\xf0\x9f", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
           b"\xfe", b"\xff", b"\xf8\x88\x80\x80\x80", b"\xef\xbf", b"\xf1\x80\x80\xe1\x80\xc2b"]


def scalar(rng, first=0, last=0x10FFFF):
    while True:
        point = rng.randint(first, last)
        if not 0xD800 <= point <= 0xDFFF:
            return chr(point)


def every_code_point():
    """Each code point of the planes that have characters: alone, before and after letters, a digit, a mark, a space."""
    points = [c for c in [*range(0x32400), *range(0xE0000, 0xE0200)] if not 0xD800 <= c <= 0xDFFF]
    for at in range(0, len(points), 64):
        chars = [chr(c) for c in points[at:at + 64]]
        yield "".join(f"x{c}y1{c}! {c}中{c}  {c}{c}\n" for c in chars)


class Corpus:
    def __init__(self, seed, added):
        self.rng = random.Random(seed)
        self.added = added

    def word(self):
        rng = self.rng
        first, last = rng.choice(SCRIPTS)
        return "".join(scalar(rng, first, last) for _ in range(rng.randint(1, 12)))

    def broken_token(self):
        rng = self.rng
        token = rng.choice(self.added)
        cut = rng.randint(0, len(token))
        return rng.choice([
            token[:cut], token[cut:], token[:cut] + rng.choice([" ", "a", "\u200b", "｜", "<"]) + token[cut:],
            token[:cut] + rng.choice(self.added) + token[cut:], token + token, token.upper(), "<" + token, token + ">",
        ])

    def atom(self):
        rng = self.rng
        kind = rng.randrange(12)
        if kind == 0: return self.word()
        if kind == 1: return rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3])
        if kind == 2: return "".join(rng.choice(NUMBERS) for _ in range(rng.randint(1, 7)))
        if kind == 3: return "".join(rng.choice(PUNCTUATION) for _ in range(rng.choice([1, 1, 2, 3])))
        if kind == 4: return rng.choice(MARKS) * rng.choice([1, 1, 2])
        if kind == 5: return rng.choice(CONTROLS)
        if kind == 6: return rng.choice(EMOJI)
        if kind in (7, 8): return rng.choice(WORDS)
        if kind == 9: return rng.choice(self.added)
        if kind == 10: return self.broken_token()
        return rng.choice(RUN_UNITS) * rng.randint(1, 20)

    def mixed(self, atoms, glue=""):
        return glue.join(self.atom() for _ in range(self.rng.randint(1, atoms)))

    def texts(self, with_every_code_point):
        """(kind, text as str or bytes)."""
        rng = self.rng
        yield "empty", ""
        if with_every_code_point:
            for text in every_code_point(): yield "every code point", text
        for token in self.added:
            yield "added token", token
            yield "added token", f"a {token} b{token}{token}\n"
        for unit in RUN_UNITS:
            for count in [*range(1, 12), 16, 47, 48, 49, 50, 63, 64, 65, 127, 500]:
                yield "run", unit * count
                yield "run inside", "a" + unit * count + "b 1"
            yield "long run", unit * (65536 // len(unit.encode()))
        yield "long run", "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(65536))
        yield "long run", "".join(scalar(rng, 0x4E00, 0x9FA5) for _ in range(20000))
        for _ in range(3000): yield "words", " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 40)))
        for _ in range(2000): yield "scripts", " ".join(self.word() for _ in range(rng.randint(1, 10)))
        for _ in range(1500): yield "white space", "".join(
            rng.choice(SPACES + ["a", "1", ".", "中", "\u0301"]) for _ in range(rng.randint(1, 12)))
        for _ in range(1500): yield "controls", "".join(
            rng.choice(CONTROLS + ["a", "1", ".", "中", " "]) for _ in range(rng.randint(1, 12)))
        for _ in range(1000): yield "marks", "".join(
            rng.choice(MARKS + ["a", "1", ".", "か", " ", "\n"]) for _ in range(rng.randint(1, 12)))
        for _ in range(1000): yield "numbers", "".join(
            rng.choice(NUMBERS + ["a", " ", ".", "中"]) for _ in range(rng.randint(1, 12)))
        for _ in range(2500): yield "any code points", "".join(scalar(rng) for _ in range(rng.randint(1, 24)))
        for _ in range(1500): yield "plane 0 code points", "".join(
            scalar(rng, 0, 0xFFFF) for _ in range(rng.randint(1, 24)))
        for _ in range(1500): yield "ASCII", "".join(chr(rng.randrange(128)) for _ in range(rng.randint(1, 60)))
        for _ in range(1500): yield "added tokens", "".join(
            rng.choice([rng.choice(self.added), self.broken_token(), self.atom()]) for _ in range(rng.randint(1, 8)))
        for _ in range(1500):  # pieces of added tokens in any order: overlaps
            tokens = [rng.choice(self.added) for _ in range(4)]
            cuts = [token[rng.randint(0, len(token)):][:rng.randint(1, len(token))] for token in tokens for _ in "123"]
            yield "added token pieces", "".join(rng.choice(cuts + tokens) for _ in range(rng.randint(1, 16)))
        for _ in range(5000): yield "mixed", self.mixed(12)
        for _ in range(100): yield "mixed, long", self.mixed(600)
        for _ in range(1000):
            parts = [rng.choice([rng.choice(INVALID), self.atom().encode()]) for _ in range(rng.randint(1, 8))]
            yield "invalid UTF-8", b"".join(parts)
        for _ in range(500):
            yield "random bytes", bytes(rng.choice([rng.randrange(256), rng.randrange(128)])
                                        for _ in range(rng.randint(1, 40)))

    def id_lists(self, vocab_size):
        rng = self.rng
        for _ in range(3000):
            yield [rng.randrange(vocab_size) for _ in range(rng.randint(0, 20))]
        for _ in range(3000):  # bytes and short tokens: halves of characters
            yield [rng.randrange(3, min(vocab_size, 1200)) for _ in range(rng.randint(0, 12))]
