"""SIGHUP rolls the workers onto the model folder as it is now. No request fails, and no reply mixes two models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bert_serving.client import BertClient

from tests.hostile.reload import ModelFolders, ReloadClients, reload, texts
from tests.hostile.target import Target
from tests.support.encoders import shared_encoder
from tests.support.running_server import RunningServer
from tests.support.tiny_models import make_model
from tests.support.waiting import wait_until

# With batches of 16 texts, both workers compute parts of one large request.
_FLAGS = ("-num_worker", 2, "-cpu", "-dtype", "float32", "-max_batch_size", 16)


def test_a_reload_under_load_costs_no_request_and_mixes_no_models(tmp_path: Path) -> None:
    models = {
        "first": make_model(tmp_path / "a", "bert"),
        "other weights": make_model(tmp_path / "b", "bert", intermediate_size=96),
        "other width": make_model(tmp_path / "c", "bert", hidden_size=32),
    }
    expected = {name: shared_encoder(folder, dtype="float32").encode(texts()) for name, folder in models.items()}
    folders = ModelFolders(tmp_path / "model", models)
    with RunningServer("-model_dir", folders.folder, *_FLAGS) as server:
        with ReloadClients(Target.of(server.wait_ready()), expected) as clients:
            for name in ("other weights", "other width"):
                reload(server, folders, name)
                with BertClient(**server.ports, ignore_all_checks=True) as client:
                    vectors = client.encode(texts(20))
                assert np.abs(vectors - expected[name][:20]).max() < 1e-4, "the old model replied"
                wait_until(lambda name=name: clients.num_replies[name] or clients.faults)
        assert clients.faults == []
        assert clients.num_replies.keys() == expected.keys()
