"""A node's key in use in two places, over processes: both are refused until an operator decides; the run goes on."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.client.agent import Agent
from farshore.client.agent import run as run_agent
from farshore.client.join import membership
from farshore.core.errors import ConfigError, RefusedError

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]

_SPAWN = multiprocessing.get_context("spawn")
_LONG = {"rounds": 100_000, "kilobytes": 1, "checkpoint_every": 4, "pause_ms": 20}


def _copy(cloud: Any, name: str) -> Path:
    target = cloud.folder / "copies" / name
    shutil.copytree(cloud.folder / "nodes" / name, target)
    return target


def _start_copy(cloud: Any, name: str, home: Path) -> None:
    """Start an agent with the copied home in place of ``cloud.agents[name]``."""
    shutil.move(cloud.folder / "nodes" / name, cloud.folder / "nodes" / f"{name}-original")
    shutil.copytree(home, cloud.folder / "nodes" / name)
    cloud.join(name)


def _stop(cloud: Any, name: str) -> None:
    cloud.agents[name].terminate()
    cloud.agents[name].join()


def test_a_copy_used_while_the_node_works_displaces_nobody_and_the_run_goes_on(cloud: Any, until: Any) -> None:
    cloud.join("a")
    run_id = cloud.submit(_LONG, count=1)
    until(lambda: cloud.run(run_id).done >= 3)
    options = replace(cloud.agent_options("a"), home=_copy(cloud, "a"), token=None)
    states: list[tuple[str, str]] = []

    copy = threading.Thread(target=_run_until_refused, args=(options, states))
    copy.start()
    copy.join(30)
    assert not copy.is_alive()
    assert any("was used in two places" in detail for _, detail in states), states

    node = cloud.node("a")
    assert node.state == "contested"
    assert "127.0.0.1" in node.reason
    done = cloud.run(run_id).done
    until(lambda: cloud.run(run_id).done > done + 3)
    assert cloud.run(run_id).epoch == 0
    assert "the run goes on" in cloud.log(cloud.run(run_id))

    with cloud.admin() as admin:
        admin.cancel(run_id)
    waiting = cloud.submit({"rounds": 1, "kilobytes": 1}, count=1)
    until(lambda: "contested" in cloud.run(waiting).reason or "not connected" in cloud.run(waiting).reason)
    with cloud.admin() as admin:
        assert admin.trust("a").state != "contested"
    cloud.when(waiting, "finished")


def _run_until_refused(options: Any, states: list[tuple[str, str]]) -> None:
    """Run an agent in this thread until it was refused once."""

    async def serve() -> None:
        agent = Agent(replace(options, on_state=lambda state, detail: states.append((state, detail))))
        task = asyncio.create_task(agent._join_and_connect())
        while not any(state == "disconnected" for state, _ in states) and not task.done():
            await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(serve())


def test_the_owner_of_a_key_that_a_copy_has_used_meanwhile_is_refused_and_joins_again(cloud: Any, until: Any) -> None:
    cloud.join("a")
    _stop(cloud, "a")
    _start_copy(cloud, "a", _copy(cloud, "a"))  # the copy connects while the owner is away
    owner = cloud.folder / "nodes" / "a-original"
    with pytest.raises(RefusedError, match="has been used elsewhere since"):
        run_agent(replace(cloud.agent_options("a"), home=owner, token=None))
    until(lambda: cloud.node("a").state == "contested")
    assert "presented an outdated secret" in cloud.node("a").reason
    assert cloud.agents["a"].is_alive()  # the copy goes on trying, in vain
    shutil.move(cloud.folder / "nodes" / "a", cloud.folder / "stolen")
    shutil.move(owner, cloud.folder / "nodes" / "a")
    copy = cloud.agents.pop("a")
    cloud.join("a")  # with a token that the operator has created since
    copy.join(30)
    assert copy.exitcode == 1  # its key is not known any more
    assert cloud.agents["a"].is_alive()


def test_a_contest_survives_a_restart_of_the_server(cloud: Any, until: Any) -> None:
    cloud.join("a")
    old = _copy(cloud, "a")
    _stop(cloud, "a")
    cloud.join("a")
    with pytest.raises(RefusedError, match="elsewhere"):
        run_agent(replace(cloud.agent_options("a"), home=old, token=None))
    cloud.down()
    cloud.up()
    assert cloud.node("a").state == "contested"


def test_a_killed_agent_connects_again_at_once_with_the_secret_that_it_has(cloud: Any, until: Any) -> None:
    cloud.join("a")
    secrets, options = set(), replace(cloud.agent_options("a"), token=None)
    for _ in range(3):
        cloud.agents["a"].kill()
        cloud.agents["a"].join()
        before = membership(options).secrets
        cloud.join("a")
        until(lambda old=before: membership(options).secrets != old)
        secrets.add(membership(options).secrets)
    assert len(secrets) == 3
    until(lambda: cloud.node("a").state == "connected")
    cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")


def test_a_second_process_with_the_same_home_is_refused_and_the_first_stays(cloud: Any) -> None:
    cloud.join("a")
    with pytest.raises(ConfigError, match=rf"as the node 'a': process {cloud.agents['a'].pid} holds"):
        run_agent(cloud.agent_options("a"))
    assert cloud.agents["a"].is_alive()
    assert cloud.node("a").state == "connected"


def test_a_copy_that_takes_the_place_of_a_silent_node_is_noticed_when_the_node_speaks_again(
    cloud: Any, until: Any
) -> None:
    cloud.join("a")
    owner = psutil.Process(cloud.agents["a"].pid)
    owner.suspend()
    try:
        until(lambda: cloud.node("a").state == "lost")
        home = _copy(cloud, "a")
        (home / "lock").unlink()
        copy = _SPAWN.Process(target=run_agent, args=(replace(cloud.agent_options("a"), home=home, token=None),))
        copy.start()
        until(lambda: cloud.node("a").state == "connected")
    finally:
        owner.resume()
    until(lambda: cloud.node("a").state == "contested")
    copy.terminate()
    copy.join()


def test_the_process_of_a_run_in_progress_may_reconnect_although_its_key_is_contested(
    cloud: Any, until: Any, proxy: Any
) -> None:
    far = proxy(cloud.local.address)
    cloud.join("a", address=far.address)
    run_id = cloud.submit(_LONG, count=1)
    until(lambda: cloud.run(run_id).done >= 3)
    options = replace(cloud.agent_options("a"), home=_copy(cloud, "a"), token=None)
    _run_until_refused(options, [])
    until(lambda: cloud.node("a").state == "contested")
    for _ in range(2):
        done = cloud.run(run_id).done
        assert far.cut() >= 2
        until(lambda before=done: cloud.run(run_id).done > before + 5)
    assert cloud.run(run_id).epoch == 0
    assert cloud.node("a").state == "contested"
    with cloud.admin() as admin:
        admin.cancel(run_id)
