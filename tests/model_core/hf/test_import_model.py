"""Folders that are damaged or hold another model are refused, and leave no run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_core.errors import InvalidData, RunExists
from model_core.hf.export import export_run
from model_core.hf.import_model import import_model
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json, write_json
from tests.model_core.hf.folders import SHAPES, MakeRun


@pytest.fixture(scope="session")
def intact(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    root = tmp_path_factory.mktemp("intact")
    plain = {**SHAPES["unequal"], "n_head_list": None, "n_head": 4}
    export_run(make_run(root / "exp", "plain", **plain), root / "folder")
    return root / "folder"


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(intact, tmp_path / "folder")


def refused(folder: Path, layout: Layout, message: str) -> None:
    """The import is refused with this message, and leaves nothing."""
    with pytest.raises(InvalidData, match=message):
        import_model(folder, "name", layout)
    assert not layout.exp.exists() or not list(layout.exp.iterdir())


def test_the_folder_itself_is_accepted(folder: Path, layout: Layout) -> None:
    assert import_model(folder, "name", layout).resolve("best").step == 0


WRONG_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon.* 1e-06.* 1e-05"),
    ({"add_cross_attention": True}, r"add_cross_attention.* true"),
    ({"n_head": 5}, r"5 heads.* 16"),
    ({"n_head": "4"}, r"n_head.* 4"),
    ({"n_layer": 4}, r"transformer\.h\.3\.ln_1\.weight"),
    ({"n_layer": 2}, r"transformer\.h\.2\."),
    ({"n_embd": 32}, r"c_attn\.weight.* \(16, 48\).* \(32, 96\)"),
    ({"vocab_size": 280}, r"vocab_size.* 280"),
    ({"tie_word_embeddings": False}, r"tie_word_embeddings.* false.* lm_head"),
    ({"model_type": "headcount"}, r"n_head_list.* null"),
    ({"resid_pdrop": "x", "embd_pdrop": "x", "attn_pdrop": "x"}, r"dropout.* x"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS, ids=lambda part: str(part)[:40])
def test_a_configuration_that_is_not_ours_is_named(
    folder: Path, layout: Layout, changes: dict[str, Any], message: str
) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    refused(folder, layout, message)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] ^= 0xFF
    path.write_bytes(data)


def rewrite(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Write the tensors again after a change to them."""
    return lambda path: save_file(change(load_file(path)), path)


WTE, LN = "transformer.wte.weight", "transformer.ln_f.weight"
DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("config.json", lambda path: path.write_text("{"), r"config\.json.* JSON"),
    ("config.json", lambda path: path.write_bytes(b"\xff\x00"), r"config\.json.* JSON"),
    ("model.safetensors", Path.unlink, r"model\.safetensors"),
    ("model.safetensors", truncate, r"model\.safetensors.* damaged"),
    ("model.safetensors", flip_the_header, r"model\.safetensors.* damaged"),
    ("model.safetensors", lambda path: path.write_bytes(b""), r"model\.safetensors.* damaged"),
    ("model.safetensors", rewrite(lambda t: {n: t[n] for n in t if n != LN}), r"ln_f\.weight.* missing"),
    ("model.safetensors", rewrite(lambda t: t | {LN: t[LN][:3].clone()}), r"ln_f\.weight.* \(3,\)"),
    ("model.safetensors", rewrite(lambda t: t | {LN: t[LN] / 0}), r"ln_f\.weight.* finite"),
    ("model.safetensors", rewrite(lambda t: t | {LN: t[LN].long()}), r"ln_f\.weight.* torch\.int64"),
    ("model.safetensors", rewrite(lambda t: t | {"ln_f.weight": t[LN].clone()}), r"ln_f\.weight"),
    ("tokenizer.json", lambda path: path.write_text("no"), r"tokenizer\.json.* JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE, ids=[message for _, _, message in DAMAGE])
def test_a_damaged_folder_is_named(
    folder: Path, layout: Layout, file: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder / file)
    refused(folder, layout, message)


class Code:
    """Would leave a file behind if anybody unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path, layout: Layout, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Code(tmp_path / "ran")}, folder / "pytorch_model.bin")
    refused(folder, layout, r"pytorch_model\.bin.* is refused: it holds a pickled \S+.*model\.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x02."])
def test_a_pickle_that_is_none_is_damaged(folder: Path, layout: Layout, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, layout, r"pytorch_model\.bin' is damaged")


def test_a_pickle_of_more_than_tensors_is_refused(folder: Path, layout: Layout) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model": {"wte.weight": torch.zeros(2)}}, folder / "pytorch_model.bin")
    refused(folder, layout, r"pytorch_model\.bin holds more than tensors by name")


@pytest.mark.parametrize("named", ["../secret.safetensors", "absent.safetensors"])
def test_an_index_names_files_of_the_folder_alone(folder: Path, layout: Layout, named: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": {WTE: named}})
    refused(folder, layout, r"index\.json")


def tokenizer_with(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = read_json(folder / "tokenizer.json")
    change(content)
    write_json(folder / "tokenizer.json", content)


OTHER_TOKENIZERS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda t: t["model"].update(type="WordPiece"), r"model\.type.* 'WordPiece'.* BPE"),
    (lambda t: t.update(normalizer={"type": "Lowercase"}), r"normalizer.* \{'type': 'Lowercase'\}"),
    (lambda t: t["pre_tokenizer"].update(type="Metaspace"), r"pre_tokenizer\.type.* 'Metaspace'"),
    (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), r"pre_tokenizer\.add_prefix_space.* True"),
    (lambda t: t["model"].update(byte_fallback=True), r"model\.byte_fallback.* True"),
    (lambda t: t["model"]["merges"].reverse(), r"merge 0 "),
    (lambda t: t["model"]["merges"].pop(), r"merges"),
    (lambda t: t["model"]["vocab"].update({"!": 7}), r"no token has the id 0"),
    (lambda t: t["model"]["vocab"].update({"日": 0}), r"日|gap"),
    (lambda t: t["model"]["vocab"].update({"new": 310}), r"no token has the id 290"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), OTHER_TOKENIZERS, ids=[message for _, message in OTHER_TOKENIZERS])
def test_a_tokenizer_of_another_kind_is_named(
    folder: Path, layout: Layout, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    tokenizer_with(folder, change)
    refused(folder, layout, message)


def test_a_taken_name_is_refused_before_anything_is_read(folder: Path, layout: Layout) -> None:
    import_model(folder, "name", layout)
    shutil.rmtree(folder)
    with pytest.raises(RunExists) as refused:
        import_model(folder, "name", layout)
    assert refused.value.next_free == "name-2"


def test_tokens_after_the_end_of_text_are_plain_text_with_a_warning(folder: Path, layout: Layout) -> None:
    tokenizer_with(folder, lambda t: t["added_tokens"].append(t["added_tokens"][0] | {"id": 310, "content": "<pad>"}))
    run = import_model(folder, "name", layout)
    (warning,) = read_events(run.events, types={"warning"})
    assert "<pad>" in warning["detail"]
