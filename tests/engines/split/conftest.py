"""Fixtures: small models, batches, a remote segment in another thread, and a real server process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers as t

from farshore.client.admin import AdminClient
from farshore.core.message import Message
from farshore.core.transfer import Transfer
from farshore.engines.split.attach import AttachedSegment, BlockRange, attach, recipe_of
from farshore.engines.split.cloud import SegmentServer
from farshore.engines.split.config import SplitSegment
from farshore.server.api import ServeOptions, serve
from farshore.simulations.in_process import InProcessRun

_SPAWN = multiprocessing.get_context("spawn")
PREFIX = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}
PREFIX["gpt2"] = "transformer.h"


def _classifier(family: str = "bert", dropout: float = 0.0, attention: str = "sdpa") -> Any:
    """A classifier of 5 blocks with d=32, in training mode."""
    common = {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3}
    bert = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64}
    bert |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    distil = {"dim": 32, "n_layers": 5, "n_heads": 4, "hidden_dim": 64, "seq_classif_dropout": dropout}
    distil |= {"dropout": dropout, "attention_dropout": dropout}
    gpt = {"n_embd": 32, "n_layer": 5, "n_head": 4, "scale_attn_by_inverse_layer_idx": True, "use_cache": False}
    gpt |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    kind, config = {
        "bert": (t.BertForSequenceClassification, t.BertConfig(**bert, **common)),
        "roberta": (t.RobertaForSequenceClassification, t.RobertaConfig(**bert, **common)),
        "distilbert": (t.DistilBertForSequenceClassification, t.DistilBertConfig(**distil, **common)),
        "gpt2": (t.GPT2ForSequenceClassification, t.GPT2Config(**gpt, **common)),
    }[family]
    config._attn_implementation = attention
    torch.manual_seed(5)
    model = kind(config)
    with torch.no_grad():
        for p in model.parameters():  # larger than the library's initial values, so that every block matters
            if p.dim() > 1:
                p.mul_(4.0)
    return model.train()


def _batch(seed: int = 2, *, side: Literal["right", "left", "none"] = "right") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 6, 3, 8])
    ids = torch.randint(3, 99, (4, 9), generator=generator)
    mask = torch.ones(4, 9, dtype=torch.long)
    if side != "none":
        mask = (torch.arange(9) < lengths[:, None]).long()
        mask = mask.flip(1) if side == "left" else mask
    ids[mask == 0] = 1
    labels = torch.randint(0, 3, (4,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Split:
    """Runs a user's script against a segment server in another thread; every message is packed and unpacked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: list[Transfer] = []
        self.sent: list[Message] = []
        self.cloud: Any = None
        self.result: dict[str, Any] = {}

    def __call__(
        self, model: Any, script: Callable[[Any, AttachedSegment], None], *, start: Any = "pca", **settings: Any
    ) -> None:
        path = PREFIX[model.config.model_type]
        block_range = BlockRange.find(model, (f"{path}.0", f"{path}.3"))
        settings.setdefault("ragged", False)
        config = SplitSegment(recipe=recipe_of(model, block_range), **settings)

        class User:
            name, on_lost_node = "split_segment", "restart"

            @staticmethod
            def server_program(session: Any, config: Any) -> dict[str, Any]:
                self.cloud = SegmentServer(session, config)
                return self.cloud.serve()

            @staticmethod
            def node_program(session: Any, _: Any) -> None:
                send = session.channel.send
                session.channel.send = lambda message: (self.sent.append(message), send(message))
                with attach(model, block_range, config, session, start) as attachment:
                    script(model, attachment)

        # Through JSON, as a server reads it.
        config = SplitSegment.model_validate_json(config.model_dump_json())
        run = InProcessRun(User, config, self._folder / str(len(self.rows)), recorder=self.rows.append)  # type: ignore[arg-type]
        self.result = run.run()


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return Split(tmp_path)


@pytest.fixture
def classifier() -> Callable[..., Any]:
    """``classifier(family="bert", dropout=0.0, attention="sdpa")``: 5 blocks with d=32, in training mode."""
    return _classifier


@pytest.fixture
def batch() -> Callable[..., dict[str, torch.Tensor]]:
    """``batch(seed=2, side="right")``: four sentences of up to nine tokens, padded on ``side``, with labels."""
    return _batch


@dataclass
class Server:
    """A server in its own process."""

    folder: Path
    process: BaseProcess

    @property
    def admin(self) -> AdminClient:
        return AdminClient.local(self.folder / "server")

    def arguments(self, name: str = "user") -> dict[str, Any]:
        """Arguments of ``farshore.split`` to join the server for the first time."""
        with self.admin as admin:
            token = admin.create_token(valid_seconds=600).token
            return {"server": admin.address, "token": token, "name": name, "home": self.folder / name}

    def run(self, run_id: str) -> Any:
        with self.admin as admin:
            return admin.run(run_id)

    def ended(self, run_id: str, seconds: float = 40.0) -> Any:
        """Wait for the end of a run and return it."""
        end = time.monotonic() + seconds
        while (info := self.run(run_id)).state not in {"finished", "failed", "cancelled", "interrupted"}:
            assert time.monotonic() < end, f"{info.state}: {info.reason}"
            time.sleep(0.05)
        return info


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    options = ServeOptions(home=tmp_path / "server", port=0, heartbeat_seconds=0.5)
    process = _SPAWN.Process(target=serve, args=(options,), name="server")
    process.start()
    end = time.monotonic() + 60
    while not (options.home / "address").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    try:
        yield Server(tmp_path, process)
    finally:
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGTERM)
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
