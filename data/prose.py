"""Extracts English sentences from docstrings of Python source files by parsing, without importing them."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Iterator

#: Start of the part of a docstring that is not prose: sections, field lists, directives, examples.
_NOT_PROSE = re.compile(
    r"^\s*(>>>|\.\. |:\w|@|[-=~^*#+|]{3,}|[*-] |"
    r"(args?|arguments|parameters|params|returns?|raises|warns|examples?|notes?|references|see also|"
    r"attributes|inputs?|outputs?|yields|usage|shape|methods|keyword arguments)\b[^.]*:?\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
#: Neither the parser's nesting counter (Python 3.11) nor the list of warning filters is one per thread.
_PARSING = threading.Lock()
_BLANK = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
#: ``word`` and `word` are replaced by the word; sentences with any other markup are dropped.
_MARKED_WORD = re.compile(r"(`{1,2})([A-Za-z]+)\1")
#: Letters and punctuation of plain English; excludes digits, paths, calls, operators, URLs and underscores.
_PLAIN = re.compile(r"[A-Z][A-Za-z ,;:'\"()-]*\.")
_CALL = re.compile(r"\w\(|\w:\S|--|[a-z][A-Z]|[A-Z]{2}[a-z]{2}")


def docstrings(source: bytes) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions, unindented; nothing if the source does not parse."""
    try:
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. invalid escapes in third-party code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # Walk over statements only: most nodes of a tree are expressions, which contain no docstrings.
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        for name in ("body", "handlers", "orelse", "finalbody"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):  # the body of a lambda is an expression
                pending += inner


def sentences(docstring: str, shortest: int = 5, longest: int = 40) -> Iterator[str]:
    """Yield plain English sentences at the start of a docstring, before its first section, list or example.

    Parameters
    ----------
    docstring : str
        Unindented text.
    shortest, longest : int
        Least and largest number of words in a sentence.
    """
    for paragraph in _BLANK.split(docstring):
        if _NOT_PROSE.search(paragraph):
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
    """A key that is equal for sentences that differ only in case, spaces and punctuation."""
    return re.sub(r"[^a-z]+", " ", sentence.lower()).strip()
