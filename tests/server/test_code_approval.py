"""Code that comes with a run: accepted by hash, by its submitter, or at the terminal; else no program is started."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from farshore.core.errors import RefusedError
from farshore.core.session import Code
from farshore.server.code_approval import CodeApproval
from farshore.server.run import Run
from farshore.server.run_log import RunLog

CODE, OTHER = Code("a" * 64, "a Flower app"), Code("b" * 64, "a Flower app")


def _run(folder: Path, code: Code | None) -> Run:
    return Run("r", "m", "{}", 1, folder, RunLog(folder / "log.txt"), code=code)


async def _unwanted(what: str, digest: str) -> bool:
    raise AssertionError("nobody may be asked")


def test_without_anybody_to_ask_only_accepted_code_passes(tmp_path: Path) -> None:
    consent = CodeApproval(frozenset({CODE.digest}), None)
    for code, admitted in ((None, False), (CODE, False), (OTHER, True)):
        consent.check(code, admitted=admitted)
    with pytest.raises(RefusedError, match=f"{OTHER.digest} – its operator can: .* --accept-apps {OTHER.digest}"):
        consent.check(OTHER, admitted=False)
    with pytest.raises(RefusedError):
        asyncio.run(consent.obtain(_run(tmp_path, OTHER)))


def test_accepted_code_is_not_asked_about(tmp_path: Path) -> None:
    consent = CodeApproval(frozenset({CODE.digest}), _unwanted)
    operators = _run(tmp_path, OTHER)
    operators.admitted = True
    for run in (_run(tmp_path, None), _run(tmp_path, CODE), operators):
        asyncio.run(consent.obtain(run))


@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_is_waited_for_one_question_at_a_time_and_counts_for_its_run(tmp_path: Path, answer: bool) -> None:
    asked: list[str] = []
    go = asyncio.Event()

    async def ask(what: str, digest: str) -> bool:
        asked.append(digest)
        await go.wait()
        return answer

    async def obtain() -> list[BaseException | None]:
        consent = CodeApproval(frozenset(), ask)
        runs = [_run(tmp_path, CODE), _run(tmp_path, CODE)]
        consent.check(CODE, admitted=False)
        tasks = [asyncio.create_task(consent.obtain(run)) for run in runs]
        for _ in range(5):
            await asyncio.sleep(0)
        assert asked == [CODE.digest]
        assert not any(consent.given(run) for run in runs)
        assert all(CODE.digest in run.reason for run in runs)
        go.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [consent.given(run) for run in runs] == [answer, answer]
        return ends

    ends = asyncio.run(obtain())
    assert asked == [CODE.digest] * 2
    assert all(isinstance(end, RefusedError) for end in ends) is not answer
