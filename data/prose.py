"""English sentences in the docstrings of Python source, found by parsing it: nothing is imported or run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

#: A paragraph with one of these starts what is no prose: sections, field lists, directives, examples.
_NO_PROSE = re.compile(
    r"^\s*(>>>|\.\. |:\w|@|[-=~^*#+|]{3,}|[*-] |"
    r"(args?|arguments|parameters|params|returns?|raises|warns|examples?|notes?|references|see also|"
    r"attributes|inputs?|outputs?|yields|usage|shape|methods|keyword arguments)\b[^.]*:?\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
_BLANK = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
#: ``word`` and `word` in running text become the word; other marked code keeps its marks and is dropped.
_MARKED_WORD = re.compile(r"(`{1,2})([A-Za-z]+)\1")
#: Letters and the punctuation of plain English: no digits, paths, calls, operators, addresses, underscores.
_PLAIN = re.compile(r"[A-Z][A-Za-z ,;:'\"()-]*\.")
_CALL = re.compile(r"\w\(|\w:\S|--|[a-z][A-Z]|[A-Z]{2}[a-z]{2}")


def docstrings(source: bytes) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, unindented; none if the source does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not our user's business
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # A walk over statements alone: expressions are most of a tree and hold no docstrings.
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        for name in ("body", "handlers", "orelse", "finalbody"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):  # a lambda's body is an expression
                left += inner


def sentences(docstring: str, shortest: int = 5, longest: int = 40) -> Iterator[str]:
    """Plain English sentences at the start of a docstring, before its first section, list or example.

    Parameters
    ----------
    docstring : str
        Unindented text.
    shortest, longest : int
        Words that a sentence may have.
    """
    for paragraph in _BLANK.split(docstring):
        if _NO_PROSE.search(paragraph):
            return
        text = _MARKED_WORD.sub(r"\2", " ".join(paragraph.split()))
        for sentence in _SENTENCE_END.split(text):
            if (
                shortest <= sentence.count(" ") + 1 <= longest
                and _PLAIN.fullmatch(sentence)
                and not _CALL.search(sentence)
            ):
                yield sentence


def same_sentence_key(sentence: str) -> str:
    """What two sentences share if they differ only in case, spaces and punctuation."""
    return re.sub(r"[^a-z]+", " ", sentence.lower()).strip()
