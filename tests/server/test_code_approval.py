"""Approval of code submitted with a run: by hash, by the submitter's token, or by a question to the operator."""

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


async def _unexpected_question(what: str, digest: str) -> bool:
    raise AssertionError("the operator must not be asked")


def test_without_a_question_only_approved_code_passes(tmp_path: Path) -> None:
    approval = CodeApproval(frozenset({CODE.digest}), None)
    for code, admitted in ((None, False), (CODE, False), (OTHER, True)):
        approval.check(code, admitted=admitted)
    with pytest.raises(RefusedError, match=f"{OTHER.digest} – its operator can: .* --accept-apps {OTHER.digest}"):
        approval.check(OTHER, admitted=False)
    with pytest.raises(RefusedError):
        asyncio.run(approval.request(_run(tmp_path, OTHER)))


def test_no_question_is_asked_about_approved_code(tmp_path: Path) -> None:
    approval = CodeApproval(frozenset({CODE.digest}), _unexpected_question)
    by_operator = _run(tmp_path, OTHER)
    by_operator.admitted = True
    for run in (_run(tmp_path, None), _run(tmp_path, CODE), by_operator):
        asyncio.run(approval.request(run))


@pytest.mark.parametrize("answer", [True, False])
def test_questions_are_asked_one_at_a_time_and_answers_apply_to_their_run_only(tmp_path: Path, answer: bool) -> None:
    questions: list[str] = []
    answered = asyncio.Event()

    async def ask(what: str, digest: str) -> bool:
        questions.append(digest)
        await answered.wait()
        return answer

    async def request_all() -> list[BaseException | None]:
        approval = CodeApproval(frozenset(), ask)
        runs = [_run(tmp_path, CODE), _run(tmp_path, CODE)]
        approval.check(CODE, admitted=False)
        tasks = [asyncio.create_task(approval.request(run)) for run in runs]
        for _ in range(5):
            await asyncio.sleep(0)
        assert questions == [CODE.digest]
        assert not any(approval.is_approved(run) for run in runs)
        assert all(CODE.digest in run.reason for run in runs)
        answered.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [approval.is_approved(run) for run in runs] == [answer, answer]
        return results

    results = asyncio.run(request_all())
    assert questions == [CODE.digest] * 2
    assert all(isinstance(result, RefusedError) for result in results) is not answer
