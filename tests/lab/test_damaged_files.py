"""Files that are cut at any byte or altered are made anew with a warning, or refused in one line."""

import io
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from exprune.core import ExPrune, SiteStatistics, Threshold, find_sites
from exprune.core.calibration.files import save_statistics
from exprune.core.errors import SettingError
from exprune.files import kept, load_tensors, named, save_tensors
from exprune.lab import studies
from exprune.lab.evaluation import calibration
from exprune.lab.evaluation.passes import _Progress
from exprune.lab.examples.images import cifar10
from exprune.lab.examples.language.tokens import find_tokenizer
from exprune.lab.examples.molecules import graphs
from exprune.lab.examples.molecules.smiles import Molecules
from exprune.lab.examples.molecules.texts import smiles_tokens
from exprune.lab.failures import failed_jobs
from exprune.lab.fingerprint import programs
from exprune.lab.studies import finished, open_study
from exprune.lab.training.checkpoints import load_weights
from exprune.lab.training.fit import _resumable

Log = pytest.LogCaptureFixture
Damage = tuple[str, bytes]


def cuts(file: Path, count: int = 25) -> Iterator[Damage]:
    """Yield the file cut at its ends and at places between, always shorter than the whole file."""
    data = file.read_bytes()
    size = len(data)
    for place in sorted({0, 1, 2, size - 2, size - 1, *range(0, size, max(1, size // count))}):
        yield f"cut at {place} of {size}", data[:place]


def replace(file: Path, content: bytes) -> None:
    """Put another file in its place; tensors read from the old file may still be memory-mapped to it."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def tensors_of(tensors: dict[str, Tensor], metadata: dict[str, str], folder: Path) -> bytes:
    return save_tensors(folder / "altered", tensors, metadata).read_bytes()


NO_JSON = [("a list", b"[1]"), ("no UTF-8", b"\xff\xfe\x00"), ("a number", b"1"), ("deep", b"[" * 100_000)]


def made_anew(
    file: Path, read: Callable[[], Any], right: Callable[[Any], bool], damage: list[Damage], log: Log
) -> None:
    """Whatever the damage, there is a line that names the file, and the result is right."""
    for what, content in damage:
        replace(file, content)
        log.clear()
        with log.at_level(logging.WARNING, "exprune"):
            assert right(read()), what
        lines = [record.getMessage() for record in log.records if record.name.startswith("exprune")]
        assert len(lines) == 1 and str(file) in lines[0] and "\n" not in lines[0], (what, lines)
        assert "weights_only" not in lines[0]


def refused(file: Path, read: Callable[[], Any], damage: list[Damage]) -> None:
    """Whatever the damage, the error is one line that names the file."""
    for what, content in damage:
        replace(file, content)
        with pytest.raises(SettingError) as raised:
            read()
            print(what)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value), what


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path, caplog: Log) -> None:
    assert kept(tmp_path / "none", Path.read_text, "it is made anew") is None and not caplog.records
    with pytest.raises(SettingError, match="none: cannot be used"):
        named(tmp_path / "none", Path.read_text)


def test_passes(tmp_path: Path, caplog: Log) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(6, 40)
    sites, file = find_sites(net, x), tmp_path / "pass.pt"

    def fresh() -> ExPrune:
        return ExPrune(sites, Threshold(-0.05, n=32))

    with torch.no_grad(), fresh() as run:
        net(x)
    counts = run.state_dict()
    state = {"programs": programs(), "batches": [{"prediction": torch.zeros(6, 2), "flops": 3}]}
    state |= {"seconds": 1.0, "ended": True, "run": counts, "head": {}}
    file.write_bytes(saved(state))
    whole = _Progress(fresh(), file, None, None)
    assert len(whole.batches) == 1 and whole.run is not None and whole.run.flops == run.flops
    assert whole.ended and whole.before == 1

    (name, fields), *_ = counts["sites"].items()
    altered = {
        "a list": [1],
        "no seconds": {key: value for key, value in state.items() if key != "seconds"},
        "batches of another kind": state | {"batches": [1]},
        "batches that differ": state | {"batches": [{"prediction": torch.zeros(1)}, {"target": torch.zeros(1)}]},
        "text for a number": state | {"batches": [{"flops": "3"}]},
        "not whether it ended": {key: value for key, value in state.items() if key != "ended"},
        "another version": state | {"programs": "0123"},
        "of an older version, without one": {key: value for key, value in state.items() if key != "programs"},
        "counts of another version": state | {"run": counts | {"version": 0}},
        "no sites": state | {"run": counts | {"sites": {}}},
        "a site without counts": state | {"run": counts | {"sites": {name: {}}}},
        "other stages": state | {"run": counts | {"sites": {name: fields | {"pruned_at": [0] * 9}}}},
        "more sites": state | {"run": counts | {"sites": {**counts["sites"], "more": fields}}},
    }
    damage = [*cuts(file), *((what, saved(content)) for what, content in altered.items())]
    damage += [("garbage", b"hello" * 10), ("code", pickle.dumps(print))]
    nothing = fresh().flops
    made_anew(
        file,
        lambda: _Progress(fresh(), file, None, None),
        lambda progress: progress.batches == [] and not progress.ended and progress.run.flops == nothing,
        damage,
        caplog,
    )


def test_records_of_failed_jobs(tmp_path: Path) -> None:
    """A job whose record is damaged has failed; the other jobs are listed as usual."""
    for job in (0, 1):
        (tmp_path / str(job)).mkdir()
        (tmp_path / f"{job}/error.json").write_text(json.dumps({"job": job, "overrides": f"a={job}", "error": "b"}))
    file = tmp_path / "0" / "error.json"
    for what, content in [*cuts(file), *NO_JSON, ("no job", b'{"overrides": "a"}'), ("no number", b'{"job": "x"}')]:
        file.write_bytes(content)
        found = failed_jobs(tmp_path)
        assert list(found) == [tmp_path / "1", tmp_path / "0"], what
        assert found[tmp_path / "1"] == "a=1: b" and found[tmp_path / "0"].startswith(f"{file}: cannot be used")


def test_tokenizers(tmp_path: Path, caplog: Log) -> None:
    texts = ["def f(x): return x"] * 5
    right = find_tokenizer(texts, 300, tmp_path / "none", tmp_path).get_vocab()
    (file,) = (tmp_path / "tokenizers").iterdir()
    released = tmp_path / "stdlib-bpe300.json"
    other = json.loads(file.read_text())
    other["added_tokens"] = []
    other["model"]["vocab"] = {token: (number + 1) % 260 for token, number in other["model"]["vocab"].items()}
    altered = [("other numbers", json.dumps(other).encode()), ("empty", b"{}"), *NO_JSON]
    damage = [*cuts(file), *altered]
    made_anew(
        file,
        lambda: find_tokenizer(texts, 300, tmp_path / "none", tmp_path).get_vocab(),
        lambda found: found == right,
        damage,
        caplog,
    )
    refused(released, lambda: find_tokenizer(texts, 300, tmp_path, tmp_path), damage)


def test_a_list_of_tokens_that_is_no_text(tmp_path: Path) -> None:
    refused(tmp_path / "vocab.txt", lambda: smiles_tokens(str(tmp_path)), [("no UTF-8", b"[PAD]\n\xff"), ("", b"")])


def test_graphs(tmp_path: Path, caplog: Log) -> None:
    molecules = Molecules("here", ["CCO", "c1ccccc1", "CCN", "CCCl"] * 3, [0, 1, 0, 1] * 3)
    right = graphs.cached(molecules, "few", tmp_path)
    (file,) = (tmp_path / "graphs").iterdir()
    tensors, metadata = load_tensors(file)
    longer = {name: torch.cat([tensor, tensor], dim=-1) for name, tensor in tensors.items()}
    damage = [*cuts(file)]
    for name in tensors:
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        damage += [(f"no {name}", tensors_of(rest, metadata, tmp_path))]
        if longer[name].dim() == 1 or name == "edge_index":
            damage += [(f"longer {name}", tensors_of(rest | {name: longer[name]}, metadata, tmp_path))]
    made_anew(
        file,
        lambda: graphs.cached(molecules, "few", tmp_path),
        lambda found: found.split == right.split and all(torch.equal(found.tensors[k], v) for k, v in tensors.items()),
        damage,
        caplog,
    )


def test_images(tmp_path: Path, caplog: Log) -> None:
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = {"train": images, "train_labels": torch.zeros(2), "test": images + 1, "test_labels": torch.ones(2)}
    file = tmp_path / "images.safetensors"

    def read() -> Any:
        return cifar10._cached(file, "abc", lambda: whole)

    read()
    here = {"archive": "abc"}
    damage = [*cuts(file), ("no archive", tensors_of(whole, {}, tmp_path))]
    damage += [("another archive", tensors_of({k: v * 0 for k, v in whole.items()}, {"archive": "def"}, tmp_path))]
    damage += [(f"no {k}", tensors_of({n: v for n, v in whole.items() if n != k}, here, tmp_path)) for k in whole]
    damage += [(f"one {k}", tensors_of(whole | {k: whole[k][:1]}, here, tmp_path)) for k in whole]
    damage += [("not bytes", tensors_of(whole | {"test": images.float()}, here, tmp_path))]
    made_anew(file, read, lambda found: torch.equal(found.test, images + 1), damage, caplog)


@pytest.mark.parametrize("order", ["layer", "input"])
def test_calibrations(order: str, tmp_path: Path, caplog: Log) -> None:
    about = {"version": 2, "order": order}
    lines = [torch.rand(2, 8, dtype=torch.float64) + 1 for _ in range(3)]
    by_input = {"rest": torch.ones(2), "magnitudes": torch.ones(1025)} if order == "input" else {}
    perm: Any = "input" if order == "input" else torch.arange(40)
    of = SiteStatistics((8, 16), *lines, order=perm, gradient=torch.ones(8), **by_input)
    file = tmp_path / "c.safetensors"
    save_statistics(file, {"0": of}, about)
    tensors, metadata = load_tensors(file)
    damage = [*cuts(file)]
    for key in ("about", "sites"):
        for text in (metadata[key][:4], "[1]", "null", '{"0": 1}'):
            damage += [(f"{key} {text}", tensors_of(tensors, metadata | {key: text}, tmp_path))]
    damage += [("no metadata", tensors_of(tensors, {}, tmp_path))]
    damage += [("nothing", tensors_of({"x": torch.ones(1)}, metadata, tmp_path))]
    for name in tensors:
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        damage += [(f"no {name}", tensors_of(rest, metadata, tmp_path))]
        if name not in ("0/order", "0/magnitudes"):
            damage += [(f"other shape of {name}", tensors_of(rest | {name: torch.zeros(3)}, metadata, tmp_path))]
    refused(file, lambda: named(file, lambda path: calibration._read(path, about)), damage)
    made_anew(
        file,
        lambda: kept(file, lambda path: calibration._read(path, about), "it is measured anew"),
        lambda found: found is None,
        damage,
        caplog,
    )


def test_checkpoints(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    ours, theirs = tmp_path / "w.safetensors", tmp_path / "w.pt"
    save_tensors(ours, weights, {"config": '{"model":{"name":"m"}}'})
    theirs.write_bytes(saved(weights))
    before = {name: tensor.clone() for name, tensor in weights.items()}
    assert load_weights(ours, network, "m") == {} and load_weights(theirs, network, "m") == {}
    damage = [*cuts(ours)]
    for text in ('{"mod', "[1]", '{"model":"x"}', '{"model":null}', "null"):
        damage += [(text, tensors_of(weights, {"config": text}, tmp_path))]
    refused(ours, lambda: load_weights(ours, network, "m"), damage)
    refused(theirs, lambda: load_weights(theirs, network, "m"), [*cuts(theirs), ("numbers", saved({1: torch.ones(1)}))])
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_parts_of_different_weights(tmp_path: Path) -> None:
    for number, note in ((1, "a"), (2, "b")):
        save_tensors(tmp_path / f"w-{number}of2.safetensors", {f"{number}": torch.ones(1)}, {"config": note})
    with pytest.raises(SettingError, match=r"w-2of2\.safetensors: not a part of the same weights"):
        load_tensors(tmp_path / "w-1of2.safetensors")


class _Network(lightning.LightningModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.network = nn.Linear(3, width)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = self.network(batch).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def test_interrupted_trainings(tmp_path: Path, caplog: Log) -> None:
    def trained(task: Any, folder: Path) -> tuple[Path, Path]:
        """Its latest and its best checkpoint, as ``fit`` keeps them."""
        latest = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
        best = ModelCheckpoint(folder, filename="best", monitor="loss", enable_version_counter=False)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[best, latest],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, DataLoader(torch.randn(4, 3)))  # type: ignore[arg-type]
        return folder / "last.ckpt", folder / "best.ckpt"

    task: Any = _Network()
    other, _ = trained(_Network(5), tmp_path / "other")
    last, best = trained(task, tmp_path)

    def resumed() -> bool | None:
        return kept(last, lambda file: _resumable(file, task), "this training begins anew")

    assert resumed()
    whole, whole_best, state = last.read_bytes(), best.read_bytes(), torch.load(last, weights_only=True)
    damage = [
        *cuts(last),
        ("another network", other.read_bytes()),
        ("a list", saved([1])),
        ("code", pickle.dumps(print)),
    ]
    damage += [(f"no {key}", saved({k: v for k, v in state.items() if k != key})) for key in ("loops", "state_dict")]
    made_anew(last, resumed, lambda found: not found, damage, caplog)
    for content in (whole_best[:100], b"", None):  # the latest is whole, the best is not
        best.unlink()
        if content is not None:
            best.write_bytes(content)
        made_anew(last, resumed, lambda found: not found, [(f"best: {content!r}", whole)], caplog)
        best.write_bytes(whole_best)
    assert resumed()


def config(storage: str) -> Any:
    search = {"name": "tpe", "storage": storage, "study": None}
    return OmegaConf.create({"search": search, "seed": 0, "paths": {"cache_dir": "unused"}})


def trials(storage: str, more: int = 0) -> int:
    opened = open_study(config(storage), "one", {"model": "gnn"})
    opened.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=more)
    return len(finished(open_study(config(storage), "one", {"model": "gnn"})))


def test_journals(tmp_path: Path, caplog: Log) -> None:
    """A truncated record is dropped with a warning, or completed; those before it stay, and more can follow."""
    file = tmp_path / "study.journal"
    assert trials(str(file), 3) == 3
    whole = file.read_bytes()
    for place in {*range(0, len(whole), 61), 1, 2, len(whole) - 2, len(whole) - 1}:
        file.write_bytes(whole[:place])
        records = whole[: place + 1].rpartition(b"\n")[0]  # also one that lacks but the end of its line
        ended = records.count(b'"op_code":6')
        caplog.clear()
        assert trials(str(file)) == ended, place
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("exprune")]
        dropped = b"\n" not in (whole[place - 1 : place], whole[place : place + 1])
        assert [str(file) in line for line in lines] == [True] * dropped, (place, lines)
        assert trials(str(file), 1) == ended + 1, place


def test_a_worker_that_dies_while_it_writes(tmp_path: Path, caplog: Log) -> None:
    """Another worker that runs at the same time does not append to the incomplete line."""
    file = tmp_path / "study.journal"
    opened = open_study(config(str(file)), "one", {"model": "gnn"})
    with file.open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    opened.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=2)
    assert "its last record was cut" in caplog.text and trials(str(file)) == 2


def test_journals_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies.time, "sleep", lambda seconds: None)
    file = tmp_path / "study.journal"
    trials(str(file), 1)
    whole = file.read_bytes()
    half = whole[: len(whole) // 2].rpartition(b"\n")[0] + whole[-30:]
    damage = [
        ("garbage", b"hello\nworld\n"),
        ("text", b"hello"),
        ("no UTF-8", b"\xff\xfe"),
        ("records run together", half),
    ]
    damage += [("other records", b"{}\n"), ("another version", b'{"op_code":99,"worker_id":"a"}\n'), ("list", b"[1]\n")]
    refused(file, lambda: trials(str(file)), damage)
    assert file.read_bytes() == b"[1]\n"  # what is not ours is left as it is


def test_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log) -> None:
    monkeypatch.setattr(studies.time, "sleep", lambda seconds: None)
    file = tmp_path / "study.db"
    storage = f"sqlite:///{file}"
    assert trials(storage, 2) == 2
    whole = file.read_bytes()
    damage = [(what, content) for what, content in cuts(file, 12) if len(content) > 1]
    refused(file, lambda: trials(storage), [*damage, ("garbage", b"hello"), ("zeros", bytes(9000))])
    made_anew(file, lambda: trials(storage), lambda count: count == 0, [("0", b""), ("1", whole[:1])], caplog)
    file.write_bytes(whole)
    assert trials(storage) == 2


def test_a_study_of_another_version_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(config(storage), "more", {"model": "gnn", "tests": 2})
    open_study(config(storage), "text", {"model": "gnn"}).set_user_attr("about", "text")
    open_study(config(storage), "list", {"model": "gnn"}).set_user_attr("about", [1])
    for name, other in (("more", "tests"), ("text", "model"), ("list", "model")):
        with pytest.raises(SettingError, match=f"search.study={name}: its trials are of another {other}"):
            open_study(config(storage), name, {"model": "gnn"})
