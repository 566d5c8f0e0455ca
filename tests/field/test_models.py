"""Models that people have: what of them becomes a run, and what is refused with the reason.

Every change is made to the same good folder, a GPT-2 with a byte-level BPE of 290 ids and 300 rows. The door is
`python -m model_core.hf import`.
"""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model_core.checkpoint import LoadedModel, load_model
from model_core.hf.__main__ import main
from model_core.hf.export import export_run
from model_core.storage.events import read_events
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from tests.model_core.hf.folders import publish_run, text_of

Change = Callable[[Path], Any]
Tensors = dict[str, torch.Tensor]

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
WTE, HEAD, PREFIX = "transformer.wte.weight", "lm_head.weight", "transformer."
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])  # (B, T)
TEXT = text_of(600)
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
)


# --- the good folder, and ways to change it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("good")
    run = publish_run(home, "run", train_bpe([text_of(2000)], 290), n_layer=2, n_embd=16, n_head=4, vocab_size=300)
    return export_run(run, home / "gpt2").folder


@pytest.fixture(scope="module")
def expected(good: Path) -> tuple[torch.Tensor, list[int]]:
    """Logits of the good folder's model, and ids of the text."""
    return logits_of(load_model(Run(good.parent / "run"))), encoded(good)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "gpt2")


@pytest.fixture
def bring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], tuple[int, str]]:
    """Import what a person has: exit code, and what stderr says."""

    def bring(source: Path) -> tuple[int, str]:
        code = main(["import", str(source), "--run", "mine", "--data-root", str(tmp_path / "data")])
        return code, capsys.readouterr().err

    return bring


@pytest.fixture
def imported(tmp_path: Path) -> Run:
    return Run(tmp_path / "data" / "exp" / "mine")


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(IDS)[0]  # (B, T, V)


def weights(change: Callable[[Tensors], Tensors]) -> Change:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def renamed(rename: Callable[[str], str]) -> Change:
    return weights(lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})


def config(**values: Any) -> Change:
    return edit("config.json", lambda stored: stored.update(values))


def without(*keys: str) -> Change:
    return edit("config.json", lambda stored: [stored.pop(key) for key in keys])


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(folder: Path) -> None:
        stored = json.loads((folder / name).read_text())
        change(stored)
        (folder / name).write_text(json.dumps(stored))

    return apply


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def steps(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)
    (folder / WEIGHTS).unlink()


def sharded(pattern: str, save: Callable[[Tensors, Path], Any]) -> Change:
    """Two shards and their index, as `save_pretrained(max_shard_size=...)` writes them."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        shards = [names[::2], names[1::2]]
        files = [pattern.format(number + 1) for number in range(2)]
        for file, part in zip(files, shards, strict=True):
            save({name: tensors[name] for name in part}, folder / file)
        where = {name: file for file, part in zip(files, shards, strict=True) for name in part}
        index = f"{WEIGHTS if files[0].endswith('safetensors') else PICKLE}.index.json"
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))

    return apply


def tokenizer(*special: str, size: int = 290, alphabet: bool = True, files: bool = True) -> Change:
    """Another byte-level BPE, as the trainers of Hugging Face write it: special tokens first."""

    def apply(folder: Path) -> None:
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = decoders.ByteLevel()
        first = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(special), initial_alphabet=first, show_progress=False
        )
        trained.train_from_iterator([text_of(2000)], trainer)
        trained.save(str(folder / "tokenizer.json"))
        stored = json.loads(trained.to_str())["model"]
        (folder / "vocab.json").write_text(json.dumps(stored["vocab"]))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(p) for p in stored["merges"]), ""]))
        ends = next((token for token in special if token in {"<|endoftext|>", "</s>"}), None)
        settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "eos_token": ends}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if not files:
            (folder / "tokenizer.json").unlink()
            (folder / "added_tokens.json").write_text(json.dumps({token: stored["vocab"][token] for token in special}))

    return apply


def added(*tokens: str) -> Change:
    """Tokens that were added later, without a longer embedding."""

    def apply(folder: Path) -> None:
        changed = Tokenizer.from_file(str(folder / "tokenizer.json"))
        changed.add_special_tokens([AddedToken(token, special=True) for token in tokens])
        changed.save(str(folder / "tokenizer.json"))

    return apply


def encoded(folder: Path) -> list[int]:
    """Ids of the text by the folder's own tokenizer."""
    if (folder / "tokenizer.json").is_file():
        theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        theirs = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids: list[int] = theirs.encode(TEXT, add_special_tokens=False).ids
    return ids


# --- models that become a run, with the numbers that they had --------------------------------------------------------

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
BLOCK = "transformer.h.0."
TIED = weights(lambda t: {HEAD: t[WTE], **{name: t[name] for name in t if name != WTE}})
MASKS = ("bias", "masked_bias")
SAFETENSORS, BIN = "model-0000{}-of-00002.safetensors", "pytorch_model-0000{}-of-00002.bin"

MODELS: dict[str, Change] = {
    "tied matrix under lm_head.weight only": TIED,
    "tied matrix under both names": weights(lambda t: {**t, HEAD: t[WTE].clone()}),
    "compiled": renamed(lambda name: f"_orig_mod.{name}"),
    "trained with DDP": renamed(lambda name: f"module.{name}"),
    "compiled, then DDP": renamed(lambda name: f"module._orig_mod.{name}"),
    "DDP, then compiled, tied under the head": steps(TIED, renamed(lambda name: f"_orig_mod.module.{name}")),
    "one block compiled": renamed(lambda name: name.replace(BLOCK, f"{BLOCK}_orig_mod.")),
    "the body compiled": renamed(lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod.module.")),
    "FSDP": renamed(lambda name: name.replace("h.", "h._fsdp_wrapped_module.")),
    "a member of somebody's class": renamed(lambda name: f"model.{name}"),
    "the body alone": renamed(lambda name: name.removeprefix(PREFIX)),
    "the body alone, compiled": renamed(lambda name: f"_orig_mod.{name.removeprefix(PREFIX)}"),
    "with masks": weights(lambda t: {**t, **{f"{BLOCK}attn.{name}": torch.ones(1) for name in MASKS}}),
    "pytorch_model.bin": pickled,
    "shards": sharded(SAFETENSORS, lambda tensors, path: save_file(tensors, path)),
    "shards of pytorch_model.bin": sharded(BIN, torch.save),
    "compiled shards": steps(renamed(lambda n: f"_orig_mod.{n}"), sharded(SAFETENSORS, lambda t, p: save_file(t, p))),
    "both formats, and one is a Git LFS pointer": lambda folder: (pickled(folder), write(WEIGHTS, POINTER)(folder)),
    "both formats, and the second lacks its shards": write(f"{PICKLE}.index.json", '{"weight_map": {"a": "none.bin"}}'),
    "weights for TensorFlow as a pointer beside ours": write("tf_model.h5", POINTER),
    "no model_type, as in 2019": without("model_type"),
    "keys of other models": steps(
        config(num_attention_heads=4, hidden_size=16, num_hidden_layers=2), without("n_head", "n_embd", "n_layer")
    ),
    "another name of the same activation": config(activation_function="gelu_pytorch_tanh"),
    "inner size that is the usual one": config(n_inner=64),
}  # fmt: skip


@pytest.mark.parametrize("had", MODELS)
def test_what_people_have_computes_the_same_numbers_here(
    folder: Path, bring: Any, imported: Run, expected: tuple[torch.Tensor, list[int]], had: str
) -> None:
    MODELS[had](folder)
    assert bring(folder) == (0, "")
    found = load_model(imported)
    torch.testing.assert_close(logits_of(found), expected[0])
    assert found.tokenizer.encode(TEXT) == expected[1]


@pytest.mark.parametrize("kind", HALF)
def test_weights_of_another_precision_are_read(folder: Path, bring: Any, imported: Run, kind: str) -> None:
    weights(lambda tensors: {name: tensor.to(HALF[kind]) for name, tensor in tensors.items()})(folder)
    expected = load_file(folder / WEIGHTS)[WTE].float()
    assert bring(folder) == (0, "")
    assert torch.equal(load_model(imported).model.state_dict()[WTE], expected)


# --- tokenizers: the same ids as in the folder, and the end of text where it was -------------------------------------

END = "<|endoftext|>"
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
TOKENIZERS: dict[str, tuple[Change, int, bool]] = {  # with the id of the end of text, and whether there is a warning
    "trained as in the Hugging Face course": (tokenizer(END), 0, False),
    "the same, as vocab.json and merges.txt": (tokenizer(END, files=False), 0, False),
    "a padding token before the end of text": (tokenizer("<pad>", END), 1, True),
    "padding and mask behind the end of text": (tokenizer(END, "<pad>", "<mask>"), 0, True),
    "RoBERTa's special tokens": (tokenizer(*ROBERTA), 2, True),
    "the same, as vocab.json and merges.txt ": (tokenizer(*ROBERTA, files=False), 2, True),
    "padding that was added later": (added("<pad>"), 289, True),
    "padding beyond vocab_size": (steps(added(*(f"<extra_{n}>" for n in range(20)))), 289, True),
    "padding beyond vocab_size, end of text first": (steps(tokenizer(END, size=300), added("<pad>")), 0, True),
    "without tokenizer.json": (remove("tokenizer.json"), 289, False),
    "without its settings": (remove("tokenizer_config.json", "special_tokens_map.json"), 289, False),
}  # fmt: skip


@pytest.mark.parametrize("had", TOKENIZERS)
def test_a_tokenizer_gives_the_ids_that_it_gave(folder: Path, bring: Any, imported: Run, had: str) -> None:
    change, end, is_warned = TOKENIZERS[had]
    change(folder)
    assert bring(folder)[0] == 0
    ours = load_model(imported).tokenizer
    assert ours.encode(TEXT) == encoded(folder)
    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert (ours.eot, bool(list(read_events(imported.events, types={"warning"})))) == (end, is_warned)


def test_ids_beyond_vocab_size_are_left_out_and_the_text_is_kept(folder: Path, bring: Any, imported: Run) -> None:
    tokenizer(END, size=320)(folder)
    assert bring(folder)[0] == 0
    ours = load_model(imported).tokenizer
    assert max(ours.encode(TEXT)) < 300 <= max(encoded(folder))
    assert ours.decode(ours.encode(TEXT)) == TEXT
    (warning,) = read_events(imported.events, types={"warning"})
    assert "20 tokens" in warning["detail"]
    assert "300" in warning["detail"]


def test_a_run_with_the_end_of_text_first_goes_out_as_it_came_in(
    folder: Path, bring: Any, imported: Run, tmp_path: Path
) -> None:
    tokenizer("<pad>", END)(folder)
    assert bring(folder)[0] == 0
    out = export_run(imported, tmp_path / "out").folder
    theirs = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert theirs.get_vocab() == Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert theirs.encode(f"{TEXT}{END}").ids == [*encoded(folder), 1]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 1


# --- folders in other folders and in archives ------------------------------------------------------------------------


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "sent"), "zip", folder.parent, folder.name))


def zipped_without_folder(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "sent"), "zip", folder))


def tarred(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "sent"), "gztar", folder.parent, folder.name))


def in_the_hub_cache(folder: Path) -> Path:
    home = folder.parent / "models--me--gpt2"
    blobs, snapshot = home / "blobs", home / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(blobs / f"blob-{path.name}")
    return home


@pytest.mark.parametrize("pack", [zipped, zipped_without_folder, tarred, in_the_hub_cache])
def test_a_folder_is_found_where_it_is(
    folder: Path,
    bring: Any,
    imported: Run,
    expected: tuple[torch.Tensor, list[int]],
    pack: Callable[[Path], Path],
) -> None:
    assert bring(pack(folder)) == (0, "")
    torch.testing.assert_close(logits_of(load_model(imported)), expected[0])
    assert [path.name for path in imported.path.parent.iterdir()] == ["mine"]


# --- what is refused, with what the message names --------------------------------------------------------------------

REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "weights as a Git LFS pointer": (write(WEIGHTS, POINTER), (WEIGHTS, "Git LFS pointer", "git lfs pull")),
    "pytorch_model.bin as one": (steps(pickled, write(PICKLE, POINTER)), (PICKLE, "Git LFS pointer")),
    "a shard as one": (
        steps(sharded(SAFETENSORS, lambda t, p: save_file(t, p)), write(SAFETENSORS.format(2), POINTER)),
        (SAFETENSORS.format(2), "Git LFS pointer"),
    ),
    "both formats as one": (steps(write(WEIGHTS, POINTER), write(PICKLE, POINTER)), (WEIGHTS, "Git LFS pointer")),
    "config.json as one": (write("config.json", POINTER), ("config.json", "Git LFS pointer")),
    "tokenizer.json as one": (write("tokenizer.json", POINTER), ("tokenizer.json", "Git LFS pointer")),
    "merges.txt as one": (
        steps(remove("tokenizer.json"), write("merges.txt", POINTER)), ("merges.txt", "Git LFS pointer"),
    ),
    "merges missing": (remove("tokenizer.json", "merges.txt"), ("vocab.json", "merges.txt", "missing")),
    "vocabulary missing": (remove("tokenizer.json", "vocab.json"), ("vocab.json", "merges.txt", "missing")),
    "SentencePiece": (
        steps(remove("tokenizer.json", "vocab.json", "merges.txt"), write("spiece.model", "x")), ("spiece.model",),
    ),
    "trained without the alphabet of bytes": (tokenizer(END, alphabet=False), ("256 bytes", "initial_alphabet")),
    "nothing ends a text": (tokenizer("<s>"), (END, "eos_token")),
    "the end of text has no row": (
        steps(tokenizer(size=300), added(END)), (END, "300", "vocab_size"),
    ),
    "attention scaled by layer": (
        config(scale_attn_by_inverse_layer_idx=True), ("scale_attn_by_inverse_layer_idx", "true", "false"),
    ),
    "attention in another precision": (config(reorder_and_upcast_attn=True), ("reorder_and_upcast_attn", "true")),
    "attention not scaled": (config(scale_attn_weights=False), ("scale_attn_weights", "false")),
    "another activation": (config(activation_function="relu"), ("activation_function", "relu", "gelu_new")),
    "the exact GELU": (config(activation_function="gelu"), ("activation_function", "gelu_new")),
    "another inner size": (config(n_inner=48), ("n_inner", "48", "4 x 16")),
    "layers that differ by transformers' key": (config(per_layer_config={"0": {"n_head": 2}}), ("per_layer_config",)),
    "another model": (config(model_type="llama"), ("model_type", "llama", "gpt2")),
    "another model of 2019": (steps(without("model_type"), config(architectures=["BertModel"])), ("model_type",)),
    "a head of its own": (weights(lambda t: {**t, HEAD: t[WTE] + 1}), (HEAD, WTE)),
    "a head alone that is not tied": (steps(TIED, config(tie_word_embeddings=False)), (WTE,)),
    "a longer embedding than config.json says": (config(vocab_size=299), (WTE, "(300, 16)", "(299, 16)")),
    "the same tensor twice": (weights(lambda t: {**t, f"module.{WTE}": t[WTE].clone()}), (WTE,)),
    "a classifier": (weights(lambda t: {**t, "score.weight": t[WTE].clone()}), ("score.weight",)),
    "weights for TensorFlow only": (steps(remove(WEIGHTS), write("tf_model.h5", "x")), ("tf_model.h5", WEIGHTS)),
    "config.json missing": (remove("config.json"), ("config.json",)),
    "a list in config.json": (write("config.json", "[]"), ("config.json", "object")),
}  # fmt: skip


@pytest.mark.parametrize("had", REFUSED)
def test_what_cannot_be_used_is_named(folder: Path, bring: Any, imported: Run, had: str) -> None:
    change, named = REFUSED[had]
    change(folder)
    code, said = bring(folder)
    assert code == 2
    assert said.count("\n") == 1
    assert [word for word in named if word not in said] == []
    assert not imported.path.exists()


def two_models(folder: Path) -> Path:
    home = folder.parent / "trainer"
    for name in ("checkpoint-500", "checkpoint-1000"):
        shutil.copytree(folder, home / name)
    return home


def damaged(folder: Path) -> Path:
    path = zipped(folder)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def cut(folder: Path) -> Path:
    path = tarred(folder)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def leaving(folder: Path) -> Path:
    path = folder.parent / "sent.tar"
    with tarfile.open(path, "w") as packed:
        packed.add(folder / "config.json", "../../config.json")
    return path


def leaving_zip(folder: Path) -> Path:
    path = folder.parent / "sent.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.write(folder / "config.json", "../config.json")
    return path


SOURCES: list[tuple[Callable[[Path], Path], str]] = [
    (two_models, "checkpoint-1000"),
    (damaged, "sent.zip"),
    (cut, "sent.tar.gz"),
    (leaving, "../../config.json"),
    (leaving_zip, "../config.json"),
    (lambda folder: folder / WEIGHTS, WEIGHTS),
    (lambda folder: folder / "nowhere", "nowhere"),
]


@pytest.mark.parametrize(("pack", "named"), SOURCES)
def test_what_holds_no_one_model_is_named(
    folder: Path, bring: Any, imported: Run, pack: Callable[[Path], Path], named: str
) -> None:
    code, said = bring(pack(folder))
    assert (code, said.count("\n"), named in said) == (2, 1, True)
    assert not imported.path.parent.exists() or list(imported.path.parent.iterdir()) == []
