"""Text from files and servers, made safe to show."""

import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogates, separators of lines
JOINERS = "\u200c\u200d"  # within words of some scripts, and emoji


def printable(text: object) -> str:
    """Text on one line, without characters that control a terminal or reorder what it shows.

    Tabs and line breaks become spaces, others their escapes: ESC becomes `\\x1b`.
    """
    return "".join(map(_shown, str(text)))


def _shown(char):
    if char in "\t\n\r":
        return " "
    if unicodedata.category(char) in HIDDEN and char not in JOINERS:
        return char.encode("unicode_escape").decode("ascii")
    return char
