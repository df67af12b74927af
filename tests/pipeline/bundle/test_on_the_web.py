"""The digits bundle in the Hugging Face layout in a browser: the outputs of onnxruntime, to 1e-5."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

from growpipe.cli import cli
from growpipe.data.digits import loaders
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.models.digits import build
from growpipe.torch_module.export import export_growth_form
from tests.helpers.browser import browser_page

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><title>web</title><script type="module">
import * as ort from "/ort.wasm.min.mjs";
ort.env.wasm.numThreads = 1;
window.answer = (async () => {
  const session = await ort.InferenceSession.create("/onnx/model.onnx");
  const given = await (await fetch("/x.json")).json();
  const input = new ort.Tensor("float32", Float32Array.from(given.values), given.shape);
  const outputs = await session.run({ image: input });
  return Array.from(outputs.logits.data);
})();
</script>"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def log_message(self, format: str, *args: object) -> None:
        pass


def grown_digits() -> ir.Model:
    """The seed network of the digits recipe, grown by a plan with signed coefficients."""
    torch.manual_seed(0)
    export = export_growth_form(
        build().eval(), (torch.rand(2, 1, 8, 8),), input_names=["image"], output_names=["logits"]
    )
    return grow_graph(export.graph, random_plan(export.groups(), export.graph, growth=0.5, seed=0))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Path]:
    """The bundle with the runtime beside it, served at 127.0.0.1; its address is in the file ``address``."""
    runtime = os.environ.get("ORT_WEB")
    if not runtime:
        pytest.skip("ORT_WEB does not name a folder with the npm package onnxruntime-web")
    save_model(grown_digits(), tmp_path / "model.onnx")
    images, digits = next(iter(loaders(batch_size=64, seed=0).test))
    np.savez(tmp_path / "data.npz", image=images[:7].numpy(), targets=digits[:7].numpy())
    out = tmp_path / "out"
    command = ["deploy", str(tmp_path / "model.onnx"), "-o", str(out), "--layout", "huggingface"]
    done = CliRunner().invoke(
        cli, [*command, "--test-vectors", str(tmp_path / "data.npz")], standalone_mode=False
    )
    assert done.exception is None, done.exception
    for file in (Path(runtime) / "dist").glob("ort*wasm*"):
        (out / file.name).symlink_to(file)
    handler = functools.partial(_Handler, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (out / "address").write_text(f"http://127.0.0.1:{server.server_address[1]}")
        yield out
        server.shutdown()


def test_the_same_outputs_in_the_browser(web: Path) -> None:
    vectors = np.load(web / "test-vectors.npz")
    given, expected = vectors["input/image"], vectors["output/logits"]
    (web / "x.json").write_text(json.dumps({"shape": given.shape, "values": given.ravel().tolist()}))
    (web / "page.html").write_text(PAGE)
    address = (web / "address").read_text()
    with browser_page() as page:
        page.open(f"{address}/page.html")
        found = np.array(page.evaluate("window.answer")).reshape(expected.shape)
        assert {request.split("/")[2] for request in page.requests if request.startswith("http")} == {
            address[7:]
        }
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
