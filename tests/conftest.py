"""Tiny model folders that whole test runs share, and how tests are dealt out to processes.

`tiny` is importable because this file lies beside it.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import CHAT_TEMPLATE, build_causal_lm, build_encoder
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

THE_CLUSTER, THE_FINISHED_RUN = "the cluster", "the finished run"


@cache
def group_of(file: Path) -> str:
    """What the tests of a file share with those of others; else the file itself."""
    if file.parent.name == "cluster":
        return THE_CLUSTER
    return THE_FINISHED_RUN if "finished: PipelineSettings" in file.read_text("utf-8") else str(file)


class ByWhatTheyShare(LoadScopeScheduling):
    """Deals out tests by the file, but to one process all that share a finished run, or a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups that take longest come first, or one process would wait for the other at the end."""
    first = (THE_CLUSTER, THE_FINISHED_RUN)
    items.sort(key=lambda item: [*first, group_of(item.path)].index(group_of(item.path)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByWhatTheyShare:
    return ByWhatTheyShare(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and threads of several processes spin against each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _a_cpu_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without instructions for bfloat16 the package computes in float32, and tests would find that.

    torch emulates them there, which is quick enough for tiny models.
    """
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


@pytest.fixture(scope="session")
def causal_lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer and no chat template. Read only."""
    return build_causal_lm(tmp_path_factory.mktemp("causal_lm"))


@pytest.fixture(scope="session")
def chat_lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template. Read only."""
    return build_causal_lm(tmp_path_factory.mktemp("chat_lm"), chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT in sentence-transformers layout, mean pooling. Read only."""
    return build_encoder(tmp_path_factory.mktemp("encoder"))
